package bus

import (
	"slices"
	"time"

	"github.com/romancy-go/romancy/internal/refusal"
)

// State is where the connection of a [Listener] is in its life.
type State string

const (
	// StateIdle: not started yet.
	StateIdle State = "idle"
	// StateDisabled: it never connects.
	StateDisabled State = "disabled"
	// StateConnecting: it is making a connection.
	StateConnecting State = "connecting"
	// StateProbing: it is connected, and waits for a notification sent by another connection.
	StateProbing State = "probing"
	// StateListening: that came, LISTEN is committed, notifications arrive.
	StateListening State = "listening"
	// StateDeaf: that did not come, see [ErrDeaf]. It waits before it tries again.
	StateDeaf State = "deaf"
	// StateBackoff: the connection was lost or refused; it waits before it tries again.
	StateBackoff State = "backoff"
	// StateClosed: ended by Close.
	StateClosed State = "closed"
)

// states are all of them, in the order of a life.
var states = []State{
	StateIdle, StateDisabled, StateConnecting, StateProbing, StateListening, StateDeaf, StateBackoff, StateClosed,
}

// Status is a snapshot of a [Listener].
type Status struct {
	State            State
	Since            time.Time     // when State began
	Reconnects       int64         // connections made after the first
	Received         int64         // notifications; probes do not count
	Dropped          int64         // notifications that full queues replaced by a catch-up
	LastError        error         // why the last connection ended or failed ([ErrDeaf] among the reasons); nil if none did
	LastNotification time.Time     // zero if none came yet
	LastProbe        time.Time     // when the last probe arrived; zero if none did yet
	ProbeRoundTrip   time.Duration // of that probe: from the moment another connection sent it
}

// Status returns a snapshot, of a nil listener the zero value.
func (l *Listener) Status() Status {
	if l == nil {
		return Status{}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Healthy reports whether notifications arrive. A nil listener is not healthy.
func (l *Listener) Healthy() bool {
	if l == nil {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status.State == StateListening
}

type observer struct{ call func(State) }

// OnChange has observe called with every state from now on, in order and by one goroutine. It must not block, nor close
// the listener, because the connection waits for it. A call may still be under way when remove returns. A nil listener never changes.
func (l *Listener) OnChange(observe func(State)) (remove func()) {
	if l == nil {
		return func() {}
	}
	o := &observer{call: observe}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.observers = append(slices.Clone(l.observers), o)
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.observers = slices.DeleteFunc(slices.Clone(l.observers), func(other *observer) bool { return other == o })
	}
}

func (l *Listener) setState(state State) {
	l.mu.Lock()
	if l.status.State == state {
		l.mu.Unlock()
		return
	}
	l.status.State, l.status.Since = state, time.Now()
	observers := l.observers // never changed in place
	l.mu.Unlock()
	for _, o := range observers {
		o.call(state)
	}
}

// established notes that notifications arrive from now on.
func (l *Listener) established() {
	l.mu.Lock()
	if l.connected {
		l.status.Reconnects++
	}
	l.connected = true
	l.mu.Unlock()
	l.log.Info("PostgreSQL LISTEN/NOTIFY connection established")
	l.setState(StateListening)
}

// disconnected notes why there is no connection, and reports whether there was one that worked.
func (l *Listener) disconnected(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.listened)
	l.status.LastError = refusal.Public(err) // Connect may be anybody's
	return l.status.State == StateListening
}

// probed notes that a probe arrived.
func (l *Listener) probed(at time.Time, roundTrip time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.status.LastProbe, l.status.ProbeRoundTrip = at, roundTrip
}
