package workflow

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// SweepRetention removes, in small batches, mail that reached a run while it ended, keys of WithSendKey and events that have
// expired, and runs that ended longer ago than Config.Retention with their history and, of failed ones, the mail that is kept for
// Retry. It returns how many rows and runs that were, without what goes with the runs. Live runs and their mail are never touched.
// Of a run that continued as new only the history is removed while the run that it continued as is there.
func (e *Engine) SweepRetention(ctx context.Context) (int, error) {
	if err := e.check(); err != nil {
		return 0, err
	}
	mail, mailErr := e.discardOrphanedMail(ctx)
	keys, keysErr := e.discard(ctx, e.config.MaxMessagesPerBatch, e.store.DiscardSentKeys)
	events, eventsErr := e.discard(ctx, e.config.MaxMessagesPerBatch, e.store.DiscardEvents)
	ended, endedErr := e.deleteEnded(ctx)
	return mail + keys + events + ended, errors.Join(mailErr, keysErr, eventsErr, endedErr)
}

func (e *Engine) discardOrphanedMail(ctx context.Context) (total int, err error) {
	page := &store.Page{Full: true}
	for page.Full {
		removed := new(int)
		next := &store.Page{Last: page.Last}
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.DiscardOrphanedMail(b, next, e.config.MaxMessagesPerBatch, removed)
		}); err != nil {
			return total, err
		}
		total += *removed
		page = next
	}
	return total, nil
}

// deleteEnded deletes runs that ended long enough ago, in the order of their ends.
func (e *Engine) deleteEnded(ctx context.Context) (total int, err error) {
	if e.config.Retention <= 0 {
		return 0, nil
	}
	page, whole := e.retained.begin(time.Now())
	page.Full = true
	kept := 0
	for page.Full {
		next := &store.EndedPage{Ended: page.Ended, IDs: page.IDs}
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.DeleteEnded(b, e.config.Retention, e.config.MaxWorkflowsPerBatch, next)
		}); err != nil {
			return total, err
		}
		former, err := e.deleteFormer(ctx, next.Former)
		if total += next.Deleted + former; err != nil {
			return total, err
		}
		kept += next.Kept
		page = *next
	}
	e.retained.rise(time.Now(), page, whole && kept > e.config.MaxWorkflowsPerBatch)
	return total, nil
}

// deleteFormer deletes runs that continued as ones which are deleted, and those before them.
func (e *Engine) deleteFormer(ctx context.Context, former []string) (total int, err error) {
	for len(former) > 0 {
		deleted, next := new(int), new([]string)
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.DeleteFormer(b, former, e.config.MaxWorkflowsPerBatch, deleted, next)
		}); err != nil {
			return total, err
		}
		total += *deleted
		former = *next
	}
	return total, nil
}

// keptInterval is how long sweeps begin where the last one has ended, after one that has stepped over many runs which are kept.
const keptInterval = time.Hour

// retainedMark says where sweeps of the ended runs begin. What they step over is kept because the run that it continued as is
// there, and is deleted from there when that is; so where they have been nothing is left to find, unless it came to light late or a
// sweep was interrupted. A look from the beginning finds that, and its price is what is kept.
type retainedMark struct {
	mu   sync.Mutex
	last store.EndedPage
	next time.Time // when the next look from the beginning is due
}

// begin returns where a sweep begins, and whether that is the beginning.
func (m *retainedMark) begin(now time.Time) (after store.EndedPage, whole bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if now.Before(m.next) {
		return m.last, false
	}
	return store.EndedPage{}, true
}

// rise moves the mark to where a sweep has come. dear: it has stepped over so much that it is not to be repeated soon.
func (m *retainedMark) rise(now time.Time, to store.EndedPage, dear bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = store.EndedPage{Ended: to.Ended, IDs: to.IDs}
	if dear {
		m.next = now.Add(keptInterval)
	}
}

// discard deletes batches of up to limit until there are no more.
func (e *Engine) discard(ctx context.Context, limit int, batch func(b *pgx.Batch, limit int, deleted *int)) (total int, err error) {
	for {
		deleted := new(int)
		if err := e.do(ctx, true, func(b *pgx.Batch) { batch(b, limit, deleted) }); err != nil {
			return total, err
		}
		total += *deleted
		if *deleted < limit {
			return total, nil
		}
	}
}
