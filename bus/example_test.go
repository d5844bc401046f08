package bus_test

import (
	"context"
	"errors"
	"log"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

// A Watermill router that reacts to every run that can go on.
func ExampleSubscriber() {
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

	subscriber, err := bus.NewSubscriber(bus.SubscriberConfig{Listener: listener, Pool: pool})
	if err != nil {
		log.Fatal(err)
	}
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NewSlogLogger(nil))
	if err != nil {
		log.Fatal(err)
	}
	router.AddConsumerHandler("resumable", bus.ChannelsFor("romancy").WorkflowResumable, subscriber, func(msg *message.Message) error {
		run, err := bus.Decode[bus.WorkflowResumable](msg)
		if err != nil {
			return err
		}
		log.Printf("run %s of %s can go on", run.InstanceID, run.WorkflowName)
		return nil
	})
	// Run ends with ctx and closes the subscriber; the listener and the pool are closed last, by those who made them.
	if err := errors.Join(router.Run(ctx), listener.Close(context.Background())); err != nil {
		log.Fatal(err)
	}
	pool.Close()
}
