package outbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// shortLease is long enough for a busy machine, and short enough for a test to outlast.
const shortLease = 2 * time.Second

func withShortLease(c *RelayConfig) {
	c.PublishTimeout = shortLease / 2
	c.Lease = shortLease
}

// once checks that every event was published, and none twice.
func once(t *testing.T, r *recorder, events []Event) {
	t.Helper()
	equal(t, "published", sorted(r.published()), sorted(ids(events)))
}

// several returns n events of keys of their own in one slot, so that they are one batch.
func several(n int) []Event {
	events := make([]Event, 0, n)
	for i := 0; len(events) < n; i++ {
		if key := fmt.Sprint("key-", i); slotOf(key) == 0 {
			events = append(events, Event{ID: fmt.Sprintf("event-%03d", len(events)), Key: key, Topic: "t"})
		}
	}
	return events
}

// refuse has the database refuse an operation on a table with an SQLSTATE, until mend is called. How often it did is counted
// by a sequence, whose values outlive the transactions that fail.
func refuse(t *testing.T, pool *pgxpool.Pool, operation, table, sqlstate string) (times func() int, mend func()) {
	t.Helper()
	mustExec(t, pool, fmt.Sprintf(`
		create sequence refusals;
		create function refuse() returns trigger language plpgsql as $$ begin
			perform nextval('refusals');
			raise exception 'refused' using errcode = '%s';
		end $$;
		create trigger refuse before %s on romancy.%s for each statement execute function refuse()`, sqlstate, operation, table))
	times = func() int {
		return query[int](t, pool, "select case when is_called then last_value else 0 end from refusals")
	}
	return times, func() { mustExec(t, pool, "drop trigger refuse on romancy."+table) }
}

func mustExec(t *testing.T, pool *pgxpool.Pool, sql string) {
	t.Helper()
	if _, err := pool.Exec(within(t), sql, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// outlast waits until a lease that nobody renews would be over, and another relay would have taken its slot.
func outlast() { time.Sleep(2 * shortLease) }

// Whatever the database says to a settlement, it is kept and tried again until it says yes, and the lease is renewed
// meanwhile, so that another relay does not publish anything again.
func TestARefusedSettlementIsKept(t *testing.T) {
	t.Parallel()
	sqlstates := []string{
		"22P02", // never, by the table; but what was published stays published
		"42501", "53100", "26000", "57P01",
		"54000", "42P01", "42703", "23514", "28000", "3D000", "53300",
		"55P03", "57014", "40001", "40P01", "25006", "25P02", "42P05", "58030", "08006", "XX000", "P0001", "0A000",
	}
	for _, sqlstate := range sqlstates[:pgtest.Soak(len(sqlstates), 5)] {
		t.Run(sqlstate, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			published := newRecorder()
			r := startRelay(t, pool, published, withShortLease)
			startRelay(t, pool, published, withShortLease)
			times, mend := refuse(t, pool, "delete", "outbox", sqlstate)
			events := several(20)
			add(t, pool, events...)
			published.untilPublished(t, len(events))
			outlast()
			eventually(t, "it was tried again", func() bool { return times() > 3 })
			once(t, published, events)
			mend()
			untilEmpty(t, pool)
			once(t, published, events)
			if stats, err := r.Stats(within(t)); err != nil || stats.LeasesLost != 0 || stats.Unsettled != 0 {
				t.Errorf("stats: %+v, %v", stats, err)
			}
		})
	}
}

// A renewal that is refused is tried again before the lease ends, and the batch is not taken from us.
func TestARefusedRenewalIsTriedAgain(t *testing.T) {
	t.Parallel()
	sqlstates := []string{"53100", "26000", "42501", "55P03", "25006", "42P05", "57P01", "XX000"}
	for _, sqlstate := range sqlstates[:pgtest.Soak(len(sqlstates), 2)] {
		t.Run(sqlstate, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			published := newRecorder()
			published.answer = func(*message.Message) error {
				time.Sleep(100 * time.Millisecond) // the work itself
				return nil
			}
			long := func(c *RelayConfig) { c.PublishTimeout, c.Lease = 2*shortLease, 4*shortLease }
			startRelay(t, pool, published, long)
			events := numbered("k", 100) // longer in work than the lease
			add(t, pool, events...)
			published.untilPublished(t, 1)
			startRelay(t, pool, published, long)
			times, mend := refuse(t, pool, "update", "outbox_slots", sqlstate)
			eventually(t, "renewals were refused", func() bool { return times() > 2 })
			mend()
			published.untilPublished(t, len(events))
			untilEmpty(t, pool)
			equal(t, "published", published.published(), ids(events))
			if claims := query[int](t, pool, "select sum(token) from romancy.outbox_slots"); claims != 1 {
				t.Errorf("the events were taken %d times, want once", claims)
			}
		})
	}
}

