package main

import (
	"context"
	"errors"
	"log/slog"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

// background is what runs beside the application's router, on its pool. [romancy.NewApp] with the options WithPool,
// WithWorkflows and WithOutboxPublisher starts the same, and periodic sweeps in River as well; an application that wants
// only one of the parts makes that one alone, as here.
type background struct {
	listener *bus.Listener    // for steps 1, 2 and 5; the others wake faster with it
	notifier *bus.Notifier    // for step 4
	engine   *workflow.Engine // for step 4
	relay    *outbox.Relay    // for step 3
}

// startBackground starts the parts, or none.
func startBackground(ctx context.Context, pool *pgxpool.Pool, broker message.Publisher, logger *slog.Logger) (*background, error) {
	b, err := newBackground(pool, broker, logger)
	if err != nil {
		return nil, err
	}
	for _, start := range []func(context.Context) error{b.listener.Start, b.notifier.Start, b.engine.Start, b.relay.Start} {
		if err := start(ctx); err != nil {
			return nil, errors.Join(err, b.stop(ctx))
		}
	}
	return b, nil
}

func newBackground(pool *pgxpool.Pool, broker message.Publisher, logger *slog.Logger) (*background, error) {
	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool, Logger: logger})
	if err != nil {
		return nil, err
	}
	notifier, err := bus.NewNotifier(bus.NotifierConfig{Pool: pool, Logger: logger})
	if err != nil {
		return nil, err
	}
	engine, err := workflow.NewEngine(workflow.Config{
		Pool: pool, Workflows: []workflow.Definition{booking}, Listener: listener, Notifier: notifier, Logger: logger,
	})
	if err != nil {
		return nil, err
	}
	relay, err := outbox.NewRelay(outbox.RelayConfig{Pool: pool, Publisher: broker, Listener: listener, Logger: logger})
	return &background{listener: listener, notifier: notifier, engine: engine, relay: relay}, err
}

// stop ends the parts in the reverse order of their start. What they were doing goes on with the next start, here or in
// another process.
func (b *background) stop(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stopLimit)
	defer cancel()
	return errors.Join(b.relay.Shutdown(ctx), b.engine.Shutdown(ctx), b.notifier.Close(ctx), b.listener.Close(ctx))
}

// listening waits until notifications arrive. Only the play needs it, because its announcement is not repeated.
func (b *background) listening(ctx context.Context) error {
	healthy := make(chan struct{}, 1)
	remove := b.listener.OnChange(func(state bus.State) {
		if state == bus.StateListening {
			select {
			case healthy <- struct{}{}:
			default:
			}
		}
	})
	defer remove()
	if b.listener.Healthy() {
		return nil
	}
	select {
	case <-healthy:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
