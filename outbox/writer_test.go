package outbox

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"golang.org/x/sync/errgroup"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestRollbackSendsNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	startRelay(t, pool, published)
	wrong := errors.New("changed my mind")
	err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error {
		if err := Add(within(t), tx, Event{ID: "rolled-back", Topic: "t"}); err != nil {
			t.Error(err)
		}
		return wrong
	})
	if !errors.Is(err, wrong) {
		t.Fatal(err)
	}
	add(t, pool, Event{ID: "committed", Topic: "t"})
	published.untilPublished(t, 1)
	untilEmpty(t, pool)
	equal(t, "published", published.published(), []string{"committed"})
}

// A writer that took a second connection while the caller holds one would hang here for ever.
func TestWritersDoNotNeedAConnectionOfTheirOwn(t *testing.T) {
	t.Parallel()
	const writers = 60
	for _, name := range []string{"notified in the transaction", "with a notifier"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 4 })
			var config WriterConfig
			if name == "with a notifier" {
				config.Notifier = startNotifier(t, pool)
			}
			w, err := NewWriter(config)
			if err != nil {
				t.Fatal(err)
			}
			published := newRecorder()
			startRelay(t, pool, published, func(c *RelayConfig) { c.Listener = startListener(t, pool, false) })
			group, ctx := errgroup.WithContext(within(t))
			for i := range writers {
				group.Go(func() error {
					return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
						return w.Add(ctx, tx, Event{ID: fmt.Sprint(i), Topic: "t"}, Event{ID: fmt.Sprint(i, "b"), Topic: "t"})
					})
				})
			}
			if err := group.Wait(); err != nil {
				t.Fatal(err)
			}
			published.untilPublished(t, 2*writers)
			untilEmpty(t, pool)
			if n := len(published.snapshot()); n != 2*writers {
				t.Errorf("%d calls of the publisher, want %d", n, 2*writers)
			}
		})
	}
}

func startNotifier(t *testing.T, pool *pgxpool.Pool) *bus.Notifier {
	t.Helper()
	n, err := bus.NewNotifier(bus.NotifierConfig{Pool: pool, Logger: discard})
	if err != nil {
		t.Fatal(err)
	}
	if err := n.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Error(err)
		}
	})
	return n
}

func TestAddIsOneRoundTrip(t *testing.T) {
	t.Parallel()
	var trips *pgtest.RoundTrips
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { trips = pgtest.CountRoundTrips(&c.ConnConfig.Config) })
	ctx := within(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	for i := range 3 { // the first prepares
		before := trips.Count()
		if err := Add(ctx, tx, numbered(fmt.Sprint("k", i), 50)...); err != nil {
			t.Fatal(err)
		}
		if n := trips.Count() - before; i > 0 && n != 1 {
			t.Errorf("adding 50 events took %d round trips, want 1", n)
		}
	}
}

