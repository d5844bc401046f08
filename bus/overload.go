package bus

import "time"

const (
	// overloadLasts is for how long after an overflow its receiver rests half of the time.
	overloadLasts = time.Second
	// overloadWindow is divided into work and rest. All receivers rest at the same time: that is when this process
	// has time for everything else.
	overloadWindow = 4 * time.Millisecond
)

// overload keeps a receiver, of which more is asked than it gets through, to half of its time. What it takes is
// anybody's to send, and the rest is replaced by catch-ups anyway; with goroutines that never wait on every core, Go
// looks once in ten milliseconds only whether the database has answered anybody else.
type overload struct {
	last time.Time // when something was dropped
}

func (o *overload) overflowed(now time.Time) { o.last = now }

// rest returns how long the receiver, which comes for more, is to wait.
func (o *overload) rest(now time.Time) time.Duration {
	if now.Sub(o.last) > overloadLasts {
		return 0
	}
	into := time.Duration(now.UnixNano()) % overloadWindow
	if into < overloadWindow/2 {
		return 0
	}
	return overloadWindow - into
}
