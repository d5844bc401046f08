package riverjobs

import (
	"time"

	"github.com/riverqueue/river"
)

const (
	tickInterval = time.Second

	// termGap is the silence after which a tick counts as the first of a new term as leader.
	termGap = 5 * time.Second
)

// cadence decides at each tick whether a sweep is due. It does nothing else and is used by one goroutine at a time:
// River's enqueuer, which exists on the leader only.
type cadence struct {
	unwell time.Duration // between two sweeps while the listener is not healthy
	well   time.Duration // and while it is

	lastTick time.Time
	lastDue  time.Time // or the start of the term
}

// due reports whether to sweep now. overdue says that a known deadline has come; newTerm whether this process has only
// just become leader.
//
// A term of a healthy leader begins with a pause: notifications have been flowing without it, and a rolling deployment,
// where leaders change every few seconds, is no reason for more sweeps. An unwell one begins with a sweep.
func (c *cadence) due(now time.Time, healthy, overdue bool) (due, newTerm bool) {
	newTerm = c.lastTick.IsZero() || now.Sub(c.lastTick) > termGap
	c.lastTick = now
	if newTerm {
		c.lastDue = now
	}
	interval := c.unwell
	if healthy {
		interval = c.well
	}
	// River ticks up to 100 ms early, and a tick that comes a little early must not wait for the next.
	passed := now.Sub(c.lastDue) >= interval-tickInterval/5
	if !overdue && !passed && (!newTerm || healthy) {
		return false, newTerm
	}
	c.lastDue = now
	return true, newTerm
}

// constructor returns the function River calls on the leader at each tick, under a lock of its own: it never blocks,
// never panics, touches only memory, and returns nil, which writes nothing, unless the sweep is due.
func (j *Jobs) constructor(kind sweepKind, sweep *Sweep) river.PeriodicJobConstructor {
	var (
		pace    = cadence{unwell: sweep.Interval, well: sweep.HealthyInterval}
		lookout = j.lookouts[kind.name]
		args    = kind.args(j.config.Schema)
	)
	return func() (jobArgs river.JobArgs, opts *river.InsertOpts) {
		defer func() {
			// Healthy is the caller's code. Its panic would end River's enqueuer, and with it the host's periodic jobs.
			if recover() != nil {
				jobArgs, opts = nil, nil
			}
		}()
		now := time.Now()
		j.lastTick.Store(now.UnixNano())
		due, newTerm := pace.due(now, j.config.Healthy(), lookout.takeOverdue())
		if newTerm {
			lookout.lookAgain()
		}
		if !due {
			return nil, nil
		}
		return args, insertOpts()
	}
}
