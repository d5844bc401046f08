package lease

import (
	"context"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// livedPage is of how many runs deaths are taken back by one statement.
	livedPage = 500
	// maxFormer is how many of this process's former ids are remembered, for runs that turn up late.
	maxFormer = 64
)

// lived is what has to be said of the ids under which this process has lost its lease although it lives. A run that is taken from
// it costs a death otherwise, and, after some, is stuck, although nothing is wrong with it but the time that things take.
type lived struct {
	mu     sync.Mutex
	former []former // the latest ids
	unsaid []int64  // ids of which the database does not know yet that they lived
	owed   []store.Lost
	some   chan struct{} // holds a token while something may be owed
	any    atomic.Bool   // there is a former id
}

type former struct {
	id          int64
	untilMicros int64 // when its lease ended, by the database's clock
}

func (l *lived) lost(id, untilMicros int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.former = append(l.former, former{id, untilMicros})
	if len(l.former) > maxFormer {
		l.former = slices.Delete(l.former, 0, 1)
	}
	l.unsaid = append(l.unsaid, id)
	l.any.Store(true)
}

// had reports whether id is a former one. It is asked for every write of a run.
func (l *lived) had(id int64) bool {
	if !l.any.Load() {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.ContainsFunc(l.former, func(f former) bool { return f.id == id })
}

// owe notes runs that were this process's under a former id.
func (l *lived) owe(runs []store.Fence) {
	if len(runs) == 0 {
		return
	}
	l.mu.Lock()
	for _, run := range runs {
		until := int64(math.MaxInt64 / 2) // unknown: only deaths that name it are taken back
		for _, f := range l.former {
			if f.id == run.Worker {
				until = f.untilMicros
			}
		}
		l.owed = append(l.owed, store.Lost{Fence: run, UntilMicros: until})
	}
	l.mu.Unlock()
	l.give()
}

func (l *lived) give() {
	select {
	case l.some <- struct{}{}:
	default:
	}
}

// next returns what is to be said next.
func (l *lived) next() (unsaid []int64, page []store.Lost) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.unsaid), slices.Clone(l.owed[:min(len(l.owed), livedPage)])
}

// said notes that the database knows of the ids.
func (l *lived) said(ids []int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unsaid = slices.DeleteFunc(l.unsaid, func(id int64) bool { return slices.Contains(ids, id) })
}

// settled notes that page, the first of what is owed, is done but for the runs that were skipped. They come last then. It reports
// whether it is worth going on at once.
func (l *lived) settled(page []store.Lost, skipped map[string]bool) (more bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	rest := slices.Clone(l.owed[len(page):])
	more = len(rest) > 0 && len(skipped) < len(page)
	for _, run := range page {
		if skipped[run.ID] {
			rest = append(rest, run)
		}
	}
	l.owed = rest
	return more
}

// TakenFrom notes runs that were this process's under an id that it has lost since. It does not block.
func (k *Keeper) TakenFrom(runs ...store.Fence) { k.lived.owe(runs) }

// sayLived says the next of what is owed, and reports whether there is more that can be said now.
func (k *Keeper) sayLived(ctx context.Context) (more bool, err error) {
	unsaid, page := k.lived.next()
	if len(unsaid) > 0 {
		if _, err := ask(ctx, k, func(b *pgx.Batch, _ *struct{}) { k.config.Store.SayLived(b, unsaid) }); err != nil {
			return false, err
		}
		k.lived.said(unsaid)
	}
	if len(page) == 0 {
		return false, nil
	}
	// Only now: its snapshot must be later than that commit, see TakeBackDeaths.
	found, err := ask(ctx, k, func(b *pgx.Batch, found *[]store.TakenBack) { k.config.Store.TakeBackDeaths(b, page, found) })
	if err != nil {
		return false, err
	}
	skipped, back, freed := map[string]bool{}, 0, []store.Named(nil)
	for _, run := range *found {
		switch {
		case run.Skipped:
			skipped[run.ID] = true
		case run.Counted:
			back++
		}
		if run.Freed {
			freed = append(freed, run.Named)
		}
	}
	if back > 0 {
		k.config.Logger.InfoContext(ctx, "this worker has lived: deaths that were counted for it are taken back", "runs", back, "not stuck any more", len(freed))
	}
	if len(freed) > 0 {
		k.config.Freed(freed)
	}
	return k.lived.settled(page, skipped), nil
}

// settle says what is owed, a page at a time, so that heartbeats come in between. What cannot be said now is tried again with the
// next heartbeat.
func (k *Keeper) settle(running context.Context) {
	ctx, cancel := context.WithTimeout(running, k.config.Lease/6)
	defer cancel()
	if more, err := k.sayLived(ctx); more && err == nil {
		k.lived.give()
	}
}

// settleAll says all that is owed, until ctx ends.
func (k *Keeper) settleAll(ctx context.Context) error {
	for {
		more, err := k.sayLived(ctx)
		unsaid, page := k.lived.next()
		switch {
		case err == nil && !more && len(page) == 0 && len(unsaid) == 0:
			return nil
		case ctx.Err() != nil:
			return ctx.Err()
		case more && err == nil:
			continue
		}
		select { // a row is held, or the database in trouble
		case <-time.After(firstWait):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
