package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

// sqlPeer is a watermill-sql subscriber, and the publisher that goes with it.
type sqlPeer struct {
	name, what string
	messages   int           // how many to publish
	apart      time.Duration // and the mean time between two
	woken      bool
	poll       time.Duration // 0 for watermill-sql's default
}

// busWoken measures from the return of a Publish to the message, through watermill-sql as it is and woken.
func busWoken(ctx context.Context, b *bench, url string) error {
	many, few := 1000, 300
	if b.quick {
		many, few = 200, 100
	}
	peers := []sqlPeer{
		{name: "bus_woken_sql", what: "watermill-sql, woken", messages: many, apart: 15 * time.Millisecond, woken: true},
		{name: "bus_polled_10ms_sql", what: "watermill-sql, polling every 10 ms", messages: many, apart: 15 * time.Millisecond, poll: 10 * time.Millisecond},
		{name: "bus_polled_sql", what: "watermill-sql, polling as by default", messages: few, apart: 100 * time.Millisecond},
	}
	return withPool(ctx, url, 10, nil, func(pool *pgxpool.Pool) error {
		for _, peer := range peers {
			samples, err := peer.measure(ctx, pool)
			if err != nil {
				return fmt.Errorf("%s: %w", peer.what, err)
			}
			b.report(peer.name+"_p50", percentile(samples, 0.50), "ms", "publish to receive, "+peer.what+", p50")
			b.report(peer.name+"_p99", percentile(samples, 0.99), "ms", "  p99")
		}
		return nil
	})
}

func (p sqlPeer) measure(ctx context.Context, pool *pgxpool.Pool) (samples []time.Duration, err error) {
	subscriber, stop, err := p.subscriber(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	publisher, err := p.publisher(pool)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, publisher.Close()) }()
	messages, err := subscriber.Subscribe(ctx, p.name)
	if err != nil {
		return nil, err
	}
	arrivals := make(chan arrival, p.messages)
	go func() { // ends when the subscriber is closed
		for msg := range messages {
			arrivals <- arrival{msg.UUID, time.Now()}
			msg.Ack()
		}
	}()
	return p.publish(ctx, publisher, arrivals)
}

// arrival says when a message came.
type arrival struct {
	uuid string
	at   time.Time
}

// publish publishes, at times that no poll can be in step with, and returns how long after its commit each message came.
func (p sqlPeer) publish(ctx context.Context, publisher message.Publisher, arrivals <-chan arrival) ([]time.Duration, error) {
	committed := map[string]time.Time{}
	for range p.messages {
		if err := rest(ctx, rand.N(2*p.apart)); err != nil {
			return nil, err
		}
		msg := message.NewMessage(watermill.NewUUID(), []byte(`{"order":10248}`))
		if err := publisher.Publish(p.name, msg); err != nil {
			return nil, err
		}
		committed[msg.UUID] = time.Now()
	}
	samples := make([]time.Duration, 0, p.messages)
	limit := time.After(30 * time.Second)
	for range p.messages {
		select {
		case a := <-arrivals:
			samples = append(samples, max(a.at.Sub(committed[a.uuid]), 0))
		case <-limit:
			return nil, fmt.Errorf("only %d of %d messages arrived within 30 s", len(samples), p.messages)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return samples, nil
}

func (p sqlPeer) publisher(pool *pgxpool.Pool) (message.Publisher, error) {
	var adapter watermillsql.SchemaAdapter = watermillsql.DefaultPostgreSQLSchema{}
	if p.woken {
		adapter = bus.NotifyingSchema(adapter)
	}
	return watermillsql.NewPublisher(watermillsql.BeginnerFromPgx(pool), watermillsql.PublisherConfig{SchemaAdapter: adapter}, watermill.NopLogger{})
}

// subscriber returns the subscriber, and what closes it and its listener.
func (p sqlPeer) subscriber(ctx context.Context, pool *pgxpool.Pool) (message.Subscriber, func() error, error) {
	db := watermillsql.BeginnerFromPgx(pool)
	config := watermillsql.SubscriberConfig{
		SchemaAdapter:    watermillsql.DefaultPostgreSQLSchema{},
		OffsetsAdapter:   watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
		PollInterval:     p.poll,
	}
	if !p.woken {
		subscriber, err := watermillsql.NewSubscriber(db, config, watermill.NopLogger{})
		if err != nil {
			return nil, nil, err
		}
		return subscriber, subscriber.Close, nil
	}
	listener, err := startListener(ctx, pool)
	if err != nil {
		return nil, nil, err
	}
	closeListener := func() error { return listener.Close(context.WithoutCancel(ctx)) }
	subscriber, err := bus.NewWokenSubscriber(db, config, bus.WokenConfig{Listener: listener, Logger: quiet()})
	if err != nil {
		return nil, nil, errors.Join(err, closeListener())
	}
	return subscriber, func() error { return errors.Join(subscriber.Close(), closeListener()) }, nil
}
