package bus

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// holdQueue keeps the server from emptying its NOTIFY queue until release is called: a session listens, and is in a
// transaction.
func holdQueue(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	conn, err := pgx.ConnectConfig(within(t), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	for _, sql := range []string{"listen held", "begin", "select 1"} {
		if _, err := conn.Exec(within(t), sql); err != nil {
			t.Fatal(err)
		}
	}
	release = func() { _ = conn.Close(context.Background()) }
	t.Cleanup(release)
	return release
}

// notifyingPID commits a transaction that notifies channel, and returns its backend.
func notifyingPID(t *testing.T, pool *pgxpool.Pool, n *Notifier, channel, payload string) (pid uint32) {
	t.Helper()
	err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error {
		pid = tx.Conn().PgConn().PID()
		return n.NotifyTx(within(t), tx, channel, payload)
	})
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

// gauge returns the value of a gauge of floats, and whether there is one.
func (m meter) gauge(t *testing.T, name string) (float64, bool) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := m.reader.Collect(within(t), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, metrics := range scope.Metrics {
			if data, ok := metrics.Data.(metricdata.Gauge[float64]); ok && metrics.Name == name {
				return data.DataPoints[0].Value, true
			}
		}
	}
	return 0, false
}

// From the limit on nothing is notified inside transactions, whatever the mode, and all of it arrives; below it everything
// is as before.
func TestAFillingQueueIsNotFilledByTransactions(t *testing.T) {
	t.Parallel()
	_, url := privateDatabase(t) // whose queue is nobody else's
	pool := pgtest.Connect(t, url)
	enemy := stranger(t, pool)
	s := subscribe(t, startListener(t, pool), 0, "news")
	var book logbook
	m := newMeter()
	n := startNotifier(t, pool, func(c *NotifierConfig) {
		c.Mode, c.QueueLimit, c.QueueInterval, c.Logger, c.MeterProvider = ModeInTransaction, 0.0002, 5*time.Millisecond, book.logger(), m
	})
	eventually(t, "the queue is checked", func() bool { return !n.Status().QueueChecked.IsZero() })
	if pid := notifyingPID(t, pool, n, "news", "before"); next(t, s).PID != pid {
		t.Error("the transaction did not notify although there is room")
	}
	release := holdQueue(t, pool)
	const pages = 600 // of 1,048,576
	execute(t, enemy, "select count(pg_notify('flood', i || repeat('x', 7900))) from generate_series(1, $1::int) i", pages)
	eventually(t, "it is known to fill", func() bool { return n.Status().QueueFilling })
	if usage, there := m.gauge(t, "romancy.notifier.queue.usage"); !there || usage < 0.0002 || usage > 0.01 {
		t.Errorf("the gauge shows %v, %v", usage, there)
	}
	for range 50 {
		pid := notifyingPID(t, pool, n, "news", "meanwhile")
		if got := next(t, s); got.PID == pid || got.Payload != "meanwhile" {
			t.Fatalf("got %+v, want what the notifier sent after the commit of %d", got, pid)
		}
	}
	if err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error {
		if err := n.NotifyTx(within(t), tx, "news", "never"); err != nil {
			return err
		}
		return tx.Rollback(within(t))
	}); err != nil && !strings.Contains(err.Error(), "tx is closed") {
		t.Fatal(err)
	}
	release()
	eventually(t, "it is known to be empty", func() bool { return !n.Status().QueueFilling })
	if pid := notifyingPID(t, pool, n, "news", "after"); next(t, s).PID != pid {
		t.Error("the transaction did not notify although there is room again")
	}
	if book.count("queue is filling") != 1 || book.count("remedy") != 1 || book.count("emptied again") != 1 {
		t.Errorf("logged:\n%s", book.String())
	}
}

// What the server refuses because its queue is full is sent when it is not, over the same connection.
func TestWhatAFullQueueRefusesIsSentLater(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proxy := pgtest.NewFaultProxy(t, pool.Config().ConnString())
	s := subscribe(t, startListener(t, pool), 0, "news")
	var book logbook
	n := startNotifier(t, pgtest.Connect(t, proxy.URL()), func(c *NotifierConfig) { c.Logger = book.logger() })
	n.Notify("news", "before")
	before := next(t, s)
	fault := proxy.Inject(pgtest.Fault{Statement: "Send", Kind: pgtest.FaultRefuse, Code: queueFull, Nth: 1, Times: 3})
	n.Notify("news", "meanwhile")
	if got := next(t, s); got.Payload != "meanwhile" || got.PID != before.PID || fault.Hits() != 3 {
		t.Errorf("got %+v after %d refusals, want it of %d", got, fault.Hits(), before.PID)
	}
	eventually(t, "its end is said", func() bool { return book.count("emptied again") == 1 })
	if book.count("queue is filling") != 1 || book.count("connection lost") != 0 {
		t.Errorf("logged:\n%s", book.String())
	}
}

