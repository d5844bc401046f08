package bus

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/pgx/v5/stdlib"

	"github.com/romancy-go/romancy/internal/pgtest"
)

const orders = "orders"

// wantMentioned checks that one error speaks of all of parts.
func wantMentioned(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, part := range parts {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("the error does not mention %q: %v", part, err)
		}
	}
}

func (s *wokenSQL) subscribe(t *testing.T, subscriber *WokenSubscriber) <-chan *message.Message {
	t.Helper()
	if err := subscriber.SubscribeInitialize(orders); err != nil {
		t.Fatal(err)
	}
	messages, err := subscriber.Subscribe(t.Context(), orders)
	if err != nil {
		t.Fatal(err)
	}
	return messages
}

func publish(t *testing.T, publisher message.Publisher, payload string) {
	t.Helper()
	if err := publisher.Publish(orders, message.NewMessage(watermill.NewUUID(), []byte(payload))); err != nil {
		t.Fatal(err)
	}
}

func received(t *testing.T, messages <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, open := <-messages:
		if !open {
			t.Fatal("closed")
		}
		return msg
	case <-time.After(patience):
		t.Fatal("no message")
		return nil
	}
}

func wantReceived(t *testing.T, messages <-chan *message.Message, payload string) {
	t.Helper()
	msg := received(t, messages)
	if string(msg.Payload) != payload {
		t.Errorf("received %s, want %s", msg.Payload, payload)
	}
	msg.Ack()
}

func (s *wokenSQL) plainPublisher(t *testing.T) message.Publisher {
	t.Helper()
	publisher, err := watermillsql.NewPublisher(s.db, watermillsql.PublisherConfig{SchemaAdapter: s.schema}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	return publisher
}

func TestWokenSubscriberReceivesABurst(t *testing.T) {
	t.Parallel()
	s := newWokenSQL(t)
	messages := s.subscribe(t, s.subscriber(t, ""))
	publisher := s.publisher(t)
	var publishing sync.WaitGroup
	for p := range 8 {
		publishing.Go(func() {
			for i := range 50 {
				if err := publisher.Publish(orders, message.NewMessage(watermill.NewUUID(), fmt.Appendf(nil, "%d/%d", p, i))); err != nil {
					t.Error(err)
				}
			}
		})
	}
	seen := map[string]int{}
	for range 400 {
		msg := received(t, messages)
		seen[string(msg.Payload)]++
		msg.Ack()
	}
	publishing.Wait()
	if len(seen) != 400 {
		t.Errorf("received %d different messages of 400", len(seen))
	}
	notify(t, s.pool, TopicChannel(orders), "from a stranger")
	publish(t, publisher, "the last")
	wantReceived(t, messages, "the last")
}

func TestWokenSubscriberFindsWhatWasNotNotified(t *testing.T) {
	t.Parallel()
	t.Run("by the rare poll", func(t *testing.T) {
		t.Parallel()
		s := newWokenSQL(t)
		s.wake = WakeConfig{PollInterval: 50 * time.Millisecond}
		messages := s.subscribe(t, s.subscriber(t, ""))
		for _, payload := range []string{"1", "2"} {
			publish(t, s.plainPublisher(t), payload)
			wantReceived(t, messages, payload)
		}
	})
	t.Run("by polling while the listener is not well", func(t *testing.T) {
		t.Parallel()
		s := newWokenSQL(t)
		s.listener = startListener(t, s.pool, func(c *ListenerConfig) { c.Disabled = true })
		s.wake = WakeConfig{PollInterval: never, UnhealthyInterval: 50 * time.Millisecond}
		messages := s.subscribe(t, s.subscriber(t, ""))
		for _, payload := range []string{"1", "2"} {
			publish(t, s.publisher(t), payload)
			wantReceived(t, messages, payload)
		}
	})
	t.Run("by the catch-up after an outage", func(t *testing.T) {
		t.Parallel()
		s := newWokenSQL(t)
		messages := s.subscribe(t, s.subscriber(t, ""))
		publish(t, s.publisher(t), "1")
		wantReceived(t, messages, "1")
		publish(t, s.plainPublisher(t), "2") // as good as lost
		pgtest.KillBackends(t, s.pool, "% listen")
		wantReceived(t, messages, "2")
	})
}

// countingDB counts the questions that go to the database outside of transactions.
type countingDB struct {
	watermillsql.Beginner

	asked atomic.Int64
}

func (db *countingDB) QueryContext(ctx context.Context, query string, args ...any) (watermillsql.Rows, error) {
	defer db.asked.Add(1)
	return db.Beginner.QueryContext(ctx, query, args...)
}

func TestWokenSubscriberDeliversWhatWasHiddenWhenItWasNotified(t *testing.T) {
	t.Parallel()
	t.Run("native pgx", func(t *testing.T) {
		t.Parallel()
		deliversWhatWasHidden(t, newWokenSQL(t))
	})
	t.Run("database/sql", func(t *testing.T) {
		t.Parallel()
		s := newWokenSQL(t)
		db := stdlib.OpenDBFromPool(s.pool)
		t.Cleanup(func() { db.Close() })
		s.db = watermillsql.BeginnerFromStdSQL(db)
		deliversWhatWasHidden(t, s)
	})
}

func deliversWhatWasHidden(t *testing.T, s *wokenSQL) {
	t.Helper()
	db := &countingDB{Beginner: s.db}
	s.db = db
	messages := s.subscribe(t, s.subscriber(t, ""))

	writer, err := s.pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := writer.Exec(within(t), "select pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	publish(t, s.publisher(t), "hidden")
	asked := db.asked.Load()
	eventually(t, "several looks would have been in vain", func() bool { return db.asked.Load() > asked+3 })
	select {
	case <-messages:
		t.Fatal("a message is visible that this test needs hidden")
	default:
	}
	if err := writer.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	wantReceived(t, messages, "hidden")

	// It does not go on asking.
	eventually(t, "it settles", func() bool {
		asked := db.asked.Load()
		time.Sleep(50 * time.Millisecond)
		return db.asked.Load() == asked
	})
}

func TestWokenSubscriberClosesAtOnce(t *testing.T) {
	t.Parallel()
	s := newWokenSQL(t)
	subscriber := s.subscriber(t, "")
	messages := s.subscribe(t, subscriber)
	publish(t, s.publisher(t), "1")
	wantReceived(t, messages, "1")

	var closing sync.WaitGroup
	for range 3 {
		closing.Go(func() {
			if err := subscriber.Close(); err != nil {
				t.Error(err)
			}
			select {
			case _, open := <-messages:
				if open {
					t.Error("a message after Close")
				}
			default:
				t.Error("Close returned before the channel was closed")
			}
		})
	}
	closed := make(chan struct{})
	go func() { defer close(closed); closing.Wait() }()
	select {
	case <-closed:
	case <-time.After(patience): // the poll comes in an hour
		t.Fatal("Close waits")
	}
	if _, err := subscriber.Subscribe(t.Context(), orders); !errors.Is(err, ErrClosed) {
		t.Errorf("Subscribe after Close: %v", err)
	}
	wantUnsubscribed(t, s.listener)
}

func wantUnsubscribed(t *testing.T, l *Listener) {
	t.Helper()
	eventually(t, "the listener is rid of the subscription", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.subs[TopicChannel(orders)]) == 0 && len(l.observers) == 0
	})
}

