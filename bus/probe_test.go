package bus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// record keeps the states that l goes through from now on.
func record(l *Listener) (seen func() []State) {
	var mu sync.Mutex
	var states []State
	l.OnChange(func(state State) {
		mu.Lock()
		defer mu.Unlock()
		states = append(states, state)
	})
	return func() []State {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(states)
	}
}

// makeListener returns a listener that is not started, and is closed when the test ends.
func makeListener(t testing.TB, cfg ListenerConfig) *Listener {
	t.Helper()
	l, err := NewListener(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(within(t)); err != nil {
			t.Error(err)
		}
	})
	return l
}

func start(t testing.TB, l *Listener) {
	t.Helper()
	if err := l.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// connector connects to url, and counts.
func connector(t testing.TB, url string, mod ...func(*pgx.ConnConfig)) (connect func(context.Context) (*pgx.Conn, error), made *atomic.Int64) {
	t.Helper()
	cfg, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range mod {
		change(cfg)
	}
	made = new(atomic.Int64)
	return func(ctx context.Context) (*pgx.Conn, error) {
		made.Add(1)
		return pgx.ConnectConfig(ctx, cfg)
	}, made
}

func TestListenerIsHealthyOnceAnotherConnectionWasHeard(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := makeListener(t, ListenerConfig{Pool: pool, Logger: (&logbook{}).logger()})
	states := record(l)
	start(t, l)
	eventually(t, "it listens", l.Healthy)
	if got, want := states(), []State{StateConnecting, StateProbing, StateListening}; !slices.Equal(got, want) {
		t.Errorf("it went through %v, want %v", got, want)
	}
	status := l.Status()
	if status.ProbeRoundTrip <= 0 || status.LastProbe.IsZero() || status.Received != 0 || !status.LastNotification.IsZero() {
		t.Errorf("status: %+v", status)
	}
}

func TestListenerBehindPgBouncer(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	direct := pgtest.Connect(t, url)
	inSession, inTransaction := pgtest.PgBouncer(t, url, "session"), pgtest.PgBouncer(t, url, "transaction")
	modest := func(c *pgxpool.Config) { c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec }

	t.Run("in session mode hears", func(t *testing.T) {
		t.Parallel()
		l := startListener(t, pgtest.Connect(t, inSession, modest))
		s := subscribe(t, l, 0, "pooled")
		notify(t, direct, "pooled", "x")
		if n := next(t, s); n.Payload != "x" {
			t.Errorf("got %+v", n)
		}
	})

	t.Run("in transaction mode is deaf, and says so once", func(t *testing.T) {
		t.Parallel()
		var book logbook
		pool := pgtest.Connect(t, pgtest.PgBouncer(t, url, "transaction"), modest)
		l := makeListener(t, ListenerConfig{Pool: pool, Logger: book.logger()})
		l.deaf.first = 10 * time.Millisecond
		states := record(l)
		start(t, l)
		eventually(t, "it was found deaf twice", func() bool {
			count := 0
			for _, state := range states() {
				if state == StateDeaf {
					count++
				}
			}
			return count == 2
		})
		if slices.Contains(states(), StateListening) || slices.Contains(states(), StateBackoff) {
			t.Errorf("it went through %v", states())
		}
		if err := l.Status().LastError; !errors.Is(err, ErrDeaf) {
			t.Errorf("last error: %v", err)
		}
		if book.count("level=WARN") != 1 || book.count("is deaf") != 1 || book.count("WithListenURL") != 1 || book.count("established") != 0 {
			t.Errorf("it logged:\n%s", book.String())
		}
		if err := l.Close(within(t)); err != nil {
			t.Fatal(err)
		}
		wantNoneListens(t, pool)
	})

	t.Run("in transaction mode hears around it", func(t *testing.T) {
		t.Parallel()
		pool := pgtest.Connect(t, inTransaction, modest)
		around, _ := connector(t, url)
		for name, l := range map[string]*Listener{
			"ListenURL": startListener(t, pool, func(c *ListenerConfig) { c.ListenURL = url + "&pool_max_conns=3" }),
			"Connect":   startListener(t, pool, func(c *ListenerConfig) { c.Connect = around }),
			"no pool":   startListener(t, nil, func(c *ListenerConfig) { c.ListenURL = url }),
		} {
			s := subscribe(t, l, 0, "around")
			notify(t, pool, "around", "x")
			if n := next(t, s); n.Payload != "x" {
				t.Errorf("%s: got %+v", name, n)
			}
		}
	})
}

// wantNoneListens checks the connections that a pooler keeps, as far as it lends them out at once.
func wantNoneListens(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for range 4 {
		tx, err := pool.Begin(within(t)) // holds its server connection
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(within(t)) }()
		var channels []string
		if err := tx.QueryRow(within(t), "select coalesce(array_agg(c), '{}') from pg_listening_channels() as c").Scan(&channels); err != nil {
			t.Fatal(err)
		}
		if len(channels) > 0 {
			t.Errorf("a pooled connection listens to %v", channels)
		}
	}
}

