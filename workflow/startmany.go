package workflow

import (
	"context"
	"errors"
	"fmt"

	"go.opentelemetry.io/otel/trace"
)

// maxStarting is how many starts of one StartMany are under way at a time.
const maxStarting = 1000

// StartRequest is one of the runs that StartMany starts.
type StartRequest[In any] struct {
	Input   In
	Options []StartOption
}

// StartError says which runs of a StartMany were not started.
type StartError struct {
	// Failed holds the error of each by the index of its request. The others are started.
	Failed map[int]error
	total  int
}

func (e *StartError) Error() string {
	first := e.total
	for index := range e.Failed {
		first = min(first, index)
	}
	return fmt.Sprintf("%d of %d runs were not started, the first of them request %d: %v", len(e.Failed), e.total, first, e.Failed[first])
}

// Unwrap returns the errors of all requests that failed.
func (e *StartError) Unwrap() []error {
	errs := make([]error, 0, len(e.Failed))
	for _, err := range e.Failed {
		errs = append(errs, err)
	}
	return errs
}

// StartMany starts a run for each request, thousands in one call, in few transactions. It returns their handles in the same
// order. Each run is started by itself: if some cannot be, the others are, and the error is a *StartError; the handles of
// those that failed are nil. Called again with the same ids it starts only what is missing.
//
// Mistakes in ids, options and inputs are found before anything is started.
func (w *Workflow[In, Out]) StartMany(ctx context.Context, e *Engine, requests []StartRequest[In]) ([]*Run[Out], error) {
	asks := make([]newStart, len(requests))
	var mistakes []error
	for i, request := range requests {
		var err error
		if asks[i], err = e.newStart(w.name, request.Input, request.Options); err != nil {
			mistakes = append(mistakes, fmt.Errorf("request %d: %w", i, err))
			if errors.Is(err, ErrClosed) || errors.Is(err, ErrNotStarted) {
				break
			}
		}
	}
	if err := errors.Join(mistakes...); err != nil {
		return nil, fmt.Errorf("start %d runs of workflow %q: %w", len(requests), w.name, err)
	}
	runs := make([]*Run[Out], len(requests))
	failed := &StartError{Failed: map[int]error{}, total: len(requests)}
	outcomes := make([]<-chan startOutcome, len(requests))
	spans := make([]trace.Span, len(requests))
	for i, queued := 0, 0; i < len(asks); i++ {
		for ; queued < len(asks) && queued < i+maxStarting; queued++ {
			spans[queued] = e.beginStart(ctx, &asks[queued])
			outcomes[queued] = e.queueStart(ctx, asks[queued])
		}
		existing, err := e.awaitStart(ctx, asks[i], outcomes[i])
		finishStart(spans[i], existing, err)
		if err != nil {
			failed.Failed[i] = err
			continue
		}
		runs[i] = &Run[Out]{engine: e, id: asks[i].ID, existing: existing}
	}
	if len(failed.Failed) > 0 {
		return runs, fmt.Errorf("start workflow %q: %w", w.name, failed)
	}
	return runs, nil
}
