package bus

import (
	"context"
	"errors"
	"fmt"
	"regexp"
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

func TestListenerDeliversWhatIsNotified(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	s := subscribe(t, l, 0, "Orders \"x\"", "other")
	before := time.Now()
	notify(t, pool, "Orders \"x\"", "42")
	n := next(t, s)
	if n.Channel != "Orders \"x\"" || n.Payload != "42" || n.CatchUp || n.PID == 0 || n.Received.Before(before) {
		t.Errorf("got %+v", n)
	}
	notify(t, pool, "other", "")
	if n := next(t, s); !n.CatchUp || n.Channel != "other" || n.PID == 0 {
		t.Errorf("an empty payload is not a catch-up: %+v", n)
	}
	status := l.Status()
	if status.State != StateListening || status.Received != 2 || status.LastNotification.IsZero() || status.Reconnects != 0 || !l.Healthy() {
		t.Errorf("status: %+v", status)
	}
}

func TestListenerConnectionIsItsOwnAndNamed(t *testing.T) {
	t.Parallel()
	var before, after atomic.Int64
	pool := pgtest.Pool(t, func(c *pgxpool.Config) {
		c.MaxConns = 1
		c.ConnConfig.RuntimeParams["application_name"] = "shop"
		c.ConnConfig.OnNotification = func(*pgconn.PgConn, *pgconn.Notification) {}
		c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { before.Add(1); return nil }
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			after.Add(1)
			_, err := conn.Exec(ctx, "set search_path to pg_catalog")
			return err
		}
	})
	conn, err := pool.Acquire(within(t)) // the only one
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	l := startListener(t, pool)
	s := subscribe(t, l, 0, "named")
	if before.Load() != 3 || after.Load() != 3 {
		t.Errorf("BeforeConnect was called %d times, AfterConnect %d times, want 3: for the pool's connection, for ours and for the probe's", before.Load(), after.Load())
	}
	if _, err := conn.Exec(within(t), "select pg_notify('named', application_name) from pg_stat_activity where application_name like '%listen' and datname = current_database()"); err != nil {
		t.Fatal(err)
	}
	if n := next(t, s); n.Payload != "shop listen" {
		t.Errorf("application_name is %q", n.Payload)
	}
}

func TestListenerCatchesUpAtOnceAfterEachLostConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	// A wait of the backoff would be seen: the first retry has none, however many connections were lost before.
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = time.Hour })
	s := subscribe(t, l, 0, "kills", "kills_too")
	var slowest time.Duration
	defer func() { t.Logf("the slowest of ten was back after %s", slowest) }()
	for kill := int64(1); kill <= 10; kill++ {
		if killed := pgtest.KillBackends(t, pool, "% listen"); killed != 1 {
			t.Fatalf("killed %d listeners, want 1", killed)
		}
		start := time.Now()
		missed := map[string]bool{}
		for len(missed) < 2 {
			n := next(t, s)
			if !n.CatchUp || n.PID != 0 {
				t.Fatalf("got %+v, want a catch-up", n)
			}
			missed[n.Channel] = true
		}
		took := time.Since(start)
		slowest = max(slowest, took)
		if took > 5*time.Second {
			t.Errorf("kill %d: the catch-up came after %s", kill, took)
		}
		status := l.Status()
		if status.State != StateListening || status.Reconnects != kill || status.LastError == nil {
			t.Errorf("status after kill %d: %+v", kill, status)
		}
		notify(t, pool, "kills", "again")
		if n := next(t, s); n.Payload != "again" {
			t.Errorf("after kill %d: got %+v", kill, n)
		}
	}
}

func TestAllSubscriptionsShareOneConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	s, waker := newSubscriber(t, pool, l), wakeOn(t, l, "shared_0", WakeConfig{})
	defer waker.Close()
	for i := range 50 {
		subscribe(t, l, 0, fmt.Sprint("shared_", i), "shared")
		messages(t, s, fmt.Sprint("shared_", i))
	}
	var listening int
	if err := pool.QueryRow(within(t), "select count(*) from pg_stat_activity where application_name like '%listen' and datname = current_database()").Scan(&listening); err != nil {
		t.Fatal(err)
	}
	if listening != 1 {
		t.Errorf("%d connections listen", listening)
	}
}

func TestListenerLogsWhatOperatorsKnow(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var book logbook
	l := startListener(t, pool, func(c *ListenerConfig) {
		c.ReconnectDelay = 60 * time.Second
		c.Logger = book.logger()
	})
	s := subscribe(t, l, 0, "logged")
	pgtest.KillBackends(t, pool, "% listen")
	next(t, s)
	lines := strings.Split(strings.TrimSpace(book.String()), "\n")
	want := []string{
		`^level=INFO msg="PostgreSQL LISTEN/NOTIFY configured" fallback_interval=30s reconnect_delay=60s$`,
		`^level=INFO msg="PostgreSQL LISTEN/NOTIFY connection established"$`,
		`^level=WARN msg="LISTEN/NOTIFY connection lost, reconnecting" error=".*terminating connection.*" reconnect_delay=60s$`,
		`^level=INFO msg="PostgreSQL LISTEN/NOTIFY connection established"$`,
	}
	if len(lines) != len(want) {
		t.Fatalf("got %d lines, want %d:\n%s", len(lines), len(want), book.String())
	}
	for i, pattern := range want {
		if !regexp.MustCompile(pattern).MatchString(lines[i]) {
			t.Errorf("line %d is %s, want %s", i+1, lines[i], pattern)
		}
	}
}

