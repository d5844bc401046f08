package bus

import (
	"context"
	"database/sql"
	"errors"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestTopicChannelFitsPostgreSQL(t *testing.T) {
	t.Parallel()
	for topic, want := range map[string]string{
		"orders":                "watermill_orders",
		strings.Repeat("x", 53): "watermill_" + strings.Repeat("x", 53),
	} {
		if got := TopicChannel(topic); got != want {
			t.Errorf("the channel of %s is %s, want %s", topic, got, want)
		}
	}
	seen := map[string]bool{}
	for _, topic := range []string{strings.Repeat("x", 54), strings.Repeat("x", 55), strings.Repeat("x", 54) + "y", strings.Repeat("ж", 40), "-" + strings.Repeat("ж", 40)} {
		channel := TopicChannel(topic)
		if err := checkChannel(channel); err != nil || !utf8.ValidString(channel) || len(channel) < MaxChannelName-3 {
			t.Errorf("the channel of %s is %s: %v", topic, channel, err)
		}
		if channel != TopicChannel(topic) || seen[channel] {
			t.Errorf("the channel of %s is not its own: %s", topic, channel)
		}
		seen[channel] = true
	}
}

// writer is a way to publish with watermill-sql.
type writer struct {
	db    watermillsql.ContextExecutor
	begin func(*testing.T) (tx watermillsql.ContextExecutor, commit, rollback func() error)
}

func writers(t *testing.T, pool *pgxpool.Pool) map[string]writer {
	t.Helper()
	db := stdlib.OpenDBFromPool(pool)
	t.Cleanup(func() { db.Close() })
	// What goes through a pooler. The simple protocol is beyond watermill-sql, which sends JSON as bytes.
	pooled := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeCacheDescribe
		c.ConnConfig.RuntimeParams["standard_conforming_strings"] = "off"
	})
	native := func(pool *pgxpool.Pool) writer {
		return writer{watermillsql.BeginnerFromPgx(pool), func(t *testing.T) (watermillsql.ContextExecutor, func() error, func() error) {
			tx, err := pool.Begin(within(t))
			if err != nil {
				t.Fatal(err)
			}
			return watermillsql.TxFromPgx(tx), func() error { return tx.Commit(context.Background()) }, func() error { return tx.Rollback(context.Background()) }
		}}
	}
	return map[string]writer{
		"native pgx":             native(pool),
		"pgx, set up oddly":      native(pooled),
		"database/sql, over pgx": {watermillsql.BeginnerFromStdSQL(db), beginStd(db)},
	}
}

func beginStd(db *sql.DB) func(*testing.T) (watermillsql.ContextExecutor, func() error, func() error) {
	return func(t *testing.T) (watermillsql.ContextExecutor, func() error, func() error) {
		tx, err := db.BeginTx(within(t), nil)
		if err != nil {
			t.Fatal(err)
		}
		return watermillsql.TxFromStdSQL(tx), tx.Commit, tx.Rollback
	}
}

func newPublisher(t *testing.T, db watermillsql.ContextExecutor, adapter watermillsql.SchemaAdapter) message.Publisher {
	t.Helper()
	publisher, err := watermillsql.NewPublisher(db, watermillsql.PublisherConfig{SchemaAdapter: adapter}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	return publisher
}

func createTables(t *testing.T, pool *pgxpool.Pool, adapter watermillsql.SchemaAdapter, topic string) {
	t.Helper()
	statements, err := adapter.SchemaInitializingQueries(watermillsql.SchemaInitializingQueriesParams{Topic: topic})
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range statements {
		execute(t, pool, statement.Query, statement.Args...)
	}
}

func TestNotifyingSchemaNotifiesWithTheCommit(t *testing.T) {
	t.Parallel()
	// Whatever may stand in a literal, and what looks like a parameter.
	const odd = `it's a "channel" \ $1 $2 $3 $4 ж`
	oddly := func(string) string { return odd }
	for adapterName, adapter := range map[string]watermillsql.SchemaAdapter{
		"default": NotifyingSchemaOn(watermillsql.DefaultPostgreSQLSchema{GeneratePayloadType: bytea}, oddly),
		"queue":   NotifyingSchemaOn(watermillsql.PostgreSQLQueueSchema{GeneratePayloadType: bytea}, oddly),
		"custom":  NotifyingSchemaOn(commentingSchema{watermillsql.PostgreSQLQueueSchema{GeneratePayloadType: bytea}}, oddly),
	} {
		t.Run(adapterName, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			s := subscribe(t, startListener(t, pool), 0, odd)
			createTables(t, pool, adapter, orders)
			for name, writer := range writers(t, pool) {
				publish(t, newPublisher(t, writer.db, adapter), name)
				if n := next(t, s); n.PID == 0 || n.Payload != "" || !n.CatchUp {
					t.Errorf("%s: %+v", name, n)
				}

				tx, _, rollback := writer.begin(t)
				publish(t, newPublisher(t, tx, adapter), "rolled back")
				if err := rollback(); err != nil {
					t.Fatal(err)
				}
				tx, commit, _ := writer.begin(t)
				publisher := newPublisher(t, tx, adapter)
				for range 3 {
					publish(t, publisher, name)
				}
				notify(t, pool, odd, "before the commit")
				if n := next(t, s); n.Payload != "before the commit" {
					t.Errorf("%s: notified before the commit, or in spite of a rollback: %+v", name, n)
				}
				if err := commit(); err != nil {
					t.Fatal(err)
				}
				next(t, s)
				notify(t, pool, odd, "after the commit")
				if n := next(t, s); n.Payload != "after the commit" {
					t.Errorf("%s: one transaction has notified several times: %+v", name, n)
				}
			}
			var stored int
			if err := pool.QueryRow(within(t), `select count(*) from watermill_orders`).Scan(&stored); err != nil || stored != 3*4 {
				t.Errorf("%d messages are stored, want 12: %v", stored, err)
			}
		})
	}
}

