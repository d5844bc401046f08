package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

const (
	// lease is short, so that one need not wait long for what a killed worker leaves behind.
	lease = 5 * time.Second
	// shutdownTimeout bounds the orderly end of a process.
	shutdownTimeout = 10 * time.Second
)

// workerReport is what a worker says at its end.
type workerReport struct {
	Engine workflow.EngineStatus `json:"engine"`
}

// runWorker executes runs, and relays the outbox to NATS, until it is told to stop.
func runWorker(ctx context.Context, child *childProcess) (any, error) {
	pool, err := connect(ctx, child, 10)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	payments, err := connect(ctx, child, 4) // the provider's own
	if err != nil {
		return nil, err
	}
	defer payments.Close()
	publisher, err := newPublisher(child)
	if err != nil {
		return nil, err
	}
	defer closeAll(child.logger, publisher)

	var app *romancy.App
	ourShop := &shop{worker: child.Name, outbox: func() *outbox.Writer { return app.Outbox() }}
	app = romancy.NewApp(
		romancy.WithPool(pool),
		romancy.WithListenNotify(&child.Notify),
		romancy.WithWorkflows(newOrderFlow(ourShop, &provider{pool: payments})),
		romancy.WithOutboxPublisher(publisher),
		romancy.WithLease(lease),
		romancy.WithLogger(child.logger),
	)
	if err := app.Start(ctx); err != nil {
		return nil, err
	}
	child.ready()
	<-ctx.Done()
	report := workerReport{Engine: app.Status().Engine}
	return report, shutdown(app)
}

// connect makes a pool of at most size connections, which pg_stat_activity shows under the process's name.
func connect(ctx context.Context, child *childProcess, size int32) (*pgxpool.Pool, error) {
	config, err := pgxpool.ParseConfig(child.Database)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	config.MaxConns = size
	config.ConnConfig.RuntimeParams["application_name"] = child.Name
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("database: %w", err)
	}
	return pool, nil
}

func shutdown(app *romancy.App) error {
	ctx, cancel := context.WithTimeoutCause(context.Background(), shutdownTimeout, errors.New("the process's shutdown limit"))
	defer cancel()
	return app.Shutdown(ctx)
}
