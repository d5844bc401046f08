package workflow

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Retry lets a run go on that is stuck or has failed, or that could not undo all of its steps. A stuck run is executed again
// with its history as it is, so after the right code was deployed it continues where it stopped. A failed run attempts the
// steps again whose failures it did not go on after, with their retry policies from the start; what else it has done
// stays recorded. One that failed without any failed step, by an error or a panic of the workflow itself, is executed again
// from the end of its history, for the code may be another by now.
//
// A failed [SideEffect] is a failed step, too. A failed step is not attempted again if the workflow has gone on after it learnt of the failure, since what it has recorded since may be
// there because of it: a message that tells of it, say. If that leaves nothing to attempt, and the workflow did not
// panic, Retry returns ErrNotRetryable and says which step it was. What was begun beside the step, by Go, before it failed does not count.
//
// Of a run that has undone its steps, failed or cancelled, the compensations that failed for good are attempted again, with their
// policies from the start; the others are not repeated. It is compensating meanwhile and then ends as it had, with the same error and
// the compensations that have failed once more.
//
// It returns ErrNotFound if there is no such run, ErrNotRetryable also if it is neither stuck nor failed, or if all that it had done
// was compensated, or if its history is being deleted, because Config.Retention has passed or by Erase, ErrModeConflict if a channel that it was subscribed to is in use in another mode by now, ErrNotStarted and ErrClosed.
//
// What was sent to a failed run and not received when it failed is kept for it until Config.Retention ends, and received after
// Retry. SendTo returns ErrUndeliverable between the two. What was published to its subscriptions and not received is lost.
func (e *Engine) Retry(ctx context.Context, id string) error {
	if err := e.checkFor(id); err != nil {
		return fmt.Errorf("retry run %.255q: %w", id, err)
	}
	for {
		if retried, err := e.retryOnce(ctx, id); err != nil {
			return fmt.Errorf("retry run %.255q: %w", id, e.explained(ctx, err))
		} else if retried {
			return nil
		}
	}
}

// retryOnce decides by what the database says of the run. It reports false if that has changed before it was carried out.
func (e *Engine) retryOnce(ctx context.Context, id string) (retried bool, err error) {
	found, past := new([]store.Run), map[string]*store.Past{}
	if err := e.do(ctx, true, func(b *pgx.Batch) { e.store.QueueFindRuns(b, []string{id}, found) }); err != nil {
		return false, outward(err)
	}
	if len(*found) == 0 {
		return false, ErrNotFound
	}
	if err := e.addPasts(ctx, []string{id}, past); err != nil {
		return false, outward(err)
	}
	ask, err := planRetry((*found)[0], past[id])
	if err != nil {
		return false, err
	}
	if err := e.discardUnreceived(ctx, id); err != nil {
		return false, outward(err)
	}
	did := new(store.Revived)
	if err := e.do(ctx, false, func(b *pgx.Batch) { e.store.RetryRun(b, ask, did) }); err != nil {
		if errors.Is(err, commit.ErrOutcomeUnknown) {
			e.madeReady([]store.Named{{ID: id, Workflow: (*found)[0].Workflow}}) // perhaps
		}
		return false, outward(err)
	}
	switch {
	case did.Drained:
		return false, errDrained
	case did.Taken != "":
		return false, fmt.Errorf("channel %q: %w", did.Taken, ErrModeConflict)
	case did.Workflow == "":
		return false, nil
	}
	e.madeReady([]store.Named{{ID: id, Workflow: did.Workflow}})
	return true, nil
}

// errDrained is of a run that has stopped, whose steps would be repeated by an execution that does not find them in its history.
var errDrained = fmt.Errorf("%w: its history is being deleted, because Config.Retention has passed or by Erase, so start a new run", ErrNotRetryable)

// discardUnreceived removes, a portion at a time, what a run had not received when it ended and must not receive when it goes on.
func (e *Engine) discardUnreceived(ctx context.Context, id string) error {
	page := &store.UnreceivedPage{More: true}
	for page.More {
		next := new(store.UnreceivedPage)
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			*next = *page
			e.store.DiscardUnreceived(b, id, next)
		}); err != nil {
			return err
		}
		page = next
	}
	return nil
}

