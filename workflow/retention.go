package workflow

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// SweepRetention removes, in small portions, keys of WithSendKey and events that have expired, runs that ended longer ago than
// Config.Retention with their history and, of failed ones, the messages that are kept for Retry, and messages that nobody receives any
// more, because their receivers have ended. It returns how many rows and runs that were, without what goes with the runs. Live runs and
// their messages are never touched. Of a run that continued as new only the history is removed while the run that it continued as
// is there. Several sweeps may be under way at a time, and one that is interrupted is continued by the next.
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

// deleteEnded deletes runs that ended long enough ago, in the order of their ends. What they have left goes first, a portion at a time;
// the page is looked at again until all of them are gone.
func (e *Engine) deleteEnded(ctx context.Context) (total int, err error) {
	if e.config.Retention <= 0 {
		return 0, nil
	}
	page, whole := e.retained.begin(time.Now())
	page.Full = true
	kept := 0
	var filled []string
	for page.Full {
		next, drained := new(store.EndedPage), new(int)
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			*next = store.EndedPage{Ended: page.Ended, IDs: page.IDs} // also when this is carried out again
			e.drainEnded(b, filled, drained)
			e.store.DeleteEnded(b, e.config.Retention, e.config.MaxWorkflowsPerBatch, next)
		}); err != nil {
			return total, err
		}
		former, err := e.deleteFormer(ctx, next.Former)
		if total += next.Deleted + former; err != nil {
			return total, err
		}
		first := len(filled) == 0
		if filled = next.Filled; len(filled) > 0 && (first || *drained+next.Deleted > 0) {
			continue
		}
		// Nothing is left of the page, or only what another sweep is busy with.
		filled = nil
		kept += next.Kept
		page = *next
	}
	e.retained.rise(time.Now(), page, whole && kept > e.config.MaxWorkflowsPerBatch)
	return total, nil
}

// drainEnded deletes a portion of what runs have left.
func (e *Engine) drainEnded(b *pgx.Batch, ids []string, drained *int) {
	if len(ids) > 0 {
		e.store.DrainEnded(b, ids, e.config.Retention, drained)
	}
}

// deleteFormer deletes runs that continued as ones which are deleted, and those before them.
func (e *Engine) deleteFormer(ctx context.Context, former []string) (total int, err error) {
	var filled []string
	for len(former) > 0 {
		next, drained := new(store.FormerRuns), new(int)
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.drainEnded(b, filled, drained)
			e.store.DeleteFormer(b, former, e.config.MaxWorkflowsPerBatch, next)
		}); err != nil {
			return total, err
		}
		total += next.Deleted
		stands := len(filled) > 0 && *drained+next.Deleted == 0 // another sweep is busy with them
		if filled = next.Filled; stands {
			filled = nil
		}
		former = slices.Concat(next.Next, filled)
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
func (e *Engine) discard(ctx context.Context, limit int, batch func(b *pgx.Batch, limit int, deleted *int, more *bool)) (total int, err error) {
	for {
		deleted, more := new(int), new(bool)
		if err := e.do(ctx, true, func(b *pgx.Batch) { batch(b, limit, deleted, more) }); err != nil {
			return total, err
		}
		total += *deleted
		if !*more {
			return total, nil
		}
	}
}
