package workflow

import (
	"sync/atomic"
	"time"
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
