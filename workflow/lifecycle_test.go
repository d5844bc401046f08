package workflow_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Starts, sends, results and shutdowns at once: every call ends, with an outcome or a clear error, and every run that was
// accepted ends, here or in the next engine.
func TestEngineSurvivesShutdownUnderLoad(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("short", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := nothing.Execute(ctx, n); err != nil {
			return 0, err
		}
		if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
		_, err := workflow.Receive[int](ctx, "numbers", workflow.WithTimeout(20*time.Millisecond))
		if err != nil && !errors.Is(err, workflow.ErrTimeout) {
			return 0, err
		}
		return n, nil
	})
	for range 5 {
		w := startWorker(t, pool, []workflow.Definition{flow})
		ctx := testContext(t)
		var wg sync.WaitGroup
		accepted := make(chan struct{}, 1)
		for range 8 {
			wg.Go(func() {
				for {
					run, err := flow.Start(ctx, w.Engine, 1)
					if err == nil {
						select {
						case accepted <- struct{}{}:
						default:
						}
						err = w.SendTo(ctx, run.ID(), "numbers", 1)
					}
					if err == nil || errors.Is(err, workflow.ErrUndeliverable) {
						_, err = run.Result(ctx)
					}
					if errors.Is(err, workflow.ErrClosed) {
						return
					}
					if err != nil {
						t.Errorf("got %v, want an outcome or ErrClosed", err)
						return
					}
				}
			})
		}
		<-accepted
		for range 3 {
			wg.Go(func() {
				if err := w.Shutdown(ctx); err != nil {
					t.Errorf("shutdown: %v", err)
				}
			})
		}
		wg.Wait()
	}
	startWorker(t, pool, []workflow.Definition{flow})
	eventually(t, "every accepted run has completed", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status <> 'completed'") == 0
	})
}

// A worker whose lease ran out comes back as another worker, and works.
func TestWorkerThatLostItsLeaseComesBackUnderAnotherID(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("flow", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Lease = time.Second }))
	ctx := testContext(t)
	before := w.Status().Worker
	if _, err := pool.Exec(ctx, "update romancy.workers set lease_until = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker has another id", func() bool {
		now := w.Status().Worker
		return now != before && now != 0
	})
	run, err := flow.Start(ctx, w.Engine, 5)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 5 {
		t.Fatalf("got %d, %v", got, err)
	}
}

// An engine that cannot reach its database does not start, and says so.
func TestStartWithoutADatabaseFails(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url)
	if err := server.Halt(t.Context(), "fast"); err != nil {
		t.Fatal(err)
	}
	engine, err := workflow.NewEngine(workflow.Config{Pool: pool, Workflows: []workflow.Definition{steps}})
	if err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(testContext(t)); err == nil {
		t.Error("started")
	}
	if err := engine.Shutdown(context.Background()); err != nil {
		t.Errorf("shutdown after a failed start: %v", err)
	}
}

// What others go by when they decide whom to leave a message to is true at once, and not at the next heartbeat.
func TestAWorkerSaysAtOnceWhetherItListens(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proxy := pgtest.NewProxy(t, pool.Config().ConnString())
	startWorker(t, pool, []workflow.Definition{collector}, func(c *workflow.Config, listener *bus.ListenerConfig, _ *bus.NotifierConfig) {
		c.Lease = time.Hour // a heartbeat comes after twenty minutes
		listener.ListenURL = proxy.URL()
	})
	says := func(what string) func() bool {
		return func() bool { return count(t, pool, "select count(*) from romancy.workers where "+what) == 1 }
	}
	eventually(t, "it says that it listens", says("listening"))
	proxy.Close()
	eventually(t, "it says that it listens no more", says("not listening"))
}
