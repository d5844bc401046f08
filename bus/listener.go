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
	"go.opentelemetry.io/otel/metric"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/secret"
)

// ErrClosed is returned by everything here that was closed.
var ErrClosed = errors.New("closed")

// errNoListener is what a nil listener answers.
var errNoListener = errors.New("the listener is nil: make one with NewListener, or start the App that you have it from")

// ListenerConfig configures a [Listener]. Durations are 1 ms to 8760 h (a year).
type ListenerConfig struct {
	// Pool gives the configuration of the connection: address, credentials, TLS, BeforeConnect, AfterConnect. None of
	// the pool's connections listens; one is borrowed for a moment whenever a probe is sent. Required unless ListenURL
	// or Connect is set, and worth giving even then: without it each probe makes a connection of its own.
	Pool *pgxpool.Pool

	// ListenURL names the database to listen to instead of Pool, as a URL or keyword/value string: for a pool that
	// goes through a pooler which cannot LISTEN, such as PgBouncer in transaction mode, the server behind it. Where
	// credentials change, set Connect instead. Special characters of its user name and password must be percent-encoded (@ as
	// %40). Nothing prints it: printing and encoding a ListenerConfig shows where it leads. If it asks for weaker TLS than Pool
	// has, Start warns.
	ListenURL string

	// Connect makes the connection instead of Pool and ListenURL. It must return promptly when ctx ends, and set no
	// OnNotification handler. The listener closes what it returns. Without Pool it is called for each probe, too.
	Connect func(ctx context.Context) (*pgx.Conn, error)

	// ReconnectDelay is the longest wait between two attempts to connect: the first follows at once, then about 100 ms,
	// doubling. Default 60 s.
	ReconnectDelay time.Duration

	// ProbeInterval is how long no notification may come before another connection sends one to prove that they still
	// arrive; where others notify all the time it does so every four intervals. One that does not come within 2 s, or 10 s
	// while others do, makes the listener deaf, see [StateDeaf]. Default 15 s.
	ProbeInterval time.Duration

	// SilenceLimit is how long nothing at all may come before the server is asked whether it is still there. It has 2 s
	// to answer, so a connection that died without a word is found at most 5 s after that. Default 5 s.
	SilenceLimit time.Duration

	// FallbackInterval is how often those who listen look for themselves even though all is well. The listener only
	// logs it. Default 30 s.
	FallbackInterval time.Duration

	// Logger. Default slog.Default().
	Logger *slog.Logger

	// MeterProvider makes the metrics romancy.listener.state (by state: 1 or 0), romancy.listener.reconnects,
	// romancy.listener.received, romancy.listener.dropped (notifications that a catch-up replaced) and
	// romancy.listener.probe.duration (seconds). They last from Start to Close. Default otel.GetMeterProvider().
	MeterProvider metric.MeterProvider

	// Disabled: never connect. Subscriptions work and stay silent.
	Disabled bool
}

func (c ListenerConfig) withDefaults() ListenerConfig {
	c.ReconnectDelay = cmp.Or(c.ReconnectDelay, 60*time.Second)
	c.ProbeInterval = cmp.Or(c.ProbeInterval, 15*time.Second)
	c.SilenceLimit = cmp.Or(c.SilenceLimit, 5*time.Second)
	c.FallbackInterval = cmp.Or(c.FallbackInterval, 30*time.Second)
	c.Logger = refusal.Logger(cmp.Or(c.Logger, slog.Default()))
	return c
}

func (c ListenerConfig) validate() error {
	var errs []error
	needed := c.ListenURL == "" && c.Connect == nil && !c.Disabled
	if flaw := dial.Unusable(c.Pool); flaw != "" && (needed || c.Pool != nil) {
		errs = append(errs, fmt.Errorf("bus.ListenerConfig.Pool %s: give the pgx pool whose settings the LISTEN connection uses, or set ListenURL or Connect", flaw))
	}
	if c.ListenURL != "" && c.Connect != nil {
		errs = append(errs, errors.New("bus.ListenerConfig.ListenURL and Connect are both set: give one of them"))
	}
	if _, err := c.listenConfig(); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs,
		checkProvider("bus.ListenerConfig.MeterProvider", c.MeterProvider),
		bounds.Interval("bus.ListenerConfig.ReconnectDelay", c.ReconnectDelay),
		bounds.Interval("bus.ListenerConfig.ProbeInterval", c.ProbeInterval),
		bounds.Interval("bus.ListenerConfig.SilenceLimit", c.SilenceLimit),
		bounds.Interval("bus.ListenerConfig.FallbackInterval", c.FallbackInterval))
	return errors.Join(errs...)
}

// listenConfig returns what ListenURL says, or nil if it says nothing. A pool's settings in it (pool_max_conns and the
// like) mean nothing to one connection.
func (c ListenerConfig) listenConfig() (*pgx.ConnConfig, error) {
	if c.ListenURL == "" {
		return nil, nil //nolint:nilnil // nil is the configuration of no URL
	}
	config, err := secret.Parse(c.ListenURL)
	if err != nil {
		return nil, fmt.Errorf("bus.ListenerConfig.ListenURL: %w: give a URL like postgres://user:password@localhost:5432/dbname", err)
	}
	return config.ConnConfig, nil
}