// holdAll takes all connections of a pool until the test ends or release is called.
func holdAll(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	var held []*pgxpool.Conn
	for range pool.Config().MaxConns {
		conn, err := pool.Acquire(within(t))
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, conn)
	}
	release = sync.OnceFunc(func() {
		for _, conn := range held {
			conn.Release()
		}
	})
	t.Cleanup(release)
	return release
}

func TestAPoolThatIsUsedUpCostsNoLeaseAndKeepsNoBatch(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	small := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) { c.MaxConns = 4 })
	g := newGate()
	log := &lines{}
	startRelay(t, small, g, withShortLease, func(c *RelayConfig) {
		c.PublishTimeout, c.Lease = shortLease, 2*shortLease
		c.Logger = log.logger()
	})
	events := several(20)
	add(t, pool, events...)
	<-g.entered
	holdAll(t, small)
	startRelay(t, pool, g, withShortLease)
	close(g.open)
	g.untilPublished(t, len(events))
	untilEmpty(t, pool) // although the first relay's pool is still used up
	once(t, g.recorder, events)
}

// Sessions of the relay are ended again and again, while it publishes and settles.
func TestLostSessionsOfARelayThatLivesRepeatNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	victims := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["application_name"] = "victim"
	})
	published := newRecorder()
	published.answer = func(*message.Message) error {
		time.Sleep(time.Millisecond) // so that batches are in work when their sessions end
		return nil
	}
	r := startRelay(t, victims, published, withShortLease)
	startRelay(t, pool, published, withShortLease)
	var events []Event
	for i := range 40 {
		var some []Event
		for j := range 50 {
			some = append(some, Event{ID: fmt.Sprintf("%d-%d", i, j), Topic: "t"})
		}
		add(t, pool, some...)
		events = append(events, some...)
		if i%2 == 1 {
			pgtest.KillBackends(t, pool, "victim%")
		}
	}
	published.untilPublished(t, len(events))
	untilEmpty(t, pool)
	once(t, published, events)
	if stats, err := r.Stats(within(t)); err != nil || stats.LeasesLost != 0 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
}

// A right that is taken away while the relay works.
func TestARightTakenAwayRepeatsNothing(t *testing.T) {
	t.Parallel()
	for name, right := range map[string]string{
		"delete on the outbox": "delete on romancy.outbox",
		"update on the outbox": "update on romancy.outbox",
		"update on the slots":  "update on romancy.outbox_slots",
		"usage of the schema":  "usage on schema romancy",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			role := pool.Config().ConnConfig.Database + "_relay"
			mustExec(t, pool, fmt.Sprintf(`create role %[1]s; grant usage on schema romancy to %[1]s;
				grant select, insert, update, delete on all tables in schema romancy to %[1]s`, role))
			t.Cleanup(func() {
				if _, err := pool.Exec(context.WithoutCancel(t.Context()), "drop owned by "+role+"; drop role "+role); err != nil {
					t.Error(err)
				}
			})
			restricted := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
				c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
					_, err := conn.Exec(ctx, "set role "+role)
					return err
				}
			})
			g := newGate()
			startRelay(t, restricted, g, withShortLease, func(c *RelayConfig) { c.PublishTimeout, c.Lease = shortLease, 5*shortLease })
			events := several(20)
			add(t, pool, events...)
			for range events {
				<-g.entered
			}
			mustExec(t, pool, "revoke "+right+" from "+role)
			close(g.open)
			g.untilPublished(t, len(events))
			outlast()
			outlast()
			mustExec(t, pool, "grant "+right+" to "+role)
			untilEmpty(t, pool)
			once(t, g.recorder, events)
		})
	}
}

