package bus

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// privateDatabase returns a server of the test's own and the URL of a database there.
func privateDatabase(t *testing.T) (*pgtest.Server, string) {
	t.Helper()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(within(t))
	if err != nil {
		t.Fatal(err)
	}
	return server, url
}

func halt(t *testing.T, server *pgtest.Server, mode string) {
	t.Helper()
	if err := server.Halt(within(t), mode); err != nil {
		t.Fatal(err)
	}
}

func resume(t *testing.T, server *pgtest.Server) {
	t.Helper()
	if err := server.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
}

func TestListenerComesBackAfterTheServerRestarted(t *testing.T) {
	t.Parallel()
	server, url := privateDatabase(t)
	pool := pgtest.Connect(t, url)
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = 200 * time.Millisecond })
	s := subscribe(t, l, 0, "restarted")
	for _, mode := range []string{"fast", "immediate"} {
		if err := server.Restart(within(t), mode); err != nil {
			t.Fatal(err)
		}
		if n := next(t, s); !n.CatchUp {
			t.Errorf("%s: got %+v, want a catch-up", mode, n)
		}
		eventually(t, "a notification can be sent", func() bool { // the pool still has dead connections
			_, err := pool.Exec(within(t), "select pg_notify('restarted', $1::text)", mode)
			return err == nil
		})
		if n := next(t, s); n.Payload != mode {
			t.Errorf("%s: got %+v", mode, n)
		}
	}
}

// In a long outage the backoff has grown. The database is back when somebody in this process was answered.
func TestRetryEndsALongBackoff(t *testing.T) {
	t.Parallel()
	server, url := privateDatabase(t)
	halt(t, server, "immediate")
	pool := pgtest.Connect(t, url)
	l := makeListener(t, ListenerConfig{Pool: pool, ReconnectDelay: 1000 * time.Hour, Logger: (&logbook{}).logger()})
	l.retry.failures = 40 // as after an outage of days
	start(t, l)
	eventually(t, "it waits", func() bool { return l.Status().State == StateBackoff })
	resume(t, server)
	execute(t, pool, "select 1")
	if state := l.Status().State; state != StateBackoff {
		t.Fatalf("it is %s already", state)
	}
	l.Retry()
	eventually(t, "it listens", l.Healthy)
	if l.retry.failures != 0 || l.retry.misled != 0 {
		t.Errorf("the backoff was not reset: %+v", l.retry)
	}
	l.Retry() // does nothing now
	if len(l.hints) != 0 {
		t.Error("a healthy listener keeps a hint")
	}
	var none *Listener
	none.Retry()
}

// In an outage of minutes the waits between two attempts grow to a minute. What ends them is that somebody else is answered:
// here it is a subscriber, which polls meanwhile.
func TestListenerIsBackSoonAfterAnOutageOfMinutes(t *testing.T) {
	t.Parallel()
	server, url := privateDatabase(t)
	pool := pgtest.Connect(t, url)
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = 0 }) // the default
	eventually(t, "it listens", l.Healthy)
	out := messages(t, newSubscriber(t, pool, l), outboxChannel)
	halt(t, server, "immediate")
	eventually(t, "it is away", func() bool { return !l.Healthy() })
	time.Sleep(time.Duration(pgtest.Soak(180, 5)) * time.Second) // the outage
	eventually(t, "it waits", func() bool { return l.Status().State == StateBackoff })
	resume(t, server)
	reachable := time.Now()
	eventually(t, "it listens again", l.Healthy)
	took := time.Since(reachable)
	t.Logf("back %s after the server", took)
	if took > 10*time.Second { // without the hint it takes up to a minute
		t.Error("that is too long")
	}
	notify(t, pool, outboxChannel, Encode(OutboxPending{"evt"})) // it is in no table, so no catch-up finds it
	wantEvent(t, out, "evt", SourceNotify)
}

// Where the database answers everybody else but refuses the listener, it must not be asked at each heartbeat.
func TestHintsThatMisleadDoNotUndoTheBackoff(t *testing.T) {
	t.Parallel()
	var attempts atomic.Int64
	l := makeListener(t, ListenerConfig{ReconnectDelay: 1000 * time.Hour, Logger: (&logbook{}).logger(), Connect: func(context.Context) (*pgx.Conn, error) {
		attempts.Add(1)
		return nil, errors.New("no")
	}})
	l.retry.failures = 40
	start(t, l)
	began := time.Now()
	eventually(t, "there were four attempts", func() bool { l.Retry(); return attempts.Load() >= 4 })
	// Between them were 100, 200 and 400 ms.
	if took := time.Since(began); took < 690*time.Millisecond {
		t.Errorf("four attempts in %s", took)
	}
}

