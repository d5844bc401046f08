package workflow

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/romancy-go/romancy/internal/clamp"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// databaseClock knows the database's time from what heartbeats have said, to within half of the fastest one's round trip. It
// is for metrics alone: whatever decides something asks the database. The clock of this machine may be set as it likes.
type databaseClock struct {
	readings [8]reading // the last ones, in a ring; the lease keeper's
	count    int
	best     atomic.Pointer[reading]
}

// reading says that it was micros since 1970 at some moment between asked and answered.
type reading struct {
	micros          int64
	asked, answered time.Time
}

func (r *reading) uncertainty() time.Duration { return r.answered.Sub(r.asked) }

// read takes note of an answer. It is called by one goroutine at a time.
func (c *databaseClock) read(micros int64, asked, answered time.Time) {
	c.readings[c.count%len(c.readings)] = reading{micros, asked, answered}
	c.count++
	best := c.readings[0]
	for _, other := range c.readings[:min(c.count, len(c.readings))] {
		if other.uncertainty() < best.uncertainty() {
			best = other
		}
	}
	c.best.Store(&best)
}

// at returns what the database's clock said at a moment of this process. ok is false while it has said nothing.
func (c *databaseClock) at(moment time.Time) (then time.Time, ok bool) {
	best := c.best.Load()
	if best == nil {
		return time.Time{}, false
	}
	between := best.asked.Add(best.uncertainty() / 2)
	return time.UnixMicro(best.micros).Add(moment.Sub(between)), true
}

// clockWindow is for how long an answer of the database counts at least, and half as long as it counts at most: two clocks
// drift apart by less than a millisecond in that time.
const clockWindow = 30 * time.Second

// dueClock tells when, by this process's monotonic clock, the database's clock shows a certain time. An answer that
// says what time it is there has been under way for a while, with a commit for the time of a flush; the one that was
// quickest of late comes closest to the truth, and none is too early.
type dueClock struct {
	base time.Time // what follows counts from here

	mu           sync.Mutex
	origin       int64         // the first time that the database's clock showed: what follows counts from there
	began        time.Time     // of the present window
	lag, earlier time.Duration // the least time by which this process's clock is behind the database's, in this window and the one before
}

func newDueClock(now time.Time) *dueClock { return &dueClock{base: now} }

// observe takes note that the database's clock showed micros, since 1970, at some time before at.
func (c *dueClock) observe(micros int64, at time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.began.IsZero() {
		c.origin = micros
	}
	lag := at.Sub(c.base) - clamp.Micros(micros-c.origin)
	switch age := at.Sub(c.began); {
	case c.began.IsZero() || age >= 2*clockWindow:
		c.began, c.lag, c.earlier = at, lag, lag
	case age >= clockWindow:
		c.began, c.lag, c.earlier = at, lag, c.lag
	default:
		c.lag = min(c.lag, lag)
	}
}

// when returns the time at which the database's clock shows micros. Something must have been observed before.
func (c *dueClock) when(micros int64) time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.base.Add(min(c.lag, c.earlier)).Add(clamp.Micros(micros - c.origin))
}

// readClock is told by the lease keeper what time it is.
func (e *Engine) readClock(micros int64, asked, answered time.Time) {
	e.metrics.clock.read(micros, asked, answered)
	e.clock.observe(micros, answered)
}

// observeClock takes note of the database's time in an answer.
func (e *Engine) observeClock(waited store.Waited) {
	if waited.NowMicros != 0 {
		e.clock.observe(waited.NowMicros, waited.Answered)
	}
}

// due returns the deadline in an answer that has one, by this process's clock.
func (e *Engine) due(waited store.Waited) time.Time {
	if waited.NowMicros == 0 {
		return time.Now().Add(clamp.Micros(*waited.RemainingMicros))
	}
	e.observeClock(waited)
	return e.clock.when(clamp.Sum(waited.NowMicros, *waited.RemainingMicros))
}
