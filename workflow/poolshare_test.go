package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Two engines whose transactional activities all want a connection at once leave one to the others: to those very activities
// too, which use the pool beside their transactions.
func TestTransactionalActivitiesNeverTakeTheLastConnection(t *testing.T) {
	t.Parallel()
	for connections, most := range map[int32]int{2: 1, 4: 3} {
		t.Run(fmt.Sprintf("pool of %d", connections), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = connections })
			const runs = 20
			var inside crowd
			entered, release := make(chan struct{}, 2*runs), make(chan struct{})
			both := workflow.DefineActivity("both", func(ctx context.Context, _ int) (int, error) {
				inside.enter()
				defer inside.leave()
				entered <- struct{}{}
				<-release
				var mine, others int
				if err := workflow.Tx(ctx).QueryRow(ctx, "select 1").Scan(&mine); err != nil {
					return 0, err
				}
				err := pool.QueryRow(ctx, "select 1").Scan(&others)
				return mine + others, err
			}, workflow.WithTransaction())
			flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) { return both.Execute(ctx, n) })
			var started []*workflow.Run[int]
			for range 2 {
				w := startWorker(t, pool, []workflow.Definition{flow})
				some, err := flow.StartMany(testContext(t), w.Engine, make([]workflow.StartRequest[int], runs))
				if err != nil {
					t.Fatal(err)
				}
				started = append(started, some...)
			}
			for range most {
				<-entered
			}
			if rows := count(t, pool, "select count(*) from romancy.instances where status = 'running'"); rows != 2*runs { // with the connection left
				t.Errorf("%d runs are running, want %d", rows, 2*runs)
			}
			close(release)
			awaitAll(t, started)
			if _, at, _ := inside.seen(); at > most {
				t.Errorf("%d transactional activities at one time on a pool of %d, want %d", at, connections, most)
			}
		})
	}
}

// With one connection there is nothing to leave, and they go one after the other.
func TestTransactionalActivitiesWorkOnAPoolOfOne(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 1 })
	one := workflow.DefineActivity("one", func(ctx context.Context, _ int) (number int, err error) {
		err = workflow.Tx(ctx).QueryRow(ctx, "select 1").Scan(&number)
		return number, err
	}, workflow.WithTransaction())
	flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) { return one.Execute(ctx, n) })
	w := startWorker(t, pool, []workflow.Definition{flow})
	runs, err := flow.StartMany(testContext(t), w.Engine, make([]workflow.StartRequest[int], 20))
	if err != nil {
		t.Fatal(err)
	}
	awaitAll(t, runs)
}

// A transactional activity whose context ends while no query is running costs the pool no connection: its transaction is rolled back within a
// time of its own.
func TestTransactionWhoseContextHasEndedKeepsItsConnection(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 1 })
	inside := make(chan int64, 1)
	wait := workflow.DefineActivity("wait", func(ctx context.Context, _ int) (int, error) {
		if _, err := workflow.Tx(ctx).Exec(ctx, "select 1"); err != nil {
			return 0, err
		}
		inside <- pool.Stat().NewConnsCount()
		<-ctx.Done()
		return 0, ctx.Err()
	}, workflow.WithTransaction())
	flow := workflow.Define("waiting", func(ctx *workflow.Context, _ int) (int, error) { return wait.Execute(ctx, 0) })
	w := startWorker(t, pool, []workflow.Definition{flow}, withoutNotify) // a listener probes by the pool, with short limits
	ctx := testContext(t)
	for range 3 {
		run, err := flow.Start(ctx, w.Engine, 0)
		if err != nil {
			t.Fatal(err)
		}
		before := <-inside
		if err := w.Cancel(ctx, run.ID(), "not wanted any more", workflow.Compensate()); err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
			t.Fatalf("got %v", err)
		}
		if n := count(t, pool, "select 1"); n != 1 {
			t.Fatal("the pool does not answer")
		}
		if after := pool.Stat().NewConnsCount(); after != before {
			t.Errorf("the pool has made %d connections, %d before the context ended", after, before)
		}
	}
}