func TestListenerWaitsOutAServerThatIsAway(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(within(t))
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url)
	var book logbook
	l := startListener(t, pool, func(c *ListenerConfig) {
		c.ReconnectDelay = 100 * time.Millisecond
		c.Logger = book.logger()
	})
	var mu sync.Mutex
	var states []State
	remove := l.OnChange(func(state State) {
		mu.Lock()
		defer mu.Unlock()
		states = append(states, state)
	})
	defer remove()
	s := subscribe(t, l, 0, "away")
	if err := server.Halt(within(t), "immediate"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "several attempts failed", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return len(states) > 8
	})
	if l.Healthy() {
		t.Error("healthy without a server")
	}
	if err := server.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	if n := next(t, s); !n.CatchUp {
		t.Errorf("got %+v, want a catch-up", n)
	}
	if !l.Healthy() {
		t.Errorf("status: %+v", l.Status())
	}
	mu.Lock()
	defer mu.Unlock()
	if last := states[len(states)-1]; last != StateListening {
		t.Errorf("the observer saw %s last: %v", last, states)
	}
	if book.count("connection lost, reconnecting") != 1 || book.count("connection failed, retrying") != 0 || book.count("connection established") != 2 {
		t.Errorf("an outage was not logged once when it began and once when it was over:\n%s", book.String())
	}
}

func TestListenerNoticesAPeerThatFellSilent(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		limit time.Duration
		slow  time.Duration // as slow as that is a mistake even on a busy machine
	}{
		"by default":    {limit: 0, slow: 14 * time.Second},
		"as configured": {limit: 200 * time.Millisecond, slow: 6 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			url := pgtest.URL(t)
			proxy := pgtest.NewProxy(t, url)
			l := startListener(t, pgtest.Connect(t, url), func(c *ListenerConfig) {
				c.ListenURL = proxy.URL()
				c.SilenceLimit = test.limit
			})
			s := subscribe(t, l, 0, "silent")
			start := time.Now()
			proxy.Stall()
			eventually(t, "the connection is given up", func() bool { return !l.Healthy() })
			took := time.Since(start)
			t.Logf("noticed after %s", took)
			if took > test.slow {
				t.Error("that is too slow")
			}
			if err := l.Status().LastError; err == nil || errors.Is(err, ErrDeaf) {
				t.Errorf("the reason is said to be: %v", err)
			}
			proxy.Resume()
			if n := next(t, s); !n.CatchUp {
				t.Errorf("got %+v, want a catch-up", n)
			}
		})
	}
}

