package workflow

import "time"

// Sleep waits for d from the call, durably: the deadline is stored, by the database's clock, and survives the worker. A d of zero or
// less still takes its place in history. It returns a *CancelledError if the run is cancelled, and no other error.
func Sleep(ctx *Context, d time.Duration) (err error) {
	before, err := ctx.run.enter(commandSleep)
	if err != nil {
		return err
	}
	defer ctx.run.complete(before, &err)
	return ctx.run.sleep("sleep", until{delay: d, relative: true})
}

// SleepUntil waits until t by the database's clock. A t in the past still takes its place in history. Its error is that of Sleep.
func SleepUntil(ctx *Context, t time.Time) (err error) {
	before, err := ctx.run.enter(commandSleep)
	if err != nil {
		return err
	}
	defer ctx.run.complete(before, &err)
	return ctx.run.sleep("sleep_until", until{at: t})
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
