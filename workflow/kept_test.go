package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A lock on the whole table, as CREATE INDEX takes it, costs time and nothing else.
func TestALockOnHistoryCostsTimeOnly(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	charge := workflow.DefineActivity("charge", func(_ context.Context, n int) (int, error) {
		executed.add(fmt.Sprint("charge ", n))
		time.Sleep(10 * time.Millisecond)
		return n, nil
	}).WithCompensation(func(_ context.Context, n, _ int) error { executed.add(fmt.Sprint("refund ", n)); return nil })
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		beside := charge.Go(ctx, 2*n)
		if _, err := charge.Execute(ctx, 2*n+1); err != nil {
			return 0, err
		}
		if _, err := beside.Get(ctx); err != nil {
			return 0, err
		}
		return 0, errors.New("undo it")
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Lease = 2 * time.Second }))
	ctx := testContext(t)
	lock, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(ctx) }()
	if _, err := lock.Exec(ctx, "lock table romancy.history in share mode"); err != nil {
		t.Fatal(err)
	}
	const runs = 50
	var started []*workflow.Run[int]
	for n := range runs {
		run, err := flow.Start(ctx, w.Engine, n)
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, run)
	}
	// Longer than the lease, and than a flush waits for a lock.
	time.Sleep(4 * time.Second)
	if err := lock.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	for _, run := range started {
		failed := new(workflow.RunError)
		if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message != "undo it" {
			t.Fatalf("got %v", err)
		}
	}
	for n := range 2 * runs {
		if c, r := executed.of(fmt.Sprint("charge ", n)), executed.of(fmt.Sprint("refund ", n)); c != 1 || r != 1 {
			t.Errorf("charged %d times and refunded %d times", c, r)
		}
	}
	if n := count(t, pool, "select count(*) from romancy.workers"); n != 1 {
		t.Errorf("%d workers were registered, want the one: its lease was free", n)
	}
}

// The engine's sessions are ended by force while a run's row is held, at what follows a step: nothing that has returned is executed again.
func TestAKilledSessionThrowsNothingAway(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(ctx *workflow.Context) error{
		"the end": func(*workflow.Context) error { return nil },
		"receive": func(ctx *workflow.Context) error { _, err := workflow.Receive[int](ctx, "go"); return err },
		"sleep":   func(ctx *workflow.Context) error { return workflow.Sleep(ctx, time.Millisecond) },
		"publish": func(ctx *workflow.Context) error { return workflow.Publish(ctx, "news", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var executed atomic.Int64
			returned, entered := make(chan struct{}), make(chan struct{})
			charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) {
				if executed.Add(1) == 1 {
					close(entered)
					<-returned
				}
				return 1, nil
			})
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
				got, err := charge.Execute(ctx, n)
				if err != nil {
					return 0, err
				}
				return got, next(ctx)
			})
			w := startWorker(t, pool, []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			<-entered
			held := holdRow(t, pool, run.ID())
			close(returned)
			eventually(t, "the flush waits for the row", func() bool {
				return count(t, pool, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% engine' and wait_event_type = 'Lock'") > 0
			})
			if n := pgtest.KillBackends(t, pool, "% engine"); n == 0 {
				t.Error("the engine had no session to kill")
			}
			if err := held.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
			if name == "receive" {
				if err := w.SendTo(ctx, run.ID(), "go", 1); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := run.Result(ctx); err != nil || got != 1 {
				t.Errorf("got %d, %v", got, err)
			}
			if n := executed.Load(); n != 1 {
				t.Errorf("executed %d times, want once", n)
			}
		})
	}
}

func holdRow(t *testing.T, pool *pgxpool.Pool, id string) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(testContext(t), "select from romancy.instances where id = $1 for update", id); err != nil {
		t.Fatal(err)
	}
	return tx
}

// Twenty kills of the engine's sessions under load execute nothing twice that has returned, and send and receive nothing twice.
func TestKillsUnderLoadExecuteNothingTwice(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	runs, kills := pgtest.Soak(4000, 400), pgtest.Soak(20, 10)
	var mu sync.Mutex
	executed := map[int]int{}
	charge := workflow.DefineActivity("charge", func(_ context.Context, n int) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		executed[n]++
		return n, nil
	})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		beside := charge.Go(ctx, 5*n)
		for i := 1; i < 4; i++ {
			if _, err := charge.Execute(ctx, 5*n+i); err != nil {
				return 0, err
			}
		}
		if err := workflow.SendTo(ctx, ctx.InstanceID(), "self", n); err != nil {
			return 0, err
		}
		if _, err := workflow.Receive[int](ctx, "self"); err != nil {
			return 0, err
		}
		if err := workflow.Sleep(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
		if _, err := beside.Get(ctx); err != nil {
			return 0, err
		}
		_, err := charge.Execute(ctx, 5*n+4)
		return n, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxConcurrentRuns = 100 }))
	ctx := testContext(t)
	var done atomic.Int64
	var all sync.WaitGroup
	for n := range runs {
		all.Go(func() {
			run, err := startAnyhow(ctx, flow, w.Engine, n)
			if err == nil {
				_, err = run.Result(ctx)
			}
			if err != nil {
				t.Errorf("run %d: %v", n, err)
			}
			done.Add(1)
		})
	}
	for kill := range kills {
		eventually(t, "a part of the runs has ended", func() bool { return int(done.Load()) >= kill*runs/(kills+1) })
		pgtest.KillBackends(t, pool, "% engine")
	}
	all.Wait()
	twice := 0
	for n, times := range executed {
		if times != 1 {
			twice++
			t.Logf("charge %d was executed %d times", n, times)
		}
	}
	if twice > 0 || len(executed) != 5*runs {
		t.Errorf("%d of %d charges were executed more than once, want %d charges once each", twice, len(executed), 5*runs)
	}
}

// startAnyhow starts a run under an id, again for as long as an answer is lost.
func startAnyhow(ctx context.Context, flow *workflow.Workflow[int, int], e *workflow.Engine, n int) (*workflow.Run[int], error) {
	for {
		run, err := flow.Start(ctx, e, n, workflow.WithID(fmt.Sprint("order-", n)))
		if err == nil || ctx.Err() != nil || !errors.Is(err, workflow.ErrOutcomeUnknown) {
			return run, err
		}
	}
}

// Ids that another transaction holds delay nobody but those who ask for them.
func TestHeldIDsDelayNobodyElse(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	holder, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(ctx) }()
	const held = 100
	var waiting sync.WaitGroup
	for n := range held {
		if _, err := flow.StartTx(ctx, holder, w.Engine, n, workflow.WithID(fmt.Sprint("held-", n))); err != nil {
			t.Fatal(err)
		}
	}
	for n := range held {
		waiting.Go(func() {
			if run, err := flow.Start(ctx, w.Engine, n, workflow.WithID(fmt.Sprint("held-", n))); err != nil || !run.Existing() {
				t.Errorf("start of a held id: %v, want the run that was started meanwhile", err)
			}
		})
	}
	eventually(t, "somebody waits for a held id", func() bool {
		return count(t, pool, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% engine' and wait_event_type = 'Lock'") > 0
	})
	// More than they, one after the other, may wait in a minute if each had to be waited for.
	for n := range 20 {
		began := time.Now()
		run, err := flow.Start(ctx, w.Engine, n, workflow.WithID(fmt.Sprint("free-", n)))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("a free id took %s", time.Since(began))
		if err := w.Cancel(ctx, run.ID(), "no more"); err != nil && !errors.Is(err, workflow.ErrEnded) {
			t.Fatal(err)
		}
	}
	if err := holder.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
}