func TestWokenSubscriberEndsWithTheContext(t *testing.T) {
	t.Parallel()
	s := newWokenSQL(t)
	subscriber := s.subscriber(t, "")
	if err := subscriber.SubscribeInitialize(orders); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ending, err := subscriber.Subscribe(ctx, orders)
	if err != nil {
		t.Fatal(err)
	}
	publish(t, s.publisher(t), "1")
	wantReceived(t, ending, "1")
	cancel()
	select {
	case _, open := <-ending:
		if open {
			t.Error("a message after the end")
		}
	case <-time.After(patience):
		t.Fatal("the end of the context waits for the poll")
	}
	wantUnsubscribed(t, s.listener)
	messages := s.subscribe(t, subscriber)
	publish(t, s.publisher(t), "2")
	for payload := ""; payload != "2"; { // the end may have come before the acknowledgement was stored
		msg := received(t, messages)
		payload = string(msg.Payload)
		msg.Ack()
	}
}

func TestWokenSubscriberClosesAlthoughItWaitsForALock(t *testing.T) {
	t.Parallel()
	s := newWokenSQL(t)
	holder := s.subscriber(t, "")
	held := s.subscribe(t, holder)
	publish(t, s.publisher(t), "1")
	received(t, held) // and not acknowledged

	waiting := s.subscriber(t, "")
	s.subscribe(t, waiting)
	eventually(t, "one waits for the other", func() bool {
		var blocked bool
		err := s.pool.QueryRow(within(t), "select exists (select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database())").Scan(&blocked)
		return err == nil && blocked
	})
	closed := make(chan error, 1)
	go func() { closed <- waiting.Close() }()
	select {
	case err := <-closed:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(20 * time.Second): // the holder gives up after 30
		t.Error("Close waits for another subscriber's handler")
	}
}

