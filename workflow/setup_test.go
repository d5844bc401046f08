package workflow_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow"
)

// patience bounds every wait of these tests: it only decides how long a failure takes.
const patience = 60 * time.Second

// testContext ends after patience.
func testContext(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// worker is an engine with its own listener and notifier, as a process has them.
type worker struct {
	*workflow.Engine
	listener *bus.Listener
	notifier *bus.Notifier
}

func (w *worker) shutdown(t *testing.T) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := w.Shutdown(ctx); err != nil {
		t.Errorf("shut the engine down: %v", err)
	}
	if err := w.listener.Close(ctx); err != nil {
		t.Errorf("close the listener: %v", err)
	}
	if err := w.notifier.Close(ctx); err != nil {
		t.Errorf("close the notifier: %v", err)
	}
}

type workerOption func(*workflow.Config, *bus.ListenerConfig, *bus.NotifierConfig)

// withoutNotify is a worker in a world where no notification ever arrives.
func withoutNotify(_ *workflow.Config, listener *bus.ListenerConfig, notifier *bus.NotifierConfig) {
	listener.Disabled, notifier.Disabled = true, true
}

func configured(change func(*workflow.Config)) workerOption {
	return func(config *workflow.Config, _ *bus.ListenerConfig, _ *bus.NotifierConfig) { change(config) }
}

// startWorker starts an engine for definitions on pool; it is shut down with the test.
func startWorker(t *testing.T, pool *pgxpool.Pool, definitions []workflow.Definition, options ...workerOption) *worker {
	t.Helper()
	logger := slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelWarn}))
	config := workflow.Config{Pool: pool, Workflows: definitions, Logger: logger}
	listenerConfig := bus.ListenerConfig{Pool: pool, Logger: logger}
	notifierConfig := bus.NotifierConfig{Pool: pool, Logger: logger}
	for _, option := range options {
		option(&config, &listenerConfig, &notifierConfig)
	}
	listener, err := bus.NewListener(listenerConfig)
	if err != nil {
		t.Fatal(err)
	}
	notifier, err := bus.NewNotifier(notifierConfig)
	if err != nil {
		t.Fatal(err)
	}
	config.Listener, config.Notifier = listener, notifier
	engine, err := workflow.NewEngine(config)
	if err != nil {
		t.Fatal(err)
	}
	started := &worker{Engine: engine, listener: listener, notifier: notifier}
	ctx := testContext(t)
	if err := listener.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := notifier.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { started.shutdown(t) })
	return started
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(line []byte) (int, error) {
	w.t.Logf("%s", line)
	return len(line), nil
}

// eventually waits until holds does.
func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	deadline := time.Now().Add(patience)
	for !holds() {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// count returns the single number that query yields.
func count(t *testing.T, pool *pgxpool.Pool, query string, arguments ...any) int {
	t.Helper()
	var number int
	if err := pool.QueryRow(testContext(t), query, arguments...).Scan(&number); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return number
}
