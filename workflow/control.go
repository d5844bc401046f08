package workflow

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Retry lets a run go on that is stuck or has failed. A stuck run is executed again with its history as it is, so after the
// right code was deployed it continues where it stopped. A failed run attempts the steps again whose failures are the last
// things in its history, with their retry policies from the start; what came before stays recorded.
//
// It returns ErrNotFound if there is no such run, ErrNotRetryable if it is neither stuck nor failed, or was compensated,
// ErrModeConflict if a channel that it was subscribed to is in use in another mode by now, ErrNotStarted and ErrClosed.
//
// What was sent to a failed run and not received when it failed is kept for it until Config.Retention ends, and received after
// Retry. SendTo returns ErrUndeliverable between the two. What was published to its subscriptions and not received is lost.
func (e *Engine) Retry(ctx context.Context, id string) error {
	if err := e.check(); err != nil {
		return err
	}
	found := new(store.Retried)
	if err := e.do(ctx, false, func(b *pgx.Batch) { e.store.RetryRun(b, id, found) }); err != nil {
		return fmt.Errorf("retry run %q: %w", id, outward(err))
	}
	switch {
	case found.Status == "":
		return fmt.Errorf("retry run %q: %w", id, ErrNotFound)
	case found.Workflow != "":
		e.madeReady([]store.Named{{ID: id, Workflow: found.Workflow}})
		return nil
	case found.Status != string(StatusFailed):
		return fmt.Errorf("retry run %q: %w: it is %s", id, ErrNotRetryable, found.Status)
	case found.Compensated:
		return fmt.Errorf("retry run %q: %w: what it had done was compensated, so start a new run", id, ErrNotRetryable)
	default:
		return fmt.Errorf("retry run %q: channel %q: %w", id, found.Taken, ErrModeConflict)
	}
}