// What a role or a database sets as a default does not matter to the relay.
func TestDefaultsOfTheRoleDoNotMatter(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	for _, setting := range []string{
		"default_transaction_read_only = on", "default_transaction_isolation = serializable", "default_transaction_deferrable = on",
		"lock_timeout = '1ms'", "idle_session_timeout = '1500ms'", "idle_in_transaction_session_timeout = '1ms'",
	} {
		mustExec(t, pool, "alter database "+pool.Config().ConnConfig.Database+" set "+setting)
	}
	defaults := pgtest.Connect(t, pool.Config().ConnString())
	published, log := newRecorder(), &lines{}
	published.answer = func(*message.Message) error {
		time.Sleep(5 * time.Millisecond)
		return nil
	}
	// With a long lease, so that it has no renewal to do while it idles.
	startRelay(t, defaults, published, func(c *RelayConfig) { c.Logger = log.logger() })
	events := numbered("k", 200)
	add(t, pool, events...)
	published.untilPublished(t, len(events))
	untilEmpty(t, pool)
	equal(t, "published", published.published(), ids(events))
	r := testRelay(t, defaults, published)
	var got struct{ locks, statements string }
	err := r.onPool(within(t), claimTimeout, work{guard: r.queries.Get("GuardClaim"), locks: 123 * time.Millisecond, queue: func(b *pgx.Batch) {
		b.Queue("select current_setting('lock_timeout'), current_setting('statement_timeout')").QueryRow(func(row pgx.Row) error {
			return row.Scan(&got.locks, &got.statements)
		})
	}})
	if err != nil || got.locks != "123ms" || got.statements == "0" {
		t.Errorf("limits of a transaction: %+v, %v", got, err)
	}
	pids := func() string {
		return query[string](t, pool, "select coalesce(string_agg(pid::text, ' '), '') from pg_stat_activity where datname = current_database() and application_name like '% relay'")
	}
	before := pids()
	time.Sleep(4 * time.Second) // longer than idle_session_timeout
	if after := pids(); before == "" || after != before {
		t.Errorf("the relay's session was %q and is %q", before, after)
	}
	if log.count("level=WARN") > 0 {
		t.Errorf("it complains:\n%s", log)
	}
}

// The answer to a settlement was lost: it is tried again, finds nothing to do, and that is no lost lease.
func TestASettlementWhoseAnswerWasLostIsNoLostLease(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := within(t)
	r := testRelay(t, pool, newRecorder())
	t.Cleanup(r.settling.close)
	r.hard, r.cutShort = context.WithCancel(ctx)
	t.Cleanup(r.cutShort)
	add(t, pool, numbered("k", 3)...)
	c := r.consumers[0]
	cl := &claim{consumer: c}
	q, _ := c.SelectQuery(sqlSelect)
	if _, err := cl.QueryContext(ctx, q.Query, q.Args...); err != nil {
		t.Fatal(err)
	}
	r.publish(cl.batch)
	settle, _ := settler{c}.AckMessageQuery(ackOf(cl.batch))
	if settled, err := cl.trySettle(ctx, 1, settle.Query, settle.Args); err != nil || !settled {
		t.Fatalf("settled: %v, %v", settled, err)
	}
	cl.settle(ctx, settle.Query, settle.Args)
	if stats, err := r.Stats(ctx); err != nil || stats.LeasesLost != 0 || stats.Unsettled != 0 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
}

