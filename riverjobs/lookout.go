package riverjobs

import (
	"cmp"
	"context"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/romancy-go/romancy/internal/outage"
)

const (
	// ownerGrace is how long a deadline may have passed before it counts as forgotten. The worker that has a timer in
	// memory fires it within milliseconds; only what nobody fires is worth a sweep.
	ownerGrace = 250 * time.Millisecond

	// sameDeadline is how far apart two readings of one deadline may be.
	sameDeadline = 100 * time.Millisecond

	lookTimeout = 5 * time.Second
	noDeadline  = math.MaxInt64
)

type lookoutConfig struct {
	next    func(ctx context.Context) (time.Time, bool, error)
	clock   func(ctx context.Context) (time.Time, error)
	leading func() bool
	healthy func() bool
	spacing time.Duration // at least between two looks
	every   time.Duration // at most between two looks
	logger  *slog.Logger
}

// lookout knows the earliest deadline of a sweep and tells the tick when it has passed unserved. It asks the database
// only on the leader and while the listener is healthy: an unwell leader sweeps every interval anyway.
//
// Deadlines are kept as nanoseconds since epoch on this process's monotonic clock. Announced ones are the database's and
// translated with its time at epoch, so the setting of neither clock matters.
type lookout struct {
	lookoutConfig
	epoch time.Time

	overdue       atomic.Bool   // for the tick: a deadline has passed
	earliest      atomic.Int64  // the earliest deadline known, in nanoseconds since epoch
	databaseEpoch atomic.Int64  // epoch on the database's clock, in Unix microseconds
	renew         atomic.Bool   // look even if no deadline has come
	wake          chan struct{} // capacity 1

	// Owned by run.
	outage   *outage.Reporter
	lastLook time.Time
	stuck    time.Time     // the deadline that was overdue at the last look
	pause    time.Duration // before the look that renew asks for
}

func newLookout(config lookoutConfig) *lookout {
	l := &lookout{lookoutConfig: config, epoch: time.Now(), wake: make(chan struct{}, 1)}
	l.outage = outage.New(config.logger, "the earliest deadline cannot be read, trying again", "the earliest deadline can be read again")
	l.earliest.Store(noDeadline)
	l.databaseEpoch.Store(l.epoch.UnixMicro()) // until the first look has asked
	return l
}

// takeOverdue reports, once, that a deadline has passed. A nil lookout knows of none.
func (l *lookout) takeOverdue() bool { return l != nil && l.overdue.Swap(false) }

// lookAgain asks for a look as soon as the spacing allows. It never blocks.
func (l *lookout) lookAgain() {
	if l == nil {
		return
	}
	l.renew.Store(true)
	l.signal()
}

// announce takes note of a deadline on the database's clock. It never blocks.
func (l *lookout) announce(at time.Time) {
	l.lower(at.Sub(time.UnixMicro(l.databaseEpoch.Load()))) // up to 292 years: what is later is as good as never
}

func (l *lookout) lower(sinceEpoch time.Duration) {
	for {
		known := l.earliest.Load()
		if int64(sinceEpoch) >= known {
			return
		}
		if l.earliest.CompareAndSwap(known, int64(sinceEpoch)) {
			l.signal()
			return
		}
	}
}

func (l *lookout) signal() {
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run looks whenever it is time to, until ctx ends.
func (l *lookout) run(ctx context.Context) {
	timer := time.NewTimer(l.every)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-timer.C:
		}
		timer.Reset(l.step(ctx))
	}
}

// step looks if it is time to and returns how long to sleep until the next step, unless woken.
func (l *lookout) step(ctx context.Context) time.Duration {
	switch {
	case !l.leading():
		return l.every // the first tick of the next term wakes it
	case !l.healthy():
		return l.spacing
	}
	if wait := time.Until(l.nextLook()); wait > 0 {
		return wait
	}
	l.lastLook = time.Now()
	l.renew.Store(false)
	l.look(ctx)
	return max(time.Until(l.nextLook()), 0)
}

func (l *lookout) nextLook() time.Time {
	next := l.lastLook.Add(l.every)
	if l.renew.Load() {
		next = l.lastLook.Add(l.pause)
	}
	if nanos := l.earliest.Load(); nanos != noDeadline {
		if at := l.epoch.Add(time.Duration(nanos)).Add(ownerGrace); at.Before(next) {
			next = at
		}
	}
	if soonest := l.lastLook.Add(l.spacing); next.Before(soonest) {
		return soonest
	}
	return next
}

func (l *lookout) look(ctx context.Context) {
	queryCtx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()

	// Forgotten before the question is asked, so that what is announced meanwhile is not lost with the answer.
	l.earliest.Store(noDeadline)
	databaseNow, err := l.clock(queryCtx)
	read := time.Now()
	var at time.Time
	var ok bool
	if err == nil {
		at, ok, err = l.next(queryCtx)
	}
	if err != nil {
		l.pause = min(cmp.Or(2*l.pause, l.spacing), l.every)
		l.renew.Store(true)
		if ctx.Err() == nil {
			l.outage.Failed(ctx, err, slog.Duration("delay", l.pause))
		}
		return
	}
	l.outage.Succeeded(ctx)
	l.databaseEpoch.Store(databaseNow.Add(-read.Sub(l.epoch)).UnixMicro())

	if !ok || time.Since(at) < ownerGrace {
		l.pause, l.stuck = 0, time.Time{}
		if ok {
			l.lower(at.Sub(l.epoch))
		}
		return
	}
	// Overdue: the next tick sweeps, and after that there is a next deadline to learn. One that is still there after its
	// sweep (its workflow is registered nowhere, say) is looked at less and less often.
	if at.Sub(l.stuck).Abs() < sameDeadline {
		l.pause = min(2*l.pause, l.every)
	} else {
		l.pause, l.stuck = 2*l.spacing, at
	}
	l.overdue.Store(true)
	l.renew.Store(true)
}