func TestListenerHearsThoughThePoolIsUsedUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 1 })
	conn, err := pool.Acquire(within(t)) // the only one
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	l := makeListener(t, ListenerConfig{Pool: pool, ProbeInterval: 10 * time.Millisecond, Logger: (&logbook{}).logger()})
	states := record(l)
	start(t, l)
	eventually(t, "it listens", l.Healthy)
	first := l.Status().LastProbe
	eventually(t, "another probe has come", func() bool { return l.Status().LastProbe.After(first) })
	if got, want := states(), []State{StateConnecting, StateProbing, StateListening}; !slices.Equal(got, want) {
		t.Errorf("it went through %v, want %v", got, want)
	}
}

func TestProbeThatCannotBeSentSaysNothingAboutHearing(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	connect, _ := connector(t, url)
	full := errors.New("too many clients")

	t.Run("before anything was heard it is tried again", func(t *testing.T) {
		t.Parallel()
		var turn, hopeless atomic.Int64
		hopeless.Store(1)
		l := makeListener(t, ListenerConfig{ReconnectDelay: time.Millisecond, Logger: (&logbook{}).logger(), Connect: func(ctx context.Context) (*pgx.Conn, error) {
			if turn.Add(1)%2 == 0 && hopeless.Load() == 1 { // each second connection is for the probe
				return nil, full
			}
			return connect(ctx)
		}})
		states := record(l)
		start(t, l)
		eventually(t, "several attempts failed", func() bool { return turn.Load() > 6 })
		if got := states(); slices.Contains(got, StateDeaf) || slices.Contains(got, StateListening) || !slices.Contains(got, StateProbing) {
			t.Errorf("it went through %v", got)
		}
		if err := l.Status().LastError; !errors.Is(err, full) || !strings.Contains(err.Error(), "cannot find out") {
			t.Errorf("last error: %v", err)
		}
		hopeless.Store(0)
		eventually(t, "it listens", l.Healthy)
	})

	t.Run("afterwards the connection is kept", func(t *testing.T) {
		t.Parallel()
		var made, refused atomic.Int64
		var book logbook
		l := makeListener(t, ListenerConfig{ProbeInterval: 10 * time.Millisecond, Logger: book.logger(), Connect: func(ctx context.Context) (*pgx.Conn, error) {
			if made.Add(1) > 2 {
				refused.Add(1)
				return nil, full
			}
			return connect(ctx)
		}})
		states := record(l)
		start(t, l)
		eventually(t, "several probes could not be sent", func() bool { return refused.Load() > 3 })
		if got, want := states(), []State{StateConnecting, StateProbing, StateListening}; !slices.Equal(got, want) {
			t.Errorf("it went through %v, want %v", got, want)
		}
		if book.count("cannot find out") != 1 {
			t.Errorf("it logged:\n%s", book.String())
		}
	})
}

// After a failover, say, the pool may talk to one server and the listener to another, each connection in perfect health.
func TestListenerNoticesThatItListensToAnotherDatabase(t *testing.T) {
	t.Parallel()
	url, elsewhere := pgtest.URL(t), pgtest.URL(t)
	other, err := pgx.ParseConfig(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	var moved atomic.Bool
	pool := pgtest.Connect(t, url, func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
			if moved.Load() {
				cfg.Database = other.Database
			}
			return nil
		}
	})
	var book logbook
	l := makeListener(t, ListenerConfig{Pool: pool, ListenURL: url, ProbeInterval: 10 * time.Millisecond, Logger: book.logger()})
	l.deaf.first = 10 * time.Millisecond
	states := record(l)
	start(t, l)
	s := subscribe(t, l, 0, "moved")
	moved.Store(true)
	pool.Reset()
	eventually(t, "it is deaf", func() bool { return slices.Contains(states(), StateDeaf) })
	moved.Store(false)
	pool.Reset()
	if n := next(t, s); !n.CatchUp {
		t.Errorf("got %+v, want a catch-up", n)
	}
	if !l.Healthy() || book.count("is deaf") != 1 || book.count("connection lost") != 0 || book.count("established") != 2 {
		t.Errorf("status %+v, log:\n%s", l.Status(), book.String())
	}
}