func TestWokenSubscriberHandsOverTheTransaction(t *testing.T) {
	t.Parallel()
	s := newWokenSQL(t)
	execute(t, s.pool, "create table handled (payload text)")
	messages := s.subscribe(t, s.subscriber(t, ""))
	publish(t, s.publisher(t), "1")
	msg := received(t, messages)
	tx, _ := watermillsql.TxFromContext(msg.Context())
	native, ok := tx.(*watermillsql.PgxTx)
	if !ok {
		t.Fatalf("the transaction is a %T", tx)
	}
	if _, err := native.Exec(within(t), "insert into handled values ($1)", string(msg.Payload)); err != nil {
		t.Fatal(err)
	}
	payloads, err := queryTexts(t, native.Tx)
	if err != nil || len(payloads) != 1 {
		t.Errorf("the handler's own query returns %v, %v", payloads, err)
	}
	msg.Ack()
	eventually(t, "it commits with the acknowledgement", func() bool {
		payloads, err := queryTexts(t, s.pool)
		return err == nil && len(payloads) == 1
	})
}

func queryTexts(t *testing.T, db interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
},
) ([]string, error) {
	t.Helper()
	rows, err := db.Query(within(t), "select payload from handled")
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}

// A subscriber that lost a race must know it from an empty topic.
func TestNativePgxReportsAnErrorThatComesWithTheRows(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	execute(t, pool, "create table counter (n int)")
	execute(t, pool, "insert into counter select generate_series(1, 3)")
	db := withRowErrors(watermillsql.BeginnerFromPgx(pool))
	begin := func() watermillsql.Tx {
		tx, err := db.BeginTx(within(t), &sql.TxOptions{Isolation: sql.LevelRepeatableRead})
		if err != nil {
			t.Fatal(err)
		}
		return tx
	}
	const query = "select n from counter order by n for update"

	first, second := begin(), begin()
	defer second.Rollback()
	rows, err := first.QueryContext(within(t), query)
	if err != nil {
		t.Fatal(err)
	}
	var all []int
	for rows.Next() {
		var n int
		if err := rows.Scan(&n); err != nil {
			t.Fatal(err)
		}
		all = append(all, n)
	}
	rows.Close()
	if fmt.Sprint(all) != "[1 2 3]" {
		t.Errorf("the rows are %v", all)
	}
	lost := make(chan error, 1)
	go func() {
		_, err := second.QueryContext(within(t), query)
		lost <- err
	}()
	eventually(t, "one waits for the other", func() bool {
		var blocked bool
		err := pool.QueryRow(within(t), "select exists (select from pg_locks where not granted)").Scan(&blocked)
		return err == nil && blocked
	})
	if _, err := first.ExecContext(within(t), "update counter set n = n + 1"); err != nil {
		t.Fatal(err)
	}
	if err := first.Commit(); err != nil {
		t.Fatal(err)
	}
	var reason *pgconn.PgError
	if err := <-lost; !errors.As(err, &reason) || reason.Code != "40001" || !contended(err) {
		t.Errorf("who lost the race is told: %v", err)
	}
	if _, changed := withRowErrors(watermillsql.StdSQLBeginner{}).(watermillsql.StdSQLBeginner); !changed {
		t.Error("database/sql is changed, too")
	}
}

func TestNewWokenSubscriberReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := NewWokenSubscriber(nil, watermillsql.SubscriberConfig{BackoffManager: watermillsql.NewDefaultBackoffManager(0, 0)},
		WokenConfig{Wake: WakeConfig{PollInterval: -1}})
	wantMentioned(t, err, "WakeConfig.PollInterval", "WokenConfig.Listener", "BackoffManager", "the db of bus.NewWokenSubscriber is nil")

	s := newWokenSQL(t)
	subscriber, err := NewWokenSubscriber(s.db, watermillsql.SubscriberConfig{SchemaAdapter: s.schema, OffsetsAdapter: s.offsets},
		WokenConfig{Listener: s.listener, Channel: func(string) string { return "" }, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer subscriber.Close()
	_, err = subscriber.Subscribe(t.Context(), orders)
	wantMentioned(t, err, "channel name is empty")
}

func TestWokenSubscriberHeedsWatermillsIntervals(t *testing.T) {
	t.Parallel()
	s := wokenSQLOn(t, pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 4 }))
	subscriber, err := NewWokenSubscriber(s.db, watermillsql.SubscriberConfig{
		SchemaAdapter: s.schema, OffsetsAdapter: s.offsets, PollInterval: 3 * time.Second, RetryInterval: 4 * time.Second,
	}, WokenConfig{Listener: s.listener})
	if err != nil {
		t.Fatal(err)
	}
	defer subscriber.Close()
	want := WakeConfig{PollInterval: 30 * time.Second, UnhealthyInterval: 3 * time.Second, RetryDelay: 4 * time.Second}
	if got := subscriber.woken.Wake.withDefaults(); got != want {
		t.Errorf("intervals are %+v, want %+v", got, want)
	}
}
