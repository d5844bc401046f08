package workflow_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// While activities, compensations, side effects and workflows execute, all at once, the engine holds none of the pool's two
// connections: they may use it.
func TestUserCodeHasThePoolToItself(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 2 })
	const runs = 12
	var inside sync.WaitGroup
	var gates [3]chan struct{}
	var arrived [3]tally
	for i := range gates {
		gates[i] = make(chan struct{})
	}
	use := func(ctx context.Context) error {
		var one int
		return pool.QueryRow(ctx, "select 1").Scan(&one)
	}
	// together waits until the test has looked, and uses the pool.
	together := func(ctx context.Context, stage int) error {
		inside.Add(1)
		defer inside.Done()
		arrived[stage].add("")
		select {
		case <-gates[stage]:
			return use(ctx)
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	act := workflow.DefineActivity("act", func(ctx context.Context, _ int) (int, error) { return 0, together(ctx, 0) }).
		WithCompensation(func(ctx context.Context, _, _ int) error { return together(ctx, 2) })
	errEnough := errors.New("enough")
	flow := workflow.Define("user", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := act.Go(ctx, n).Get(ctx); err != nil {
			return 0, err
		}
		if _, err := workflow.SideEffect(ctx, "look", func() (int, error) { return 0, together(ctx, 1) }); err != nil {
			return 0, err
		}
		return 0, errors.Join(errEnough, use(ctx))
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	var started []*workflow.Run[int]
	for n := range runs {
		run, err := flow.Start(ctx, w.Engine, n)
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, run)
	}
	for stage, gate := range gates {
		eventually(t, "all execute at once, and the pool is idle", func() bool {
			return arrived[stage].of("") == runs && pool.Stat().AcquiredConns() == 0
		})
		close(gate)
	}
	for _, run := range started {
		failed := new(workflow.RunError)
		if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Message != errEnough.Error() || failed.CompensationErrors != nil {
			t.Errorf("got %v, want %v", err, errEnough)
		}
	}
	inside.Wait()
}

// A context that ends in the middle of a query costs that query's connection, and nothing else: the attempt has failed, the
// next has a connection and a transaction of its own, and the pool gets back all that it has lent.
func TestContextThatEndsDuringAQueryCostsOneConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 2 })
	sleep := func(ctx context.Context, _ int) (int, error) {
		attempt := workflow.ActivityInfo(ctx).Attempt
		if attempt < 3 {
			_, err := workflow.Tx(ctx).Exec(ctx, "select pg_sleep(600)")
			return 0, err
		}
		_, err := workflow.Tx(ctx).Exec(ctx, "select 1")
		return attempt, err
	}
	impatient := workflow.DefineActivity("impatient", sleep, workflow.WithTransaction(), workflow.WithTimeout(200*time.Millisecond),
		workflow.WithRetry(workflow.RetryPolicy{InitialInterval: time.Millisecond, Multiplier: 1}))
	endless := workflow.DefineActivity("endless", sleep, workflow.WithTransaction())
	retried := workflow.Define("retried", func(ctx *workflow.Context, n int) (int, error) { return impatient.Execute(ctx, n) })
	cancelled := workflow.Define("cancelled", func(ctx *workflow.Context, n int) (int, error) { return endless.Execute(ctx, n) })
	w := startWorker(t, pool, []workflow.Definition{retried, cancelled})
	ctx := testContext(t)
	run, err := retried.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got < 3 { // more if the machine is too busy for the timeout
		t.Fatalf("got %d, %v, want success at attempt 3", got, err)
	}
	run, err = cancelled.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	const asleep = "select count(*) from pg_stat_activity where datname = current_database() and query = 'select pg_sleep(600)' and state = 'active'"
	eventually(t, "the query executes", func() bool { return count(t, pool, asleep) == 1 })
	if err := w.Cancel(ctx, run.ID(), "enough"); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
		t.Errorf("got %v, want it cancelled", err)
	}
	eventually(t, "no query is left and no connection is lent", func() bool {
		return pool.Stat().AcquiredConns() == 0 && count(t, pool, asleep) == 0
	})
}
