package workflow

import (
	"fmt"
	"time"

	"github.com/google/uuid"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// Sleep waits for d from the call, durably: the deadline is stored, by the database's clock, and survives the worker. A d of zero or
// less still takes its place in history. It returns a *CancelledError if the run is cancelled, and no other error.
func Sleep(ctx *Context, d time.Duration) error {
	return ctx.run.sleep("sleep", until{delay: d, relative: true})
}

// SleepUntil waits until t by the database's clock. A t in the past still takes its place in history. Its error is that of Sleep.
func SleepUntil(ctx *Context, t time.Time) error {
	return ctx.run.sleep("sleep_until", until{at: t})
}

// Now returns the current time, recorded: every execution of the run sees the time of the first.
func Now(ctx *Context) (time.Time, error) {
	return SideEffect(ctx, "now", func() (time.Time, error) { return time.Now().UTC(), nil })
}

// NewID returns a new unique id, a UUID of version 7, recorded: every execution of the run gets the same.
func NewID(ctx *Context) (string, error) {
	return SideEffect(ctx, "new_id", func() (string, error) {
		id, err := uuid.NewV7()
		return id.String(), err
	})
}

// SideEffect records what fn returns; later executions get the recorded value. fn should be quick and is not retried: for
// anything that can fail use an activity. name must be the same in every execution. An error of fn is not recorded, nor is [ErrTooLarge]: return it.
// A recorded value that cannot be decoded leaves the run stuck, as by Activity.Execute.
func SideEffect[T any](ctx *Context, name string, fn func() (T, error)) (T, error) {
	var value T
	if err := checkName("side effect name", name); err != nil {
		return value, err
	}
	text, err := ctx.run.record(journal.SideEffect, name, func() ([]byte, error) {
		made, err := fn()
		if err != nil {
			return nil, err
		}
		return encodeJSON("the value of side effect", name, made)
	})
	if err != nil {
		return value, err
	}
	if err := decodeValue(text, &value); err != nil {
		ctx.run.misfit(ctx.run.journal.Issued(), fmt.Errorf("decode the recorded value of side effect %q into %T: %w", name, value, err))
	}
	return value, nil
}

// until is a moment by the database's clock: after a delay from when the run comes to it, or absolute.
type until struct {
	relative bool
	delay    time.Duration
	at       time.Time
}

// timerRecord is the payload of a timer's row in history.
type timerRecord struct {
	FiresAtMicros int64 `json:"fires_at_us"`
}
