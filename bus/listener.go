package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// ErrClosed is returned by everything here that was closed.
var ErrClosed = errors.New("closed")

// State is where the connection of a [Listener] is in its life.
type State string

const (
	// StateIdle: not started yet.
	StateIdle State = "idle"
	// StateDisabled: it never connects.
	StateDisabled State = "disabled"
	// StateConnecting: it is making a connection.
	StateConnecting State = "connecting"
	// StateListening: LISTEN is committed, notifications arrive.
	StateListening State = "listening"
	// StateBackoff: the connection was lost or refused; it waits before it tries again.
	StateBackoff State = "backoff"
	// StateClosed: ended by Close.
	StateClosed State = "closed"
)

// ListenerConfig configures a [Listener].
type ListenerConfig struct {
	// Pool gives the configuration of the connection: address, credentials, TLS, BeforeConnect, AfterConnect. None of
	// the pool's connections is used. Required unless Connect is set.
	Pool *pgxpool.Pool

	// Connect makes the connection instead of Pool, for instance to reach the server around a pooler that cannot LISTEN.
	// It must return promptly when ctx ends, and set no OnNotification handler. The listener closes what it returns.
	Connect func(ctx context.Context) (*pgx.Conn, error)

	// ReconnectDelay is the longest wait between two attempts to connect: the first follows at once, then about 100 ms,
	// doubling. Default 60 s.
	ReconnectDelay time.Duration

	// FallbackInterval is how often those who listen look for themselves even though all is well. The listener only
	// logs it. Default 30 s.
	FallbackInterval time.Duration

	// Logger. Default slog.Default().
	Logger *slog.Logger

	// Disabled: never connect. Subscriptions work and stay silent.
	Disabled bool
}

func (c ListenerConfig) withDefaults() ListenerConfig {
	c.ReconnectDelay = cmp.Or(c.ReconnectDelay, 60*time.Second)
	c.FallbackInterval = cmp.Or(c.FallbackInterval, 30*time.Second)
	c.Logger = cmp.Or(c.Logger, slog.Default())
	return c
}

func (c ListenerConfig) validate() error {
	var errs []error
	if c.Pool == nil && c.Connect == nil && !c.Disabled {
		errs = append(errs, errors.New("bus.ListenerConfig.Pool is nil: give the pgx pool whose settings the LISTEN connection uses, or set Connect"))
	}
	errs = append(errs,
		checkDuration("bus.ListenerConfig.ReconnectDelay", c.ReconnectDelay),
		checkDuration("bus.ListenerConfig.FallbackInterval", c.FallbackInterval))
	return errors.Join(errs...)
}

// checkDuration reports a negative duration; zero has been replaced by the default before.
func checkDuration(field string, d time.Duration) error {
	if d < 0 {
		return fmt.Errorf("%s is %s: use a positive duration, or 0 for the default", field, d)
	}
	return nil
}

// Status is a snapshot of a [Listener].
type Status struct {
	State            State
	Since            time.Time // when State began
	Reconnects       int64     // connections made after the first
	Received         int64     // notifications
	Dropped          int64     // notifications that full queues replaced by a catch-up
	LastError        error     // why the last connection ended or failed; nil if none did
	LastNotification time.Time // zero if none came yet
}

// Notification is what a [Subscription] receives.
type Notification struct {
	Channel  string
	Payload  string
	PID      uint32    // the backend that notified; 0 if no notification came (see CatchUp)
	Received time.Time // by this process's clock

	// CatchUp: something may have been missed on Channel. It is set after each successful connect, after a queue
	// overflowed, and on a notification with an empty payload.
	CatchUp bool
}

// Listener owns the one connection that listens, and the goroutine that is alone in using it. It connects again whenever
// the connection ends, and tells every [Subscription] then that something may have been missed.
type Listener struct {
	cfg  ListenerConfig
	log  *slog.Logger
	done chan struct{} // closed when the goroutine has ended

	mu        sync.Mutex
	status    Status
	stop      context.CancelFunc // nil before Start
	closed    bool
	connected bool // there was a connection before
	subs      map[string][]*Subscription
	listened  map[string]bool // LISTEN is committed on the connection there is, and no UNLISTEN under way
	stale     bool            // listened is no longer what the subscriptions ask for
	interrupt func()          // ends the wait on the connection; nil while nobody waits
	observers []*observer
}

type observer struct{ call func(State) }

// NewListener returns a listener that does nothing until Start. All mistakes in cfg are reported together.
func NewListener(cfg ListenerConfig) (*Listener, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	l := &Listener{
		cfg:      cfg,
		log:      cfg.Logger,
		done:     make(chan struct{}),
		status:   Status{State: StateIdle, Since: time.Now()},
		subs:     map[string][]*Subscription{},
		listened: map[string]bool{},
	}
	if cfg.Disabled {
		l.status.State = StateDisabled
	}
	return l, nil
}

