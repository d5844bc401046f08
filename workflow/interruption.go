package workflow

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// interruption says that a step could not be recorded, for a reason that is not the activity's fault.
type interruption struct {
	err error
	// again: nothing of it was committed, so the step may be executed again, here, when that is recorded. Otherwise the run
	// cannot go on here.
	again bool
}

func (i *interruption) Error() string { return i.err.Error() }
func (i *interruption) Unwrap() error { return i.err }

// Between two executions of a step that was interrupted pass firstInterruption, doubled each time, up to lastInterruption.
const (
	firstInterruption = 100 * time.Millisecond
	lastInterruption  = 30 * time.Second
	// Where nothing has been executed, it is tried again after askAgain at most.
	askAgain = time.Second
)

// interruptionsError is what a run is stuck with that has been interrupted too often.
type interruptionsError struct {
	step   string
	number int
	err    error // the database's words
}

func (e *interruptionsError) Error() string {
	return fmt.Sprintf("the database has refused what step %q had done %d times, so it is not executed again: %v; mend that, then call Engine.Retry", e.step, e.number, e.err)
}

func (e *interruptionsError) Unwrap() error     { return e.err }
func (e *interruptionsError) ErrorType() string { return ErrInterrupted.Type }

// ErrInterrupted is what a run is stuck with of which the database has refused a step more than Config.MaxInterruptions times: errors.Is
// of what Result returns, or of RunInfo.Err, tells. Engine.Retry lets it go on.
var ErrInterrupted = NewError("interrupted", "the database has refused what a step had done too often")

// interrupt records that a step is executed again, and waits until it is to be. Nothing is executed before that is durable, so
// every execution is counted, and an outage of the database is waited for.
func (r *run) interrupt(ctx context.Context, s step, position int32, cause error) error {
	refused := attemptFailure{failure: describe(cause), Kind: s.kind, Step: s.name, Once: rand.Text()}
	number, err := commit.Await(context.Background(), func(then func(int, error)) {
		r.engine.committer.Interrupt(store.Interrupt{Fence: r.fence(), Position: position, Error: refused.encode()}, then)
	})
	if err != nil {
		return &interruption{err: err}
	}
	r.engine.metrics.interrupted.Add(context.Background(), 1)
	if number > r.engine.config.MaxInterruptions {
		return &interruption{err: &interruptionsError{s.name, number, cause}}
	}
	delay := min(firstInterruption<<min(number-1, 20), lastInterruption)
	r.log().Warn("step interrupted by the database, it will be executed again", "step", s.name, "position", position,
		"interruption", number, "delay", delay, "error", r.engine.told(cause), "sqlstate", refusal.Code(cause),
		"remedy", refusal.Remedy(cause))
	select {
	case <-time.After(delay):
	case <-ctx.Done():
		return fmt.Errorf("interrupted: %w: %w", ctx.Err(), cause)
	case <-r.engine.admission.closed:
		return errDraining
	}
	return nil
}

// asInterruption returns the interruption that err is, or nil.
func asInterruption(err error) *interruption {
	if err == nil {
		return nil
	}
	interrupted, _ := errors.AsType[*interruption](err)
	return interrupted
}

// executeUntilKept executes a step's body once, and again for as long as the database refuses what it has done.
func (r *run) executeUntilKept(ctx context.Context, s step, position int32, attempt int, body stepBody) (attempted, error) {
	for {
		done, err := r.attempt(ctx, s, position, attempt, body)
		interrupted := asInterruption(err)
		if interrupted == nil || !interrupted.again {
			return done, err
		}
		if err := r.interrupt(ctx, s, position, interrupted.err); err != nil {
			return attempted{}, err
		}
	}
}

// insist carries out an operation that changes nothing until the database answers. It returns commit.ErrFenced if the run is lost first.
// It may be called by any goroutine of the run.
func (r *run) insist(operation func(ctx context.Context) error) error {
	ctx := r.lifetime()
	for wait := firstInterruption; ; wait = min(2*wait, askAgain) {
		err := operation(ctx)
		switch {
		case err == nil:
			r.engine.reading.Succeeded(ctx)
			return nil
		case ctx.Err() != nil, errors.Is(err, commit.ErrClosed):
			return commit.ErrFenced
		}
		r.engine.reading.Failed(ctx, err, "run", r.id)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
		}
	}
}