// A notifier that cannot send after the commit leaves a filling queue alone all the same.
func TestAFillingQueueIsLeftToPollingWhereNothingElseIsPossible(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "news")
	m := newMeter()
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode, c.MeterProvider = ModeInTransaction, m })
	eventually(t, "the queue is checked", func() bool { return !n.Status().QueueChecked.IsZero() })
	n.noteUsage(within(t), 0.5)
	if err := n.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	notifyingPID(t, pool, n, "news", "withheld")
	notify(t, pool, "news", "the next")
	if got := next(t, s); got.Payload != "the next" {
		t.Errorf("got %+v", got)
	}
	if got := m.read(t)["romancy.notifier.withheld"]; got != 1 {
		t.Errorf("%d are counted, want 1", got)
	}
}

// A role that may not ask notifies as ever, and says once that it does not know.
func TestAQueueThatCannotBeSeenChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proxy := pgtest.NewFaultProxy(t, pool.Config().ConnString())
	proxy.Inject(pgtest.Fault{Statement: "QueueUsage", Kind: pgtest.FaultRefuse, Code: "42501"})
	s := subscribe(t, startListener(t, pool), 0, "news")
	var book logbook
	n := startNotifier(t, pgtest.Connect(t, proxy.URL()), func(c *NotifierConfig) {
		c.Mode, c.QueueInterval, c.Logger = ModeInTransaction, time.Millisecond, book.logger()
	})
	eventually(t, "it says so", func() bool { return book.count("cannot find out how full") == 1 })
	if pid := notifyingPID(t, pool, n, "news", "as ever"); next(t, s).PID != pid {
		t.Error("the transaction did not notify")
	}
	n.Notify("news", "sent")
	next(t, s)
	if status := n.Status(); status.QueueFilling || !status.QueueChecked.IsZero() || book.count("\n") != 1 {
		t.Errorf("status %+v, log:\n%s", status, book.String())
	}
}

// The real thing, where a queue can be made small: it is full, whoever notifies cannot commit, and what we notify for others
// costs none of them the commit.
func TestAFullQueueCostsNoCommit(t *testing.T) {
	t.Parallel()
	version := 0
	if err := pgtest.Pool(t).QueryRow(within(t), "select current_setting('server_version_num')::int / 10000").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 17 {
		t.Skipf("PostgreSQL %d has no max_notify_queue_pages: its queue is 8 GB", version)
	}
	server := pgtest.Private(t, pgtest.Setting("max_notify_queue_pages", "64"))
	url, _, err := server.CreateDatabase(within(t))
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url)
	enemy := stranger(t, pool)
	s := subscribe(t, startListener(t, pool), 0, "news")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode, c.QueueInterval = ModeInTransaction, 5*time.Millisecond })
	publisher, err := watermillsql.NewPublisher(watermillsql.BeginnerFromPgx(pool), watermillsql.PublisherConfig{
		SchemaAdapter: NotifyingSchema(watermillsql.DefaultPostgreSQLSchema{}), AutoInitializeSchema: true,
	}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	publish := func() {
		t.Helper()
		if err := publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte("{}"))); err != nil {
			t.Error(err)
		}
	}
	publish()
	release := holdQueue(t, pool)
	for err = nil; err == nil; {
		_, err = enemy.Exec(within(t), "select pg_notify('flood', $1)", strings.Repeat("x", MaxPayload))
	}
	if !strings.Contains(err.Error(), queueFull) {
		t.Fatal(err)
	}
	eventually(t, "it is known to be full", func() bool { return n.Status().QueueFilling })
	notifyingPID(t, pool, n, "news", "meanwhile")
	publish()
	release()
	if got := next(t, s); got.Payload != "meanwhile" {
		t.Errorf("got %+v", got)
	}
}
