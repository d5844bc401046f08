package workflow

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// SweepRetention removes, in small batches, mail that reached a run while it ended, keys of WithSendKey and events that have
// expired, and runs that ended longer ago than Config.Retention with their history. It returns how many rows and runs that were. Live
// runs and their mail are never touched.
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

func (e *Engine) deleteEnded(ctx context.Context) (total int, err error) {
	if e.config.Retention <= 0 {
		return 0, nil
	}
	return e.discard(ctx, e.config.MaxWorkflowsPerBatch, func(b *pgx.Batch, limit int, deleted *int) {
		e.store.DeleteEnded(b, e.config.Retention, limit, deleted)
	})
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