// checkProvider reports a provider that is a nil pointer. One that is left out is the default.
func checkProvider(field string, provider metric.MeterProvider) error {
	if provider != nil && bounds.Nothing(provider) {
		return fmt.Errorf("%s is a nil %T: give a meter provider, or leave it out for otel.GetMeterProvider()", field, provider)
	}
	return nil
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
	cfg     ListenerConfig
	url     func() *pgx.ConnConfig // what ListenURL says, behind a function because it has the password; nil without
	log     *slog.Logger
	metrics *listenerMetrics
	// Why notifications do not arrive, or cannot be known to.
	unconnected, unhearing, unprobed *outage.Reporter

	retry backoff       // the goroutine's
	deaf  deafBackoff   // the goroutine's
	hints chan struct{} // holds a token after Retry
	done  chan struct{} // closed when the goroutine has ended

	mu        sync.Mutex
	status    Status
	stop      context.CancelFunc // nil before Start
	closed    bool
	connected bool // there was a connection before
	subs      map[string][]*Subscription
	overload  overload        // of any of them
	listened  map[string]bool // LISTEN is committed on the connection there is, and no UNLISTEN under way
	stale     bool            // listened is no longer what the subscriptions ask for
	poked     bool            // there is something to do other than wait
	interrupt func()          // ends the wait on the connection; nil while nobody waits
	observers []*observer
}

// NewListener returns a listener that does nothing until Start. All mistakes in cfg are reported together.
func NewListener(cfg ListenerConfig) (*Listener, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	metrics, err := newListenerMetrics(cfg.MeterProvider)
	if err != nil {
		return nil, fmt.Errorf("bus.ListenerConfig.MeterProvider: %w", err)
	}
	said, err := cfg.listenConfig()
	if err != nil {
		return nil, err
	}
	var url func() *pgx.ConnConfig
	if said != nil {
		url = func() *pgx.ConnConfig { return said }
	}
	cfg.ListenURL = "" // it is in url, where nothing prints it
	l := &Listener{
		cfg:     cfg,
		url:     url,
		log:     cfg.Logger,
		metrics: metrics,

		unconnected: outage.New(cfg.Logger, "PostgreSQL LISTEN/NOTIFY connection failed, retrying", ""),
		unhearing:   outage.New(cfg.Logger, "PostgreSQL LISTEN/NOTIFY is deaf, polling instead", ""),
		unprobed: outage.New(cfg.Logger, "cannot find out whether LISTEN/NOTIFY still works, trying again",
			"LISTEN/NOTIFY is known to work again"),

		retry:    backoff{limit: cfg.ReconnectDelay},
		deaf:     deafBackoff{first: 10 * time.Second, limit: 5 * time.Minute},
		hints:    make(chan struct{}, 1),
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
	if l == nil {
		return fmt.Errorf("start listener: %w", errNoListener)
	}
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
	} else {
		l.log.Info("PostgreSQL LISTEN/NOTIFY configured",
			"fallback_interval", seconds(l.cfg.FallbackInterval), "reconnect_delay", seconds(l.cfg.ReconnectDelay))
	}
	l.warnOfTLS(ctx)
	go l.run(ctx)
	return nil
}

// Close ends the listener, whatever it is doing, and all its subscriptions, and waits for its goroutine. It returns an
// error only if ctx ends before that. It may be called more than once, before Start too, and on a nil listener.
func (l *Listener) Close(ctx context.Context) error {
	if l == nil {
		return nil
	}
	l.mu.Lock()
	first, running := !l.closed, l.stop != nil
	l.closed = true
	switch {
	case running:
		l.stop()
	case first:
		close(l.done)
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

// Retry says that the database has just answered somebody else in this process: a listener that waits before it connects
// again does so at once, though not within 100 ms of its last attempt, and less often if that has failed before. While
// notifications arrive it does nothing. It never blocks, and a nil listener may be told as well.
func (l *Listener) Retry() {
	if l == nil || l.Healthy() {
		return
	}
	select {
	case l.hints <- struct{}{}:
	default:
	}
}

// Subscribe returns a queue for what is notified on channels, any time before Close. It keeps up to buffer
// notifications, fewer if their payloads have a KiB or more, see [DefaultQueue], which is what 0 means. The channels
// are listened to as soon as there is a connection, which the subscription's first catch-up tells. It returns an error
// for no channel, for a name that PostgreSQL would refuse, for a buffer that is negative or above 1,000,000 and on a
// nil listener, and [ErrClosed] after Close.
func (l *Listener) Subscribe(buffer int, channels ...string) (*Subscription, error) {
	var errs []error
	if l == nil {
		errs = append(errs, errNoListener)
	}
	errs = append(errs, bounds.Number("the buffer", buffer, 0, bounds.Most, ", where 0 is the default"))
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