// Start begins to connect and returns at once: a server that cannot be reached is waited for in the background. Only
// Close ends it; the end of ctx does not. It returns an error if ctx has ended, if it was started before, and
// [ErrClosed] after Close.
func (l *Listener) Start(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start listener: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.closed:
		return fmt.Errorf("start listener: %w", ErrClosed)
	case l.stop != nil:
		return errors.New("start listener: it was started before")
	}
	ctx, l.stop = context.WithCancel(context.WithoutCancel(ctx))
	if l.cfg.Disabled {
		l.log.Info("PostgreSQL LISTEN/NOTIFY disabled", "fallback_interval", seconds(l.cfg.FallbackInterval))
		close(l.done)
		return nil
	}
	l.log.Info("PostgreSQL LISTEN/NOTIFY configured",
		"fallback_interval", seconds(l.cfg.FallbackInterval), "reconnect_delay", seconds(l.cfg.ReconnectDelay))
	go l.run(ctx)
	return nil
}

// Close ends the listener, whatever it is doing, and all its subscriptions, and waits for its goroutine. It returns an
// error only if ctx ends before that. It may be called more than once, before Start too.
func (l *Listener) Close(ctx context.Context) error {
	l.mu.Lock()
	first, running := !l.closed, l.stop != nil && !l.cfg.Disabled
	l.closed = true
	if first && l.stop == nil {
		close(l.done)
	}
	if l.stop != nil {
		l.stop()
	}
	l.mu.Unlock()
	if first {
		l.endSubscriptions()
		if !running {
			l.setState(StateClosed)
		}
	}
	select {
	case <-l.done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("close listener: its connection has not ended yet: %w", ctx.Err())
	}
}

// Status returns a snapshot.
func (l *Listener) Status() Status {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.status
}

// Healthy reports whether notifications arrive. A nil listener is not healthy.
func (l *Listener) Healthy() bool {
	return l != nil && l.Status().State == StateListening
}

// OnChange has observe called with every state from now on, in order and by one goroutine. It must not block, nor close
// the listener, because the connection waits for it. A call may still be under way when remove returns.
func (l *Listener) OnChange(observe func(State)) (remove func()) {
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

// Subscribe returns a queue for what is notified on channels, any time before Close. It keeps up to buffer notifications;
// 0 means [DefaultQueue]. The channels are listened to as soon as there is a connection, which the subscription's first
// catch-up tells. It returns an error for no channel, for a name that PostgreSQL would refuse and for a negative buffer,
// and [ErrClosed] after Close.
func (l *Listener) Subscribe(buffer int, channels ...string) (*Subscription, error) {
	var errs []error
	if buffer < 0 {
		errs = append(errs, fmt.Errorf("buffer is %d: use a positive number, or 0 for the default", buffer))
	}
	if len(channels) == 0 {
		errs = append(errs, errors.New("no channel: name at least one"))
	}
	for _, channel := range channels {
		errs = append(errs, checkChannel(channel))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	channels = slices.Compact(slices.Sorted(slices.Values(channels)))
	s := newSubscription(l, cmp.Or(buffer, DefaultQueue), channels)

	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil, fmt.Errorf("subscribe: %w", ErrClosed)
	}
	var heard []string
	for _, channel := range channels {
		l.subs[channel] = append(l.subs[channel], s)
		if l.listened[channel] {
			heard = append(heard, channel)
		}
	}
	s.catchUp(heard, len(heard) == len(channels))
	if len(heard) < len(channels) {
		l.resync()
	}
	return s, nil
}

// unsubscribe forgets s and has channels that nobody wants any more dropped.
func (l *Listener) unsubscribe(s *Subscription) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, channel := range s.channels {
		rest := slices.DeleteFunc(l.subs[channel], func(other *Subscription) bool { return other == s })
		l.subs[channel] = rest
		if len(rest) == 0 {
			delete(l.subs, channel)
			l.resync()
		}
	}
}

// resync has the goroutine compare what it listens to with what is asked for. The caller holds mu.
func (l *Listener) resync() {
	l.stale = true
	if l.interrupt != nil {
		l.interrupt()
	}
}

func (l *Listener) endSubscriptions() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, subs := range l.subs {
		for _, s := range subs {
			s.end()
		}
	}
	clear(l.subs)
}

// seconds writes whole seconds as such (60s), where time.Duration would say 1m0s.
func seconds(d time.Duration) string {
	if d%time.Second == 0 {
		return fmt.Sprintf("%ds", d/time.Second)
	}
	return d.String()
}