// An error's text may be in characters that the database's encoding does not have.
func TestAnErrorInForeignCharactersIsSettled(t *testing.T) {
	t.Parallel()
	pool := pgtest.Latin1(t)
	if err := migrate(t, pool, "romancy"); err != nil {
		t.Fatal(err)
	}
	published := newRecorder()
	published.answer = func(*message.Message) error { return errors.New("世界 ist \"weg\"") }
	r := startRelay(t, pool, published, func(c *RelayConfig) { c.MaxAttempts = 2 })
	add(t, pool, Event{ID: "e", Topic: "t"})
	eventually(t, "it is a dead letter", func() bool {
		letters, err := r.DeadLetters(within(t), 1, nil)
		return err == nil && len(letters) == 1 && strings.Contains(letters[0].LastError, `ist \"weg\"`)
	})
}

// A database that is away is said once when it begins and once when it is over, however many goroutines notice.
func TestADatabaseThatIsAwayIsSaidOnce(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(within(t))
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url)
	published, log := newRecorder(), &lines{}
	startRelay(t, pool, published, withShortLease, func(c *RelayConfig) {
		c.Logger = log.logger()
		c.Consumers = 8
		c.FallbackInterval = 100 * time.Millisecond
	})
	events := several(40)
	add(t, pool, events[:20]...)
	published.untilPublished(t, 20)
	untilEmpty(t, pool)
	if err := server.Halt(within(t), "immediate"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is noticed", func() bool { return log.count("cannot reach") > 0 })
	time.Sleep(3 * time.Second)
	if err := server.Resume(within(t)); err != nil {
		t.Fatal(err)
	}
	add(t, pool, events[20:]...)
	published.untilPublished(t, len(events))
	eventually(t, "the end is said", func() bool { return log.count("reaches the database again") > 0 })
	untilEmpty(t, pool)
	once(t, published, events)
	if begun, over, all := log.count("cannot reach"), log.count("reaches the database again"), log.count("level=WARN"); begun != 1 || over != 1 || all != 1 {
		t.Errorf("%d, %d and %d lines:\n%s", begun, over, all, log)
	}
}

// lines is a log to look into.
type lines struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func (l *lines) count(what string) int { return strings.Count(l.String(), what) }

func (l *lines) logger() *slog.Logger { return slog.New(slog.NewTextHandler(l, nil)) }

// debug is a logger of all levels.
func (l *lines) debug() *slog.Logger {
	return slog.New(slog.NewJSONHandler(l, &slog.HandlerOptions{Level: watermill.LevelTrace}))
}

// Behind a pooler that lends its server connections by the transaction, the relay leaves nothing of its own on one, and a
// settlement that is refused is kept as well.
func TestARelayBehindATransactionPooler(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	mustExec(t, pool, "alter database "+pool.Config().ConnConfig.Database+" set idle_session_timeout = '1h'")
	pooled := pgtest.Connect(t, pgtest.PgBouncer(t, pool.Config().ConnString(), "transaction"), func(c *pgxpool.Config) {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
	})
	published := newRecorder()
	startRelay(t, pooled, published, withShortLease)
	startRelay(t, pool, published, withShortLease)
	times, mend := refuse(t, pool, "delete", "outbox", "53100")
	events := several(20)
	add(t, pool, events...)
	published.untilPublished(t, len(events))
	outlast()
	eventually(t, "it was tried again", func() bool { return times() > 2 })
	mend()
	untilEmpty(t, pool)
	once(t, published, events)
	for range 10 {
		if got := query[string](t, pooled, "select current_setting('idle_session_timeout') || ' ' || current_setting('lock_timeout') || ' ' || current_setting('statement_timeout')"); got != "1h 0 0" {
			t.Errorf("a server connection of the pooler has settings of the relay: %q", got)
		}
	}
}
