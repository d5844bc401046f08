package outbox

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// fruitless is how many looks in a row find nothing before notifications are rationed: whoever may connect can send them.
	fruitless = 8
	// respite is how long notifications have nobody look then. A look takes about a millisecond.
	respite = 10 * time.Millisecond
)

// alarm decides when an idle consumer looks for events: on a wake, when something becomes due, and otherwise every
// interval. It wakes one consumer at a time; that one wakes the next if it sees more than it takes.
type alarm struct {
	interval func() time.Duration
	woken    chan struct{} // one token: somebody should look. A wake while it is there is answered by the same look.
	changed  chan struct{}
	idle     atomic.Int64 // looks in a row that found nothing

	mu     sync.Mutex
	looked time.Time // the last wake
	due    time.Time // zero: nothing known
}

func newAlarm(interval func() time.Duration) *alarm {
	return &alarm{interval: interval, woken: make(chan struct{}, 1), changed: make(chan struct{}, 1), looked: time.Now()}
}

// wake has a consumer look. A look that begins after wake was called sees all that was committed before.
func (a *alarm) wake() {
	a.mu.Lock()
	a.looked = time.Now()
	a.mu.Unlock()
	select {
	case a.woken <- struct{}{}:
	default:
	}
}

// found notes whether a look found anything.
func (a *alarm) found(anything bool) {
	if anything {
		a.idle.Store(0)
		return
	}
	a.idle.Add(1)
}

// rest returns how long the next notifications are worth no look: no time at all while they tell the truth.
func (a *alarm) rest() time.Duration {
	if a.idle.Load() < fruitless {
		return 0
	}
	return respite
}

// wakeAt has a consumer look at the given time, or earlier.
func (a *alarm) wakeAt(at time.Time) {
	a.mu.Lock()
	earlier := a.due.IsZero() || at.Before(a.due)
	if earlier {
		a.due = at
	}
	a.mu.Unlock()
	if earlier {
		a.reconsider()
	}
}

// reconsider has watch compute its next time anew. It never blocks.
func (a *alarm) reconsider() {
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// next returns when to wake, and whether that is now.
func (a *alarm) next(now time.Time) (wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at := a.looked.Add(a.interval())
	if !a.due.IsZero() && a.due.Before(at) {
		at = a.due
	}
	wait = at.Sub(now)
	if wait <= 0 {
		a.due = time.Time{} // the look that follows says what is due next
	}
	return wait
}

func (a *alarm) watch(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-a.changed:
		}
		wait := a.next(time.Now())
		if wait <= 0 {
			a.wake()
			wait = a.next(time.Now())
		}
		timer.Reset(wait)
	}
}