// planRetry decides how a run can go on, or why it cannot.
func planRetry(run store.Run, past *store.Past) (store.Revive, error) {
	ask := store.Revive{Fence: store.Fence{ID: run.ID, Token: run.Token}}
	status := Status(run.Status)
	undone := slices.ContainsFunc(past.Records, func(r journal.Record) bool { return r.Kind == journal.Failing })
	switch {
	case run.Erased:
		return ask, fmt.Errorf("%w: %w", ErrNotRetryable, ErrErased)
	case status == StatusStuck:
		var last int32
		for _, record := range past.Records {
			last = max(last, record.Position)
		}
		ask.Forget = attemptsAfter(last, past)
		return ask, nil
	case run.Drained && (status == StatusFailed || status == StatusCancelled):
		return ask, errDrained
	case undone && (status == StatusFailed || status == StatusCancelled):
		return planUndoingAgain(ask, past)
	case status == StatusFailed:
		return planStepsAgain(ask, decodeFailure(run.Error), past)
	default:
		return ask, fmt.Errorf("%w: it is %s", ErrNotRetryable, status)
	}
}

// failedStep is a step that was recorded as failed for good.
type failedStep struct {
	position int32
	what     string
	name     string
	failure  *failure
}

// decodeFailedStep returns no failure if the record is not that of a step that failed.
func decodeFailedStep(record journal.Record) (failedStep, error) {
	switch record.Kind {
	case journal.SideEffectFailed:
		failed := decodeFailure(record.Payload)
		return failedStep{record.Position, "side effect", record.Name, &failed}, nil
	case journal.Activity:
		done, err := decodeStepRecord(record.Position, record.Payload)
		return failedStep{record.Position, "activity", record.Name, done.Error}, err
	default:
		return failedStep{}, nil
	}
}

// planStepsAgain forgets the steps that failed, but for those whose failure the workflow has gone on after: whether what it has
// recorded since follows from the failure, as a message that tells of it does, history does not say, and what follows from a failure
// diverges when the step succeeds.
func planStepsAgain(ask store.Revive, failure failure, past *store.Past) (store.Revive, error) {
	var failed, stay []failedStep
	var last int32 // of the records that stay
	for _, record := range past.Records {
		step, err := decodeFailedStep(record)
		if err != nil {
			return ask, err
		}
		if step.failure != nil {
			failed = append(failed, step)
			continue
		}
		last = max(last, record.Position)
	}
	// From the last one, because a failure that stays may follow from an earlier one, which then stays, too.
	var forget []int32
	begun := lastBegun(past, failed)
	for _, step := range slices.Backward(failed) {
		if max(last, begun) > max(step.position, failure.KnownAt[step.position]) {
			stay, last = append(stay, step), max(last, step.position)
			continue
		}
		forget = append(forget, step.position, journal.NoteAt(journal.Begun, step.position), journal.NoteAt(journal.GivenUp, step.position))
	}
	ask.Resubscribe = true
	ask.Forget = append(attemptsAfter(last, past), forget...)
	// A workflow that panicked has failed by its own code, which may have been replaced. The stack is that of an activity if the
	// workflow returned what that had failed with.
	panicked := failure.Stack != "" && !slices.ContainsFunc(failed, func(step failedStep) bool { return step.failure.Stack == failure.Stack })
	if len(stay) > 0 && len(forget) == 0 && !panicked {
		step := stay[0]
		return ask, fmt.Errorf("%w: %s %q at position %d has failed (%.200s), and history goes on after it to position %d, "+
			"so its failure stays recorded and nothing would be attempted again: start a new run", ErrNotRetryable, step.what, step.name, step.position, step.failure.Message, max(last, begun))
	}
	return ask, nil
}

// lastBegun returns the last position of a step that is noted to have begun, but for those that failed.
func lastBegun(past *store.Past, failed []failedStep) (last int32) {
	for _, record := range past.Records {
		position, noted := record.Noted()
		if noted && !slices.ContainsFunc(failed, func(step failedStep) bool { return step.position == position }) {
			last = max(last, position)
		}
	}
	return last
}

// planUndoingAgain forgets the compensations that failed. Those that follow stay: they did not depend on them.
func planUndoingAgain(ask store.Revive, past *store.Past) (store.Revive, error) {
	for _, record := range past.Records {
		if record.Kind != journal.Compensation {
			continue
		}
		done, err := decodeStepRecord(record.Position, record.Payload)
		if err != nil {
			return ask, err
		}
		if done.Error != nil {
			ask.Forget = append(ask.Forget, record.Position)
		}
	}
	if len(ask.Forget) == 0 {
		return ask, fmt.Errorf("%w: all that it had done was compensated, so start a new run", ErrNotRetryable)
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