func TestListenerCloseInterruptsAConnectInProgress(t *testing.T) {
	t.Parallel()
	connecting := make(chan struct{})
	l, err := NewListener(ListenerConfig{Connect: func(ctx context.Context) (*pgx.Conn, error) {
		close(connecting)
		<-ctx.Done()
		return nil, ctx.Err()
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	s, err := l.Subscribe(0, "never")
	if err != nil {
		t.Fatal(err)
	}
	<-connecting
	for range 2 {
		if err := l.Close(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Next(within(t)); !errors.Is(err, ErrClosed) {
		t.Errorf("Next after Close: %v", err)
	}
	if _, err := l.Subscribe(0, "late"); !errors.Is(err, ErrClosed) {
		t.Errorf("Subscribe after Close: %v", err)
	}
	if err := l.Start(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
	if state := l.Status().State; state != StateClosed {
		t.Errorf("state is %s", state)
	}
}

func TestDisabledListenerIsSilent(t *testing.T) {
	t.Parallel()
	l := startListener(t, nil, func(c *ListenerConfig) { c.Disabled = true })
	s, err := l.Subscribe(0, "silent")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if n, err := s.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %+v, %v", n, err)
	}
	if state := l.Status().State; state != StateDisabled || l.Healthy() {
		t.Errorf("state is %s", state)
	}
}

func TestSubscriptionThatIsNotReadCollapsesIntoOneCatchUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	slow := subscribe(t, l, 10, "busy", "calm")
	quick := subscribe(t, l, 5000, "busy", "calm") // the second in line: what has reached it has reached the slow one
	execute(t, pool, "select pg_notify('calm', 'c'), count(pg_notify('busy', i::text)) from generate_series(1, 1000) i")
	for range 1001 { // the socket is drained, whoever else does not read
		if n := next(t, quick); n.CatchUp {
			t.Fatal("the quick subscription lost something")
		}
	}
	catchUps, kept, others := map[string]int{}, map[string]int{}, 0
	for {
		n, ok, err := slow.take()
		if err != nil || !ok {
			break
		}
		if n.CatchUp {
			catchUps[n.Channel]++
			continue
		}
		kept[n.Channel]++
		others++
	}
	// What came for the calm channel before the overflow has a catch-up as well; what came after it is there.
	if catchUps["busy"] != 1 || catchUps["calm"]+kept["calm"] != 1 || others > 10 {
		t.Errorf("got the catch-ups %v and %v", catchUps, kept)
	}
	if dropped := l.Status().Dropped; int(dropped)+others != 1001 {
		t.Errorf("%d dropped and %d kept, want 1001 together", dropped, others)
	}
}

func TestNothingIsLostWhileSubscriptionsComeAndGo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool, func(c *ListenerConfig) {
		c.ProbeInterval = time.Millisecond
		c.SilenceLimit = 20 * time.Millisecond
	})
	const total = 20_000
	s := subscribe(t, l, total, "steady")
	stop := make(chan struct{})
	var churn sync.WaitGroup
	for worker := range 4 {
		churn.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				other, err := l.Subscribe(1, fmt.Sprintf("churn_%d_%d", worker, i%3), "steady")
				if err != nil {
					t.Error(err)
					return
				}
				if i%2 == 0 {
					<-other.listening
				}
				other.Close()
			}
		})
	}
	var senders sync.WaitGroup
	for sender := range 4 {
		senders.Go(func() {
			for i := range total / 4 / 50 {
				_, err := pool.Exec(within(t), "select pg_notify('steady', $1::int || ':' || $2::int || ':' || i) from generate_series(1, 50) i", sender, i)
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := map[string]bool{}
	for len(seen) < total {
		n := next(t, s)
		if n.CatchUp {
			t.Fatalf("something was missed after %d", len(seen))
		}
		if seen[n.Payload] {
			t.Fatalf("%s came twice", n.Payload)
		}
		seen[n.Payload] = true
	}
	close(stop)
	churn.Wait()
	senders.Wait()
	eventually(t, "the channels that nobody wants are dropped", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return !l.stale && len(l.listened) == 1
	})
	if status := l.Status(); status.Reconnects != 0 {
		t.Errorf("the connection did not survive: %+v", status)
	}
}

func TestListenerSurvivesStartSubscribeAndCloseInParallel(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	for round := range 20 {
		l, err := NewListener(ListenerConfig{
			Pool: pool, Logger: (&logbook{}).logger(),
			ProbeInterval: time.Millisecond, SilenceLimit: time.Millisecond, ReconnectDelay: time.Millisecond,
		})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 8 {
			all.Go(func() { _ = l.Start(t.Context()) })
			all.Go(func() {
				s, err := l.Subscribe(i, "stress", fmt.Sprint("stress_", i))
				if err != nil {
					return
				}
				if i%2 == 0 {
					defer s.Close()
				}
				for {
					if _, err := s.Next(within(t)); err != nil {
						return
					}
					if i%2 == 0 {
						return
					}
				}
			})
			all.Go(func() {
				switch {
				case i == 0 && round%2 == 0:
					pgtest.KillBackends(t, pool, "% listen")
				case i == 1:
					l.Retry()
				case i%4 == 3 && round%3 > 0:
					_ = l.Close(within(t))
				}
			})
		}
		if err := l.Close(within(t)); err != nil {
			t.Error(err)
		}
		all.Wait()
	}
}

func TestListenerConfigReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := NewListener(ListenerConfig{ReconnectDelay: -1, FallbackInterval: -1, ProbeInterval: -1, SilenceLimit: -1})
	for _, field := range []string{"Pool", "ReconnectDelay", "FallbackInterval", "ProbeInterval", "SilenceLimit"} {
		if err == nil || !strings.Contains(err.Error(), "ListenerConfig."+field) {
			t.Errorf("%s is missing in: %v", field, err)
		}
	}
	_, err = NewListener(ListenerConfig{
		ListenURL: "postgres://user:secret@localhost:notaport/db",
		Connect:   func(context.Context) (*pgx.Conn, error) { return nil, errors.New("unused") },
	})
	if err == nil || !strings.Contains(err.Error(), "ListenerConfig.ListenURL: ") || !strings.Contains(err.Error(), "ListenURL and Connect are both set") ||
		strings.Contains(err.Error(), "secret") {
		t.Errorf("ListenURL: %v", err)
	}
	l := startListener(t, nil, func(c *ListenerConfig) { c.Disabled = true })
	if _, err := l.Subscribe(-1, "", strings.Repeat("x", 64)); err == nil ||
		!strings.Contains(err.Error(), "buffer is -1") || !strings.Contains(err.Error(), "is empty") || !strings.Contains(err.Error(), "64 bytes") {
		t.Errorf("Subscribe: %v", err)
	}
}
