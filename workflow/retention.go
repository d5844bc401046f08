package workflow

import (
	"context"
	"errors"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// SweepRetention removes, in small batches, mail that reached a run while it ended, and runs that ended longer ago than
// Config.Retention with their history. It returns how many rows and runs that were. Live runs and their mail are never
// touched.
func (e *Engine) SweepRetention(ctx context.Context) (int, error) {
	if err := e.check(); err != nil {
		return 0, err
	}
	mail, mailErr := e.discardOrphanedMail(ctx)
	ended, endedErr := e.deleteEnded(ctx)
	return mail + ended, errors.Join(mailErr, endedErr)
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
	for {
		deleted := new(int)
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.DeleteEnded(b, e.config.Retention, e.config.MaxWorkflowsPerBatch, deleted)
		}); err != nil {
			return total, err
		}
		total += *deleted
		if *deleted < e.config.MaxWorkflowsPerBatch {
			return total, nil
		}
	}
}