func TestNotificationsTakeThePlaceOfProbes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const interval = time.Second
	l := startListener(t, pool, func(c *ListenerConfig) { c.ProbeInterval = interval })
	s := subscribe(t, l, 0, "busy")
	probed := l.Status().LastProbe
	last, gap := probed, time.Duration(0)
	for began := time.Now(); time.Since(began) < 2*interval; {
		notify(t, pool, "busy", "x")
		n := next(t, s)
		gap, last = max(gap, n.Received.Sub(last)), n.Received
	}
	if now := l.Status().LastProbe; !now.Equal(probed) && gap < interval {
		t.Errorf("a probe was sent although notifications came every %s at least", gap)
	}
	eventually(t, "silence is probed", func() bool { return l.Status().LastProbe.After(probed) })
}

func TestAnIdleConnectionIsAskedAtMostOncePerSilenceLimit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct{ silence, probes time.Duration }{
		"by pings":  {silence: 50 * time.Millisecond, probes: time.Hour},
		"by probes": {silence: time.Hour, probes: 20 * time.Millisecond},
		"by both":   {silence: 50 * time.Millisecond, probes: 70 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.URL(t)
			var trips *pgtest.RoundTrips
			connect, _ := connector(t, url, func(c *pgx.ConnConfig) { trips = pgtest.CountRoundTrips(&c.Config) })
			l := startListener(t, pgtest.Connect(t, url), func(c *ListenerConfig) {
				c.Connect = connect
				c.SilenceLimit, c.ProbeInterval = test.silence, test.probes
			})
			subscribe(t, l, 0, "idle")
			before, began, probed := trips.Count(), time.Now(), l.Status().LastProbe
			const pings = 8
			eventually(t, "it was idle for a while", func() bool {
				return time.Since(began) > pings*50*time.Millisecond && (test.probes == time.Hour || l.Status().LastProbe.After(probed)) &&
					(test.silence == time.Hour || trips.Count() > before+pings/2)
			})
			asked := trips.Count() - before
			if limit := int64(time.Since(began)/test.silence) + 1; asked > limit {
				t.Errorf("asked %d times, want %d at most", asked, limit)
			}
			if status := l.Status(); status.State != StateListening || status.Reconnects != 0 {
				t.Errorf("status: %+v", status)
			}
		})
	}
}

func TestAProbeThatArrivedMakesAPingNeedless(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	var trips *pgtest.RoundTrips
	connect, _ := connector(t, url, func(c *pgx.ConnConfig) { trips = pgtest.CountRoundTrips(&c.Config) })
	const silence = 500 * time.Millisecond
	l := startListener(t, pgtest.Connect(t, url), func(c *ListenerConfig) {
		c.Connect = connect
		c.SilenceLimit, c.ProbeInterval = silence, 10*time.Millisecond
	})
	subscribe(t, l, 0, "idle")
	before, began := trips.Count(), time.Now()
	last, gap := began, time.Duration(0)
	eventually(t, "several limits have passed", func() bool {
		if probe := l.Status().LastProbe; probe.After(last) {
			gap, last = max(gap, probe.Sub(last)), probe
		}
		return time.Since(began) > 3*silence
	})
	gap = max(gap, time.Since(last))
	if asked := trips.Count() - before; asked > 0 && gap < silence {
		t.Errorf("asked %d times although a probe arrived every %s at least", asked, gap)
	}
}

// Both fall due at the same moment, again and again. A ping would take the worth of the echo that comes with its answer.
func TestAProbeThatLeavesIsNotRacedByAPing(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	var trips *pgtest.RoundTrips
	connect, _ := connector(t, url, func(c *pgx.ConnConfig) { trips = pgtest.CountRoundTrips(&c.Config) })
	const interval, onItsWay, probes = 20 * time.Millisecond, 40 * time.Millisecond, 10
	slow := pgtest.Connect(t, url, func(c *pgxpool.Config) {
		c.PrepareConn = func(context.Context, *pgx.Conn) (bool, error) {
			time.Sleep(onItsWay)
			return true, nil
		}
	})
	l := startListener(t, slow, func(c *ListenerConfig) {
		c.Connect = connect
		c.SilenceLimit, c.ProbeInterval = interval, interval
	})
	before, last, gap := trips.Count(), l.Status().LastProbe, time.Duration(0)
	arrived := 0
	eventually(t, "several probes have arrived", func() bool {
		if probe := l.Status().LastProbe; probe.After(last) {
			gap, last = max(gap, probe.Sub(last)), probe
			arrived++
		}
		return arrived >= probes
	})
	if asked := trips.Count() - before; asked > 0 && gap < echoPatience {
		t.Errorf("asked %d times although every probe arrived within %s", asked, gap)
	}
}

func TestAConnectionWhoseHandlerTakesTheNotificationsIsDeaf(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	connect, _ := connector(t, url, func(c *pgx.ConnConfig) { c.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) {} })
	l := startListener(t, pgtest.Connect(t, url), func(c *ListenerConfig) { c.Connect = connect })
	eventually(t, "it is deaf", func() bool { return l.Status().State == StateDeaf })
}
