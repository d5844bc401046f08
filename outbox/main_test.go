package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

// patience is how long a test waits for what must happen.
const patience = 30 * time.Second

// never is an interval that no test reaches: what happens then happens without polling.
const never = time.Hour

// received is one call of a recorder, as it ended.
type received struct {
	topic, id, key, payload string
	metadata                message.Metadata
	err                     error
}

// recorder is a publisher that remembers.
type recorder struct {
	// answer decides what a call returns. Nil: nil.
	answer func(msg *message.Message) error

	mu    sync.Mutex
	calls []received
	ok    int           // calls without an error
	more  chan struct{} // closed and replaced by each call
}

func newRecorder() *recorder { return &recorder{more: make(chan struct{})} }

func (r *recorder) Publish(topic string, messages ...*message.Message) error {
	msg := messages[0]
	var err error
	if r.answer != nil {
		err = r.answer(msg)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, received{
		topic: topic, id: msg.UUID, key: msg.Metadata.Get(MetadataKey), payload: string(msg.Payload), metadata: msg.Metadata, err: err,
	})
	if err == nil {
		r.ok++
	}
	close(r.more)
	r.more = make(chan struct{})
	return err
}

func (r *recorder) Close() error { return errors.New("the relay must not close what it does not own") }

// snapshot returns the calls so far.
func (r *recorder) snapshot() []received {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.calls)
}

// published returns the IDs of the calls that succeeded, in order.
func (r *recorder) published() []string {
	var ids []string
	for _, call := range r.snapshot() {
		if call.err == nil {
			ids = append(ids, call.id)
		}
	}
	return ids
}

// until waits until the calls so far satisfy enough, which is called under the lock.
func (r *recorder) until(t *testing.T, what string, enough func([]received) bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		r.mu.Lock()
		more, calls, done := r.more, len(r.calls), enough(r.calls)
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-more:
		case <-deadline:
			t.Fatalf("still waiting for %s after %v and %d calls", what, patience, calls)
		}
	}
}

// untilPublished waits for n successful calls.
func (r *recorder) untilPublished(t *testing.T, n int) {
	t.Helper()
	r.until(t, fmt.Sprintf("%d published events", n), func([]received) bool { return r.ok >= n })
}

// eventually polls for what cannot be waited for.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("still not so after %v: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

var discard = slog.New(slog.DiscardHandler)

// testRelay returns a relay with short times that is not started.
func testRelay(t *testing.T, pool *pgxpool.Pool, publisher message.Publisher, change ...func(*RelayConfig)) *Relay {
	t.Helper()
	config := RelayConfig{
		Pool: pool, Publisher: publisher, PollInterval: 20 * time.Millisecond, InitialBackoff: 10 * time.Millisecond,
		MaxBackoff: 50 * time.Millisecond, Logger: discard,
	}
	for _, c := range change {
		c(&config)
	}
	r, err := NewRelay(config)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// startRelay returns a running relay, shut down when the test ends.
func startRelay(t *testing.T, pool *pgxpool.Pool, publisher message.Publisher, change ...func(*RelayConfig)) *Relay {
	t.Helper()
	r := testRelay(t, pool, publisher, change...)
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, r) })
	return r
}

func shutdown(t *testing.T, r *Relay) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.Shutdown(ctx); err != nil {
		t.Errorf("shut down: %v", err)
	}
}

func startListener(t *testing.T, pool *pgxpool.Pool, disabled bool) *bus.Listener {
	t.Helper()
	l, err := bus.NewListener(bus.ListenerConfig{Pool: pool, Logger: discard, Disabled: disabled})
	if err != nil {
		t.Fatal(err)
	}
	if err := l.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := l.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return l
}

// add writes events in a transaction of their own.
func add(t *testing.T, pool *pgxpool.Pool, events ...Event) {
	t.Helper()
	if err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error { return Add(within(t), tx, events...) }); err != nil {
		t.Fatal(err)
	}
}

// numbered returns n events of one key, with IDs key-0, key-1, ...
func numbered(key string, n int) []Event {
	events := make([]Event, n)
	for i := range events {
		events[i] = Event{ID: fmt.Sprintf("%s-%d", key, i), Topic: "numbers", Key: key, Payload: []byte(fmt.Sprint(i))}
	}
	return events
}

// ids returns the IDs of events.
func ids(events []Event) []string {
	var ids []string
	for _, e := range events {
		ids = append(ids, e.ID)
	}
	return ids
}

// query returns the one value of the one row of a query.
func query[T any](t *testing.T, pool *pgxpool.Pool, sql string, args ...any) T {
	t.Helper()
	var v T
	if err := pool.QueryRow(within(t), sql, args...).Scan(&v); err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
	return v
}

// untilEmpty waits until nothing is left to deliver and no slot has an owner.
func untilEmpty(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	eventually(t, "the outbox is empty and its slots are free", func() bool {
		return query[int](t, pool, "select (select count(*) from romancy.outbox where dead_at is null) + (select count(*) from romancy.outbox_slots where owner is not null)") == 0
	})
}

func equal(t *testing.T, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %q, want %q", what, got, want)
	}
}

func sorted(s []string) []string { return slices.Sorted(slices.Values(s)) }
