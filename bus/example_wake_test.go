package bus_test

import (
	"context"
	"errors"
	"fmt"
	"log"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

// Watermill-sql without its polling: the publisher's INSERT notifies, and the subscriber waits for that.
func ExampleWokenSubscriber() {
	ctx := context.Background()
	pool, err := pgxpool.New(ctx, "postgres://localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool})
	if err != nil {
		log.Fatal(err)
	}
	if err := listener.Start(ctx); err != nil {
		log.Fatal(err)
	}

	db, schema := watermillsql.BeginnerFromPgx(pool), watermillsql.DefaultPostgreSQLSchema{}
	subscriber, err := bus.NewWokenSubscriber(db, watermillsql.SubscriberConfig{
		SchemaAdapter:    schema,
		OffsetsAdapter:   watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, bus.WokenConfig{Listener: listener})
	if err != nil {
		log.Fatal(err)
	}
	publisher, err := watermillsql.NewPublisher(db, watermillsql.PublisherConfig{
		SchemaAdapter: bus.NotifyingSchema(schema),
	}, watermill.NopLogger{})
	if err != nil {
		log.Fatal(err)
	}

	messages, err := subscriber.Subscribe(ctx, "orders")
	if err != nil {
		log.Fatal(err)
	}
	if err := publisher.Publish("orders", message.NewMessage(watermill.NewUUID(), []byte(`{"id": 42}`))); err != nil {
		log.Fatal(err)
	}
	msg := <-messages // a few milliseconds later
	fmt.Println(string(msg.Payload))
	msg.Ack()

	// From the inside out. Close waits for no poll.
	if err := errors.Join(subscriber.Close(), listener.Close(ctx)); err != nil {
		log.Fatal(err)
	}
	pool.Close()
}

// The channel of a topic is what both sides agree on, also when neither of them is ours: a subscriber that somebody else
// builds takes the waker, which must be closed before it.
func ExampleWakeOn() {
	pool, err := pgxpool.New(context.Background(), "postgres://localhost/shop")
	if err != nil {
		log.Fatal(err)
	}
	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool})
	if err != nil {
		log.Fatal(err)
	}
	waker, err := bus.WakeOn(listener, bus.TopicChannel("orders"), bus.WakeConfig{})
	if err != nil {
		log.Fatal(err)
	}
	subscriber, err := watermillsql.NewSubscriber(watermillsql.BeginnerFromPgx(pool), watermillsql.SubscriberConfig{
		SchemaAdapter:  watermillsql.DefaultPostgreSQLSchema{},
		OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		BackoffManager: waker,
	}, watermill.NopLogger{})
	if err != nil {
		log.Fatal(err)
	}
	// ... subscriber.Subscribe(ctx, "orders"), once
	waker.Close()
	if err := subscriber.Close(); err != nil {
		log.Fatal(err)
	}
}