func TestAddRefusesBeforeTheTransactionIsTouched(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ok := Event{ID: "ok", Topic: "t"}
	long := strings.Repeat("x", MaxIDLength+1)
	for _, test := range []struct {
		name   string
		events []Event
		field  string
		index  int
		says   string
	}{
		{"no topic", []Event{ok, {ID: "a"}}, "Topic", 1, "is empty"},
		{"long topic", []Event{{Topic: long}}, "Topic", 0, "256 bytes"},
		{"NUL in the topic", []Event{{Topic: "a\x00b"}}, "Topic", 0, "NUL"},
		{"broken topic", []Event{{Topic: "a\xff"}}, "Topic", 0, "UTF-8"},
		{"long id", []Event{{ID: long, Topic: "t", Key: "k"}}, "ID", 0, "256 bytes"},
		{"NUL in the id", []Event{{ID: "\x00", Topic: "t", Key: "k"}}, "ID", 0, "NUL"},
		{"broken id", []Event{{ID: "\xc3", Topic: "t", Key: "k"}}, "ID", 0, "UTF-8"},
		{"same id twice", []Event{ok, ok}, "ID", 1, "event 0"},
		{"long key", []Event{{Topic: "t", Key: long}}, "Key", 0, "256 bytes"},
		{"NUL in the key", []Event{{Topic: "t", Key: "k\x00"}}, "Key", 0, "NUL"},
		{"broken header", []Event{{Topic: "t", Headers: map[string]string{"h": "\xff"}}}, "Headers", 0, "UTF-8"},
		{"NUL in a header", []Event{{Topic: "t", Headers: map[string]string{"h": "\x00"}}}, "Headers", 0, "NUL"},
		{"unnamed header", []Event{{Topic: "t", Headers: map[string]string{"": "v"}}}, "Headers", 0, "empty name"},
		{"header of ours", []Event{{Topic: "t", Headers: map[string]string{MetadataKey: "v"}}}, "Headers", 0, "fields ID and Key"},
		{"too large", []Event{{Topic: "t", Payload: make([]byte, 1<<20+1)}}, "Payload", 0, "MaxEventSize"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			ctx := within(t)
			if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				err := Add(ctx, tx, test.events...)
				var invalid *InvalidEventError
				if !errors.As(err, &invalid) {
					t.Fatalf("got %v, want an InvalidEventError", err)
				}
				if invalid.Field != test.field || invalid.Index != test.index || !strings.Contains(err.Error(), test.says) {
					t.Errorf("got %v", err)
				}
				_, err = tx.Exec(ctx, "select 1") // fails in an aborted transaction
				return err
			}); err != nil {
				t.Fatal(err)
			}
		})
	}
	t.Run("all at once", func(t *testing.T) {
		t.Parallel()
		var mistakes interface{ Unwrap() []error }
		_, err := encode([]Event{{}, {ID: long, Key: "k"}}, 10)
		if !errors.As(err, &mistakes) || len(mistakes.Unwrap()) != 3 {
			t.Errorf("got %v, want three mistakes", err)
		}
	})
	t.Run("without a transaction", func(t *testing.T) {
		t.Parallel()
		if err := Add(within(t), nil, ok); err == nil || !strings.Contains(err.Error(), "tx is nil") {
			t.Errorf("got %v", err)
		}
	})
}

func TestWriterConfigReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := NewWriter(WriterConfig{Schema: "No Schema", MaxEventSize: -1})
	if err == nil || !strings.Contains(err.Error(), "No Schema") || !strings.Contains(err.Error(), "MaxEventSize") {
		t.Errorf("got %v", err)
	}
}

func TestTxPublishesThroughTheOutbox(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	if err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error {
		p := Tx(tx)
		first := message.NewMessage("first", []byte("1"))
		first.Metadata = message.Metadata{MetadataKey: "customer-7", MetadataEventID: "of an earlier relay", "trace": "abc"}
		second := message.NewMessage("second", nil)
		if err := p.Publish("orders", first, second); err != nil {
			return err
		}
		if err := p.Publish("orders"); err != nil {
			t.Errorf("nothing to publish: %v", err)
		}
		if err := p.Close(); err != nil {
			return err
		}
		if err := p.Publish("orders", second); err == nil {
			t.Error("a closed publisher publishes")
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	startRelay(t, pool, published)
	published.untilPublished(t, 2)
	for _, call := range published.snapshot() {
		switch {
		case call.topic != "orders" || call.metadata.Get(MetadataEventID) != call.id:
			t.Errorf("got %+v", call)
		case call.id == "first" && (call.payload != "1" || call.key != "customer-7" || len(call.metadata) != 3 || call.metadata.Get("trace") != "abc"):
			t.Errorf("got %+v", call)
		case call.id == "second" && (call.payload != "" || call.key != "second" || len(call.metadata) != 2):
			t.Errorf("got %+v", call)
		}
	}
}

func TestTxUsesTheContextOfTheMessage(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := within(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	canceled, cancel := context.WithCancel(ctx)
	cancel()
	if err := Tx(tx).Publish("t", message.NewMessageWithContext(canceled, "id", nil)); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the message's context to matter", err)
	}
}

// Identity values must follow the order of the arguments, for any number of them.
func TestEventsOfOneCallKeepTheirOrder(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	events := numbered("k", 3000)
	add(t, pool, events...)
	published := newRecorder()
	startRelay(t, pool, published)
	published.untilPublished(t, len(events))
	equal(t, "published", published.published(), ids(events))
}

// An App that is not started has no writer yet.
func TestNilWriterSaysSo(t *testing.T) {
	t.Parallel()
	var w *Writer
	if err := w.Add(t.Context(), nil, Event{Topic: "t"}); err == nil || !strings.Contains(err.Error(), "the writer is nil") {
		t.Errorf("got %v", err)
	}
}
