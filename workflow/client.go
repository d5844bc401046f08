package workflow

import (
	"context"
	"errors"
	"fmt"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Run is a started run, or one that existed.
type Run[Out any] struct {
	engine   *Engine
	id       string
	existing bool
}

// ID returns the run's instance id.
func (r *Run[Out]) ID() string { return r.id }

// Existing reports whether the run had been started before.
func (r *Run[Out]) Existing() bool { return r.existing }

// Run returns a handle on the run with this id, whether it exists or not: Result tells.
func (w *Workflow[In, Out]) Run(e *Engine, id string) *Run[Out] {
	return &Run[Out]{engine: e, id: id, existing: true}
}

// Result waits until the run has ended and returns its output, or a *RunError if it did not complete. It is woken by
// notification; while none arrive it looks every second. It returns ErrNotFound for a run that does not exist, ctx's error
// when that ends, ErrClosed when the engine is shut down meanwhile. A run that continues as new is followed. A stuck run gives a *RunError too, although it can be
// resumed. One that was erased gives ErrErased, unless it has continued as new: it is followed.
func (r *Run[Out]) Result(ctx context.Context) (Out, error) {
	var out Out
	if err := r.engine.checkFor(r.id); err != nil {
		return out, fmt.Errorf("result of run %.255q: %w", r.id, err)
	}
	ended, err := r.engine.awaitEnd(ctx, r.id)
	if err != nil {
		return out, fmt.Errorf("result of run %.255q: %w", r.id, r.engine.explained(ctx, err))
	}
	if ended.Erased {
		return out, fmt.Errorf("result of run %.255q, which is %s: %w", ended.ID, ended.Status, ErrErased)
	}
	if status := Status(ended.Status); status != StatusCompleted {
		return out, newRunError(ended)
	}
	if err := decodeValue(ended.Output, &out); err != nil {
		return out, fmt.Errorf("result of run %.255q: decode the output into %T: %w", r.id, out, err)
	}
	return out, nil
}

// awaitEnd waits until the run, or the one that it goes on as, has ended or is stuck.
func (e *Engine) awaitEnd(ctx context.Context, id string) (store.Run, error) {
	for {
		ended, err := e.watch.wait(ctx, id)
		if err != nil || ended.Status != string(StatusContinued) {
			return ended, err
		}
		next := decodeContinued(ended.Output)
		if next == "" {
			return ended, fmt.Errorf("run %q continued as a run that is not known", id)
		}
		id = next
	}
}

func newRunError(ended store.Run) *RunError {
	failed := decodeFailure(ended.Error)
	return &RunError{
		ID: ended.ID, Status: Status(ended.Status), Type: failed.Type, Message: failed.Message,
		Details: failed.Details, Stack: failed.Stack,
		CompensationErrors: failed.CompensationErrors,
	}
}

// outward translates the committer's errors into this package's.
func outward(err error) error {
	switch {
	case errors.Is(err, commit.ErrClosed):
		return ErrClosed
	case errors.Is(err, commit.ErrOutcomeUnknown):
		return fmt.Errorf("%w: %w", ErrOutcomeUnknown, err)
	default:
		return err
	}
}