func TestBackoffIsCappedAndReset(t *testing.T) {
	t.Parallel()
	b := backoff{limit: time.Second}
	for failure := range 100 {
		limit := min(time.Second, backoffStep<<max(0, min(failure-1, 10)))
		if wait := b.next(); wait > limit {
			t.Fatalf("wait %d is %s, want %s at most", failure+1, wait, limit)
		}
	}
	for range 100 {
		b.hinted()
	}
	if gap := b.hinted().Sub(b.began); gap != time.Second {
		t.Errorf("a hint is good after %s, want 1s", gap)
	}
	b.healthy()
	if gap := b.hinted().Sub(b.began); gap != backoffStep {
		t.Errorf("the first hint is good after %s", gap)
	}
	if wait := b.next(); wait != 0 {
		t.Errorf("the first wait is %s", wait)
	}

	deaf := deafBackoff{first: 10 * time.Second, limit: 5 * time.Minute}
	for failure := range 100 {
		want := min(5*time.Minute, 10*time.Second<<min(failure, 10))
		if wait := deaf.next(); wait < want/2 || wait > want {
			t.Errorf("a deaf one waits %s, want %s to %s", wait, want/2, want)
		}
	}
	deaf.heard = true
	if first, second := deaf.next(), deaf.next(); first != 0 || second < 5*time.Second || second > 10*time.Second {
		t.Errorf("one that has heard waits %s and %s", first, second)
	}
}

// What BeforeConnect says is asked again for each connection.
func TestListenerFollowsAFailoverByBeforeConnect(t *testing.T) {
	t.Parallel()
	first, firstURL := privateDatabase(t)
	_, secondURL := privateDatabase(t)
	second, err := pgx.ParseConfig(secondURL)
	if err != nil {
		t.Fatal(err)
	}
	var failedOver atomic.Bool
	pool := pgtest.Connect(t, firstURL, func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
			if failedOver.Load() {
				cfg.Host, cfg.Port, cfg.Database, cfg.Password = second.Host, second.Port, second.Database, second.Password
				cfg.Fallbacks = nil
			}
			return nil
		}
	})
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = 200 * time.Millisecond })
	s := subscribe(t, l, 0, "moved")
	failedOver.Store(true)
	halt(t, first, "immediate")
	wantHeardAgain(t, s, pgtest.Connect(t, secondURL))
}

func TestListenerFollowsAFailoverToTheNextHostOfItsURL(t *testing.T) {
	t.Parallel()
	first, firstURL := privateDatabase(t)
	_, secondURL := privateDatabase(t)
	var hosts, ports []string
	for _, url := range []string{firstURL, secondURL} { // the same credentials on both, as after a real failover
		config, err := pgx.ParseConfig(url)
		if err != nil {
			t.Fatal(err)
		}
		hosts, ports = append(hosts, config.Host), append(ports, strconv.Itoa(int(config.Port)))
		pool := pgtest.Connect(t, url)
		execute(t, pool, "create role failing_over login password 'same'")
		execute(t, pool, "create database failing_over")
	}
	pool := pgtest.Connect(t, "user=failing_over password=same dbname=failing_over sslmode=disable host="+strings.Join(hosts, ",")+" port="+strings.Join(ports, ","))
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = 200 * time.Millisecond })
	s := subscribe(t, l, 0, "moved")
	halt(t, first, "immediate")
	wantHeardAgain(t, s, pool)
}

func wantHeardAgain(t *testing.T, s *Subscription, pool *pgxpool.Pool) {
	t.Helper()
	if n := next(t, s); !n.CatchUp {
		t.Errorf("got %+v, want a catch-up", n)
	}
	eventually(t, "a notification can be sent", func() bool {
		_, err := pool.Exec(within(t), "select pg_notify('moved', 'x')")
		return err == nil
	})
	if n := next(t, s); n.Payload != "x" {
		t.Errorf("got %+v", n)
	}
}

func TestListenerFollowsAChangedPassword(t *testing.T) {
	t.Parallel()
	_, url := privateDatabase(t)
	admin := pgtest.Connect(t, url)
	execute(t, admin, "create role rotating login password 'old'")
	var password atomic.Value
	password.Store("old")
	pool := pgtest.Connect(t, url, func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
			cfg.User, cfg.Password = "rotating", password.Load().(string) //nolint:forcetypeassert // nothing else is stored
			return nil
		}
	})
	l := startListener(t, pool)
	s := subscribe(t, l, 0, "moved")
	execute(t, admin, "alter role rotating password 'new'")
	password.Store("new")
	if killed := pgtest.KillBackends(t, admin, "% listen"); killed != 1 {
		t.Fatalf("killed %d listeners, want 1", killed)
	}
	wantHeardAgain(t, s, admin)
	if status := l.Status(); status.LastError == nil || status.State != StateListening {
		t.Errorf("status: %+v", status)
	}
}
