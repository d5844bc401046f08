package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/dbos-inc/dbos-transact-golang/dbos"
)

// dbosSystem is DBOS as an application uses it. Its notifications by LISTEN are on, as they are by default on PostgreSQL;
// runs are started where they execute (RunWorkflow), which is faster than its queues, which poll; steps are its plain steps.
type dbosSystem struct {
	client  dbos.Client
	context dbos.Context // nil outside
}

func newDBOS(ctx context.Context, as assignment) (system, error) {
	url, err := withParameter(as.URL, "pool_max_conns", fmt.Sprint(poolConnections))
	if err != nil {
		return nil, err
	}
	logger := slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelError}))
	if as.Outside {
		client, err := dbos.NewClient(ctx, dbos.ClientConfig{DatabaseURL: url, AppName: "bench", Logger: logger})
		if err != nil {
			return nil, err
		}
		return &dbosSystem{client: client}, nil
	}
	running, err := dbos.NewContext(ctx, dbos.Config{DatabaseURL: url, AppName: "bench", ApplicationVersion: "1", Logger: logger})
	if err != nil {
		return nil, err
	}
	dbos.RegisterWorkflow(running, dbosFiveSteps)
	dbos.RegisterWorkflow(running, dbosReceiver)
	dbos.RegisterWorkflow(running, dbosSleeper)
	if err := dbos.Launch(running); err != nil {
		return nil, err
	}
	return &dbosSystem{client: running, context: running}, nil
}

func dbosFiveSteps(ctx dbos.Context, n int) (int, error) {
	for range stepsPerRun {
		var err error
		if n, err = dbos.RunAsStep(ctx, func(context.Context) (int, error) { return addOne(n), nil }, dbos.WithStepName("step")); err != nil {
			return n, err
		}
	}
	return n, nil
}

func dbosReceiver(ctx dbos.Context, messages int) (int, error) {
	for range messages {
		if _, err := dbos.Recv[int](ctx, channel, foreverSleep); err != nil {
			return 0, err
		}
		observed.arrivals <- time.Now()
	}
	return messages, nil
}

func dbosSleeper(ctx dbos.Context, sleep time.Duration) (int, error) {
	begun := time.Now()
	if _, err := dbos.Sleep(ctx, sleep); err != nil {
		return 0, err
	}
	observed.lateness <- time.Since(begun) - sleep
	return 0, nil
}

func (d *dbosSystem) stop(context.Context) error { return dbos.Shutdown(d.client, 10*time.Second) }

func (d *dbosSystem) fiveSteps(context.Context) error {
	run, err := dbos.RunWorkflow(d.context, dbosFiveSteps, 0)
	if err != nil {
		return err
	}
	observed.points.Add(1)
	defer observed.points.Add(1)
	return wantFive(run.GetResult())
}

func (d *dbosSystem) startReceiver(_ context.Context, messages int) (string, error) {
	run, err := dbos.RunWorkflow(d.context, dbosReceiver, messages)
	if err != nil {
		return "", err
	}
	return run.GetWorkflowID(), nil
}

func (d *dbosSystem) send(_ context.Context, to string, message int) error {
	return dbos.Send(d.client, to, message, channel)
}

func (d *dbosSystem) startSleeper(_ context.Context, sleep time.Duration) error {
	_, err := dbos.RunWorkflow(d.context, dbosSleeper, sleep)
	return err
}
