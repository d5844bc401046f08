package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

// An ear listens to channel over a connection of its own, and calls heard for each notification after LISTEN was
// committed, until stop. Before PostgreSQL 19 every NOTIFY wakes every session that listens, so only one ear is open at
// a time.
type ear func(ctx context.Context, pool *pgxpool.Pool, channel string, heard func(bus.WorkflowResumable)) (stop func() error, err error)

// bareEar is the loop that one would write without a library.
func bareEar(ctx context.Context, pool *pgxpool.Pool, channel string, heard func(bus.WorkflowResumable)) (func() error, error) {
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		return nil, err
	}
	if _, err := conn.Exec(ctx, "listen "+pgx.Identifier{channel}.Sanitize()); err != nil {
		return nil, errors.Join(err, conn.Close(ctx))
	}
	waiting, end := context.WithCancel(ctx)
	var failure error
	var wg sync.WaitGroup
	wg.Go(func() {
		for waiting.Err() == nil {
			n, err := conn.WaitForNotification(waiting)
			if err != nil {
				failure = err
				return
			}
			var run bus.WorkflowResumable
			if failure = json.Unmarshal([]byte(n.Payload), &run); failure != nil {
				return
			}
			heard(run)
		}
	})
	return func() error {
		end()
		wg.Wait()
		if errors.Is(failure, context.Canceled) {
			failure = nil
		}
		return errors.Join(failure, conn.Close(context.WithoutCancel(ctx)))
	}, nil
}

// subscriberEar is a loop over the messages of a bus.Subscriber. With more than one in flight each is handled by a
// goroutine of its own, as Watermill's router does it.
func subscriberEar(queue, inFlight int) ear {
	return func(ctx context.Context, pool *pgxpool.Pool, channel string, heard func(bus.WorkflowResumable)) (func() error, error) {
		subscriber, stopSubscriber, err := startSubscriber(ctx, pool, queue, inFlight)
		if err != nil {
			return nil, err
		}
		messages, err := subscriber.Subscribe(ctx, channel)
		if err != nil {
			return nil, errors.Join(err, stopSubscriber())
		}
		var failures failures
		var wg sync.WaitGroup
		handle := func(msg *message.Message) { failures.add(handleResumable(msg, heard)); msg.Ack() }
		wg.Go(func() {
			for msg := range messages {
				if inFlight == 1 {
					handle(msg)
				} else {
					wg.Go(func() { handle(msg) })
				}
			}
		})
		return func() error {
			err := stopSubscriber()
			wg.Wait()
			return errors.Join(err, failures.joined())
		}, nil
	}
}

// routerEar is a handler of Watermill's router.
func routerEar(queue int) ear {
	return func(ctx context.Context, pool *pgxpool.Pool, channel string, heard func(bus.WorkflowResumable)) (func() error, error) {
		subscriber, stopSubscriber, err := startSubscriber(ctx, pool, queue, 1)
		if err != nil {
			return nil, err
		}
		router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
		if err != nil {
			return nil, errors.Join(err, stopSubscriber())
		}
		router.AddConsumerHandler("bench", channel, subscriber, func(msg *message.Message) error { return handleResumable(msg, heard) })
		var failure error
		var wg sync.WaitGroup
		wg.Go(func() { failure = router.Run(ctx) })
		stop := func() error {
			err := router.Close()
			wg.Wait()
			return errors.Join(err, failure, stopSubscriber())
		}
		select {
		case <-router.Running():
			return stop, nil
		case <-ctx.Done():
			return nil, errors.Join(ctx.Err(), stop())
		}
	}
}

func handleResumable(msg *message.Message, heard func(bus.WorkflowResumable)) error {
	run, err := bus.Decode[bus.WorkflowResumable](msg)
	if err != nil {
		return err
	}
	heard(run)
	return nil
}

// startSubscriber returns a subscriber with a connected listener of its own; stop closes both.
func startSubscriber(ctx context.Context, pool *pgxpool.Pool, queue, inFlight int) (*bus.Subscriber, func() error, error) {
	listener, err := startListener(ctx, pool)
	if err != nil {
		return nil, nil, err
	}
	subscriber, err := bus.NewSubscriber(bus.SubscriberConfig{
		Listener: listener, Pool: pool, QueueSize: queue, MaxInFlight: inFlight, Logger: quiet(),
	})
	if err != nil {
		return nil, nil, errors.Join(err, listener.Close(context.WithoutCancel(ctx)))
	}
	return subscriber, func() error {
		return errors.Join(subscriber.Close(), listener.Close(context.WithoutCancel(ctx)))
	}, nil
}

// startListener returns a listener that is connected.
func startListener(ctx context.Context, pool *pgxpool.Pool) (*bus.Listener, error) {
	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool, Logger: quiet()})
	if err != nil {
		return nil, err
	}
	connected := make(chan struct{})
	var once sync.Once
	defer listener.OnChange(func(state bus.State) {
		if state == bus.StateListening {
			once.Do(func() { close(connected) })
		}
	})()
	if err := listener.Start(ctx); err != nil {
		return nil, err
	}
	select {
	case <-connected:
		return listener, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("listener does not connect: %w", errors.Join(ctx.Err(), listener.Close(context.WithoutCancel(ctx))))
	}
}

// failures collects errors of goroutines.
type failures struct {
	mu  sync.Mutex
	all []error
}

func (f *failures) add(err error) {
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.all = append(f.all, err)
}

func (f *failures) joined() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return errors.Join(f.all...)
}
