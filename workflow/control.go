package workflow

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/journal"
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
	for {
		if retried, err := e.retryOnce(ctx, id); err != nil {
			return fmt.Errorf("retry run %q: %w", id, err)
		} else if retried {
			return nil
		}
	}
}

// retryOnce decides by what the database says of the run. It reports false if that has changed before it was carried out.
func (e *Engine) retryOnce(ctx context.Context, id string) (retried bool, err error) {
	found, past := new([]store.Run), map[string]*store.Past{}
	if err := e.do(ctx, true, func(b *pgx.Batch) {
		e.store.QueueFindRuns(b, []string{id}, found)
		e.store.LoadHistory(b, []string{id}, past)
	}); err != nil {
		return false, outward(err)
	}
	if len(*found) == 0 {
		return false, ErrNotFound
	}
	ask, err := planRetry((*found)[0], past[id])
	if err != nil {
		return false, err
	}
	did := new(store.Revived)
	if err := e.do(ctx, false, func(b *pgx.Batch) { e.store.RetryRun(b, ask, did) }); err != nil {
		return false, outward(err)
	}
	switch {
	case did.Taken != "":
		return false, fmt.Errorf("channel %q: %w", did.Taken, ErrModeConflict)
	case did.Workflow == "":
		return false, nil
	}
	e.madeReady([]store.Named{{ID: id, Workflow: did.Workflow}})
	return true, nil
}

// planRetry decides how a run can go on, or why it cannot.
func planRetry(run store.Run, past *store.Past) (store.Revive, error) {
	ask := store.Revive{Fence: store.Fence{ID: run.ID, Token: run.Token}}
	switch Status(run.Status) {
	case StatusStuck:
		var last int32
		for _, record := range past.Records {
			last = max(last, record.Position)
		}
		ask.Forget = attemptsAfter(last, past)
		return ask, nil
	case StatusFailed:
		return planStepsAgain(ask, past)
	default:
		return ask, fmt.Errorf("%w: it is %s", ErrNotRetryable, run.Status)
	}
}

// planStepsAgain forgets the steps that failed after everything else.
func planStepsAgain(ask store.Revive, past *store.Past) (store.Revive, error) {
	var failed []int32
	var last int32 // of the records that stay
	for _, record := range past.Records {
		switch record.Kind {
		case journal.Failing, journal.Compensation:
			return ask, fmt.Errorf("%w: what it had done was compensated, so start a new run", ErrNotRetryable)
		case journal.Activity:
			done, err := decodeStepRecord(record.Position, record.Payload)
			if err != nil {
				return ask, err
			}
			if done.Error != nil {
				failed = append(failed, record.Position)
				continue
			}
		}
		last = max(last, record.Position)
	}
	ask.Resubscribe = true
	ask.Forget = attemptsAfter(last, past)
	for _, position := range failed {
		if position > last {
			ask.Forget = append(ask.Forget, position)
		}
	}
	return ask, nil
}

// attemptsAfter returns the positions beyond last of steps that have failed attempts: their policies begin anew.
func attemptsAfter(last int32, past *store.Past) (positions []int32) {
	for position := range past.Attempts {
		if position > last {
			positions = append(positions, position)
		}
	}
	return positions
}