// commentingSchema ends its statement as no one should.
type commentingSchema struct {
	watermillsql.PostgreSQLQueueSchema
}

func (s commentingSchema) InsertQuery(params watermillsql.InsertQueryParams) (watermillsql.Query, error) {
	query, err := s.PostgreSQLQueueSchema.InsertQuery(params)
	query.Query = "/* ours */ " + query.Query + " RETURNING \"offset\" -- the end\n ;\n"
	return query, err
}

func TestNotifyingSchemaLeavesTheRestToTheAdapter(t *testing.T) {
	t.Parallel()
	for _, adapter := range []watermillsql.SchemaAdapter{
		watermillsql.DefaultPostgreSQLSchema{},
		watermillsql.DefaultPostgreSQLSchema{InitializeSchemaWithoutTransaction: true},
		watermillsql.PostgreSQLQueueSchema{},
	} {
		wants := false
		if asked, ok := adapter.(watermillsql.RequiresTransaction); ok {
			wants = asked.RequiresTransaction()
		}
		notifying := NotifyingSchemaOn(adapter, nil)
		if asked, ok := notifying.(watermillsql.RequiresTransaction); !ok || asked.RequiresTransaction() != wants {
			t.Errorf("%T: whether it wants a transaction is lost", adapter)
		}
		if notifying.SubscribeIsolationLevel() != adapter.SubscribeIsolationLevel() {
			t.Errorf("%T: the isolation level is lost", adapter)
		}
		query, err := notifying.InsertQuery(watermillsql.InsertQueryParams{Topic: orders, Msgs: message.Messages{message.NewMessage("1", nil)}})
		if err != nil || !strings.Contains(query.Query, "pg_notify('watermill_orders', '')") {
			t.Errorf("%T: %s, %v", adapter, query.Query, err)
		}
	}
	if NotifyingSchema(nil) != nil {
		t.Error("a missing adapter is hidden from watermill-sql")
	}
}

func TestNotifyingSchemaRefusesAChannelBeforeTheTransactionIsTouched(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	tx, err := pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	adapter := NotifyingSchemaOn(watermillsql.DefaultPostgreSQLSchema{}, func(topic string) string { return strings.Repeat(topic, 20) })
	err = newPublisher(t, watermillsql.TxFromPgx(tx), adapter).Publish(orders, message.NewMessage("1", nil))
	wantMentioned(t, err, "notify of topic orders", "120 bytes long")
	if _, err := tx.Exec(within(t), "select 1"); err != nil {
		t.Errorf("the transaction is aborted: %v", err)
	}
}

// recorder is a publisher that fails when told to.
type recorder struct {
	fails     error
	published []string
	closed    bool
}

func (r *recorder) Publish(topic string, _ ...*message.Message) error {
	if r.fails == nil {
		r.published = append(r.published, topic)
	}
	return r.fails
}

func (r *recorder) Close() error {
	r.closed = true
	return nil
}

func TestNotifyingPublisherAnnouncesWhatWasPublished(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, TopicChannel("orders"), TopicChannel("invoices"))
	inner := &recorder{}
	publisher, err := NotifyingPublisher(inner, startNotifier(t, pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	inner.fails = errBroken
	if err := publisher.Publish("orders"); !errors.Is(err, errBroken) {
		t.Errorf("the failure is reported as %v", err)
	}
	inner.fails = nil
	if err := publisher.Publish("invoices"); err != nil {
		t.Fatal(err)
	}
	if n := next(t, s); n.Channel != TopicChannel("invoices") || !n.CatchUp {
		t.Errorf("got %+v", n)
	}
	if err := publisher.Close(); err != nil || !inner.closed || !slices.Equal(inner.published, []string{"invoices"}) {
		t.Errorf("inner: %+v, %v", inner, err)
	}

	unnamed, err := NotifyingPublisher(inner, startNotifier(t, pool), func(string) string { return "" })
	if err != nil {
		t.Fatal(err)
	}
	wantMentioned(t, unnamed.Publish("orders"), "channel name is empty")
	if len(inner.published) != 1 {
		t.Error("a message is published of which nobody can be told")
	}
	_, err = NotifyingPublisher(nil, nil, nil)
	wantMentioned(t, err, "publisher of bus.NotifyingPublisher", "notifier of bus.NotifyingPublisher")
}

func TestWokenSubscriberIsWokenByTheNotifier(t *testing.T) {
	t.Parallel()
	s := newWokenSQL(t)
	messages := s.subscribe(t, s.subscriber(t, ""))
	publisher, err := NotifyingPublisher(s.plainPublisher(t), startNotifier(t, s.pool), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, payload := range []string{"1", "2", "3"} {
		publish(t, publisher, payload)
		wantReceived(t, messages, payload)
	}
}
