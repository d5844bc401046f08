package integration_test

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

func (w *faultsWorld) driveOutbox() error {
	// Two writers, as with and without a notifier.
	for n, add := range []func(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error{w.desk.Outbox().Add, outbox.Add} {
		for i, topic := range []string{"plain", "fragile", "plain"} {
			id := fmt.Sprintf("event-%d-%d", n, i)
			if err := w.addEvent(add, id, topic); err != nil {
				return err
			}
		}
	}
	if err := w.addEvent(outbox.Add, "slow", "slow"); err != nil {
		return err
	}
	// So many that the marks are raised. Nothing else is the matter with them.
	if _, err := w.direct.Exec(w.ctx, `insert into romancy.outbox (event_id, topic, key, slot, payload)
		select 'bulk-' || n, 'bulk', 'bulk-' || n % 64, n % 64, '' from generate_series(1, $1::integer) n`, faultsBulk); err != nil {
		return err
	}
	for _, id := range []string{"poison-requeued", "poison-discarded", "poison-old"} {
		if err := w.addEvent(outbox.Add, id, "poison"); err != nil {
			return err
		}
	}
	if err := w.until("the poison is set aside", "select count(*) = 3 from romancy.outbox where dead_at is not null"); err != nil {
		return err
	}
	if _, err := w.direct.Exec(w.ctx, "update romancy.outbox set dead_at = dead_at - interval '2 hours' where event_id = 'poison-old'"); err != nil {
		return err
	}
	for what, call := range map[string]func() error{
		"discard": func() error { _, err := w.relay.DiscardDeadLetters(w.ctx, "poison-discarded"); return err },
		"retain":  func() error { _, err := w.relay.Retain(w.ctx); return err },
		"stats":   func() error { _, err := w.relay.Stats(w.ctx); return err },
		"letters": func() error { _, err := w.relay.DeadLetters(w.ctx, 10, nil); return err },
		"sweep":   func() error { _, err := w.relay.Sweep(w.ctx); return err },
	} {
		if err := w.persist(what, call); err != nil {
			return err
		}
	}
	w.poisoned.Store(false)
	if err := w.persist("requeue", func() error { _, err := w.relay.Requeue(w.ctx, "poison-requeued"); return err }); err != nil {
		return err
	}
	return w.until("the outbox is empty", "select not exists (select from romancy.outbox)")
}

// addEvent adds an event once: a transaction whose outcome is not known is asked for.
func (w *faultsWorld) addEvent(add func(ctx context.Context, tx pgx.Tx, events ...outbox.Event) error, id, topic string) error {
	return w.persist("add an event", func() error {
		return pgx.BeginFunc(w.ctx, w.deskPool, func(tx pgx.Tx) error {
			var there bool
			if err := w.direct.QueryRow(w.ctx, "select exists (select from shop.effects where key = $1::text)", id).Scan(&there); err != nil || there {
				return err
			}
			if _, err := tx.Exec(w.ctx, "insert into shop.effects (key, what) values ($1::text, 'event')", id); err != nil {
				return err
			}
			return add(w.ctx, tx, outbox.Event{ID: id, Topic: topic, Key: id, Payload: []byte(id)})
		})
	})
}

// driveLetters writes to a run that has nothing else to wake it: the next letter follows when the last one has arrived.
func (w *faultsWorld) driveLetters() error {
	run, err := startRun(w, w.flows.pal, w.desk.Engine(), faultsLetters, workflow.WithID(faultsPal))
	if err != nil {
		return err
	}
	for n := range faultsLetters {
		time.Sleep(10 * time.Millisecond) // it is parked by then, mostly
		if err := w.send(faultsPal, "letters", fmt.Sprint("letter ", n)); err != nil {
			return err
		}
		if err := w.awaitNotes(faultsPal, n+1); err != nil {
			return err
		}
	}
	return wantResult(w, run, faultsLetters)
}

// driveBus notifies and publishes as an application may: within transactions and after them.
func (w *faultsWorld) driveBus() error {
	channel := w.desk.Channels().OutboxPending
	publisher, err := bus.NewPublisher(w.deskPool, bus.PublisherConfig{})
	if err != nil {
		return err
	}
	coalescing, err := bus.NewNotifier(bus.NotifierConfig{Pool: w.deskPool, Mode: bus.ModeCoalesced, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		return err
	}
	if err := coalescing.Start(w.ctx); err != nil {
		return err
	}
	inTransaction := func(do func(tx pgx.Tx) error) func() error {
		return func() error { return pgx.BeginFunc(w.ctx, w.deskPool, do) }
	}
	for range 3 {
		for what, call := range map[string]func() error{
			"publish to a channel":     func() error { return publisher.Publish(channel, newFaultsMessage(w.ctx)) },
			"publish in a transaction": inTransaction(func(tx pgx.Tx) error { return bus.TxPublisher(tx).Publish(channel, newFaultsMessage(w.ctx)) }),
			"notify after a transaction": inTransaction(func(tx pgx.Tx) error {
				return coalescing.NotifyTx(w.ctx, tx, channel, `{"event_id":"coalesced"}`)
			}),
		} {
			if err := w.persist(what, call); err != nil {
				return err
			}
		}
		time.Sleep(20 * time.Millisecond) // the notifier asks whether the transactions have committed
	}
	// What cannot be sent at the end is dropped and said: a sweep finds it.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := coalescing.Close(ctx); err != nil && ctx.Err() != nil {
		return fmt.Errorf("close the notifier: %w", err)
	}
	return nil
}

// driveWoken has a subscriber of watermill-sql's own topics receive all that is published there.
func (w *faultsWorld) driveWoken() error {
	schema := watermillsql.DefaultPostgreSQLSchema{}
	subscriber, err := bus.NewWokenSubscriber(watermillsql.BeginnerFromPgx(w.deskPool), watermillsql.SubscriberConfig{
		SchemaAdapter: schema, OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{}, InitializeSchema: true, ResendInterval: 20 * time.Millisecond,
	}, bus.WokenConfig{
		Listener: w.desk.Listener(), Logger: slog.New(slog.DiscardHandler), Wake: bus.WakeConfig{PollInterval: time.Second, RetryDelay: 100 * time.Millisecond},
	})
	if err != nil {
		return err
	}
	defer subscriber.Close()
	var messages <-chan *message.Message
	if err := w.persist("subscribe to a topic", func() (err error) {
		messages, err = subscriber.Subscribe(w.ctx, "letters")
		return err
	}); err != nil {
		return err
	}
	plain := pgtest.Connect(w.t, w.url) // finds watermill-sql's tables, as the desk does
	publisher, err := watermillsql.NewPublisher(watermillsql.BeginnerFromPgx(plain), watermillsql.PublisherConfig{SchemaAdapter: bus.NotifyingSchema(schema)}, watermill.NopLogger{})
	if err != nil {
		return err
	}
	writer, err := plain.Begin(w.ctx) // what is published is hidden as long as it is open
	if err != nil {
		return err
	}
	defer writer.Rollback(context.Background())
	if _, err := writer.Exec(w.ctx, "select pg_current_xact_id()"); err != nil {
		return err
	}
	missing := map[string]bool{}
	for range 5 {
		msg := newFaultsMessage(w.ctx)
		missing[msg.UUID] = true
		if err := publisher.Publish("letters", msg); err != nil {
			return err
		}
	}
	for asked := time.Now(); time.Since(asked) < 3*time.Second; time.Sleep(10 * time.Millisecond) { // it should ask meanwhile
		if (faultsStatement{Name: "Visibility"}).times(w.executed()) > 0 {
			break
		}
	}
	if err := writer.Rollback(w.ctx); err != nil {
		return err
	}
	for len(missing) > 0 {
		select {
		case msg := <-messages:
			delete(missing, msg.UUID) // at least once is what watermill-sql promises
			msg.Ack()
		case <-w.ctx.Done():
			return fmt.Errorf("%d letters are missing: %w", len(missing), w.ctx.Err())
		}
	}
	time.Sleep(300 * time.Millisecond) // an idle subscriber asks whether anything is still hidden
	return nil
}

// driveScrape waits until the metrics have been collected, which ask the database for one of them, some seconds after it has
// refused to say.
func (w *faultsWorld) driveScrape() error {
	for began := time.Now(); time.Since(began) < 30*time.Second; time.Sleep(20 * time.Millisecond) {
		if (faultsStatement{Name: "CountReady"}).times(w.executed()) > 0 {
			break
		}
	}
	return nil
}
