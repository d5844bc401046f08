package workflow

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// Now returns the current time, recorded: every execution of the run sees the time of the first.
func Now(ctx *Context) (time.Time, error) {
	return makeValue(ctx, "now", true, func() (time.Time, error) { return time.Now().UTC(), nil })
}

// NewID returns a new unique id, a UUID of version 7, recorded: every execution of the run gets the same.
func NewID(ctx *Context) (string, error) {
	return makeValue(ctx, "new_id", true, func() (string, error) {
		id, err := uuid.NewV7()
		return id.String(), err
	})
}

// SideEffect records what fn returns; later executions get the recorded value, or the recorded failure. fn should be quick and is
// not retried: for anything that can fail use an activity. name must be the same in every execution.
//
// A failure of fn is a *SideEffectError, and so is a panic, an fn that ends its goroutine (runtime.Goexit), a value that cannot be
// encoded and one that is [ErrTooLarge]. If the run is cancelled it returns a *CancelledError. A recorded value that cannot be
// decoded leaves the run stuck, as by Activity.Execute.
//
// fn must not issue commands of its run: the first one, other than Future.Get and All, leaves the run stuck with its history as it
// was.
func SideEffect[T any](ctx *Context, name string, fn func() (T, error)) (value T, err error) {
	return makeValue(ctx, name, false, fn)
}

// makeValue is SideEffect. harmless: fn may be called twice.
func makeValue[T any](ctx *Context, name string, harmless bool, fn func() (T, error)) (value T, err error) {
	if err := checkName("side effect name", name); err != nil {
		return value, err
	}
	before, err := ctx.current().enter(commandSideEffect)
	if err != nil {
		return value, err
	}
	defer ctx.run.complete(before, &err)
	if !harmless {
		ctx.run.settleWake()
	}
	text, err := ctx.run.record(name, func() ([]byte, error) {
		made, err := fn()
		if err != nil {
			return nil, err
		}
		return encodeValue("the value of side effect", name, made)
	})
	if err != nil {
		return value, err
	}
	if err := decodeValue(text, &value); err != nil {
		ctx.run.misfit(ctx.run.journal.Issued(), fmt.Errorf("decode the recorded value of side effect %q into %T: %w", name, value, err))
	}
	return value, nil
}

// SideEffectError is how the failure of a [SideEffect] reaches the workflow. Like an [ActivityError] it is made from what was
// recorded, so it is the same live and replayed: of the error that fn returned its chain has an *Error with type, message and
// details, and context.DeadlineExceeded or ErrTooLarge if that was its cause.
type SideEffectError struct {
	SideEffect string // its name
	Type       string // see [Error.ErrorType]; the Go type of the error if it names none; "panic" for a panic; "goexit" if it ended its goroutine
	Message    string
	Details    json.RawMessage // see [Error.ErrorDetails]
	Stack      string          // of a panic
}

func (e *SideEffectError) Error() string {
	return fmt.Sprintf("side effect %s failed: %s", e.SideEffect, e.Message)
}

// ErrorType returns the type of the error that fn returned.
func (e *SideEffectError) ErrorType() string { return e.Type }

// ErrorDetails returns the details of the error that fn returned.
func (e *SideEffectError) ErrorDetails() json.RawMessage { return e.Details }

func (e *SideEffectError) trace() string { return e.Stack }

// Unwrap returns the *Error that fn's error is recorded as.
func (e *SideEffectError) Unwrap() error { return recordedError(e.Type, e.Message, e.Details) }

// newSideEffectError makes the error of a side effect from its recorded failure, live and replayed alike.
func newSideEffectError(name string, recorded []byte) error {
	failed := decodeFailure(recorded)
	return &SideEffectError{
		SideEffect: name, Type: failed.Type, Message: failed.Message, Details: failed.Details, Stack: failed.Stack,
	}
}

// errValueGoexit is the failure of a side effect whose function has called runtime.Goexit.
var errValueGoexit = NewError("goexit", "the function ended its goroutine instead of returning")

// record makes a value once: the first execution calls produce, later ones get what it returned, or that it failed.
func (r *run) record(name string, produce func() ([]byte, error)) ([]byte, error) {
	if r.cancelled == nil {
		if failed := r.unrecordedFailure(name); failed != nil {
			return nil, failed
		}
	}
	position, record, recorded, err := r.issue(journal.SideEffect, name)
	switch {
	case err != nil:
		return nil, err
	case recorded && record.Kind == journal.SideEffectFailed:
		return nil, newSideEffectError(name, record.Payload)
	case recorded:
		return record.Payload, nil
	}
	payload, err := r.produce(position, name, produce)
	switch {
	case r.exiting: // which produce has been told by an error, in a goroutine that is not the run's
		r.exit()
		return nil, err
	case err != nil && r.cancelled != nil: // produce has learnt it, by a Get
		return nil, r.recordCancelled(position)
	case err != nil:
		return nil, newSideEffectError(name, r.recordValueFailure(position, name, err))
	}
	r.settle()
	r.append(position, journal.SideEffect, name, payload)
	return payload, nil
}

// unrecordedFailure returns the failure of a side effect that a former version of the engine did not record. What it recorded next
// is that the workflow failed: at the same position after an error, at the one after it after a panic.
func (r *run) unrecordedFailure(name string) error {
	past, more := r.journal.Next()
	if !more || past.Kind != journal.Failing || past.Position > r.journal.Issued()+2 {
		return nil
	}
	if past.Position == r.journal.Issued()+2 {
		if _, _, _, err := r.journal.Launch(journal.SideEffect, name); err != nil {
			r.stuck(err)
		}
	}
	return newSideEffectError(name, past.Payload)
}

func (r *run) recordValueFailure(position int32, name string, err error) []byte {
	failed := describe(err).encode()
	r.settle()
	r.append(position, journal.SideEffectFailed, name, failed)
	return failed
}

// produce calls the workflow's function for a value and turns its panic into an error. If the function ends the goroutine, which
// nothing can stop, the failure is recorded while it unwinds, and the run is executed again from history.
func (r *run) produce(position int32, name string, fn func() ([]byte, error)) (payload []byte, err error) {
	returned := false
	r.producing = true
	r.turn.current.Store(uint32(producingValue))
	defer func() {
		r.producing = false
		r.turn.current.Store(uint32(commandSideEffect))
		if value := recover(); value != nil {
			err = newPanicError("", value)
			return
		}
		if !returned && !r.exiting {
			if !r.lost.Load() {
				r.recordValueFailure(position, name, errValueGoexit)
			}
			r.depart()
		}
	}()
	payload, err = fn()
	returned = true
	return payload, checked(err)
}
