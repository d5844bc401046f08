package workflow

import (
	"time"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Sleep waits for d from the call, durably: the deadline is stored, by the database's clock, and survives the worker.
// A d of zero or less ends it at once, and still takes its place in history. It returns a *CancelledError if the run
// is cancelled, and no other error.
func Sleep(ctx *Context, d time.Duration) (err error) {
	before, err := ctx.current().enter(commandSleep)
	if err != nil {
		return err
	}
	defer ctx.run.complete(before, &err)
	return ctx.run.sleep("sleep", until{delay: d, relative: true})
}

// SleepUntil waits until t by the database's clock. A t in the past ends it at once, and still takes its place in
// history. What lies beyond the years 1 to 9999 counts as their beginning or end, 9999-12-31T23:59:59Z. Its error is
// that of Sleep.
func SleepUntil(ctx *Context, t time.Time) (err error) {
	before, err := ctx.current().enter(commandSleep)
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

func (d until) fill(ask *store.Wait) {
	if d.relative {
		micros := max(d.delay, 0).Microseconds()
		ask.DelayMicros, ask.Asked = &micros, time.Now()
		return
	}
	micros := bounds.Instant(d.at).UnixMicro()
	ask.AtMicros = &micros
}

// within returns the end of a wait on kind that lasts for timeout at most; nil: it has none. A build before a timeout
// of zero or less ended a wait at once has recorded what such a wait brought without a deadline before it.
func (r *run) within(timeout *time.Duration, kind journal.Kind) *until {
	if timeout == nil {
		return nil
	}
	if next, ok := r.journal.Next(); ok && *timeout <= 0 && next.Kind == kind && next.Position == r.journal.Issued()+1 {
		return nil
	}
	return &until{relative: true, delay: *timeout}
}

// timerRecord is the payload of a timer's row in history.
type timerRecord struct {
	FiresAtMicros int64 `json:"fires_at_us"`
}
