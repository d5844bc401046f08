package workflow_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A worker that was cut off for longer than its lease has not died: a run that was stuck for that goes on when the worker is back, whether it
// takes up its work again or shuts down.
func TestARunOfAWorkerThatWasOnlySlowDoesNotStayStuck(t *testing.T) {
	t.Parallel()
	for name, back := range map[string]func(t *testing.T, w *worker){
		"it registers again": func(*testing.T, *worker) {},
		"it shuts down":      func(t *testing.T, w *worker) { t.Helper(); w.shutdown(t) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			begun := make(chan struct{})
			var bodies atomic.Int64
			charge := workflow.DefineActivity("charge", func(ctx context.Context, n int) (int, error) {
				if bodies.Add(1) == 1 {
					close(begun)
					<-ctx.Done()
					return 0, ctx.Err()
				}
				return n, nil
			})
			flow := workflow.Define("pays", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
			configure := configured(func(c *workflow.Config) { c.Lease, c.MaxDeaths = 3*time.Second, 1 })
			proxy := pgtest.NewProxy(t, pool.Config().ConnString())
			slow := startWorker(t, pgtest.Connect(t, proxy.URL()), []workflow.Definition{flow}, configure)
			t.Cleanup(proxy.Resume)
			run, err := flow.Start(ctx, slow.Engine, 7)
			if err != nil {
				t.Fatal(err)
			}
			<-begun
			former := slow.Status().Worker
			t.Cleanup(func() { tellRows(t, pool) })
			heir := startWorker(t, pool, []workflow.Definition{flow}, configure)
			proxy.Stall()
			eventually(t, "the run is stuck", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'stuck' and deaths = 1 and died_with = array[$1::bigint]", former) == 1
			})
			proxy.Resume()
			back(t, slow)
			eventually(t, "the run is not stuck any more", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status <> 'stuck'") == 1
			})
			if got, err := flow.Run(heir.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
				t.Errorf("got %d, %v", got, err)
			}
			if n := count(t, pool, "select deaths from romancy.instances"); n != 0 {
				t.Errorf("%d deaths", n)
			}
			if n := count(t, pool, "select count(*) from romancy.interruptions where worker = $1 and token = 1 and error ->> 'type' = 'lease_lost'", former); n != 1 {
				t.Errorf("%d interruptions are written down, want the one", n)
			}
			if n := bodies.Load(); n != 2 {
				t.Errorf("%d bodies were entered, want 2", n)
			}
		})
	}
}

// tellRows logs what the database knows of runs and workers if the test has failed.
func tellRows(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if !t.Failed() {
		return
	}
	const asked = `select (select json_agg(i) from romancy.instances i)::text || (select json_agg(w) from romancy.workers w)::text || clock_timestamp()::text
		|| (select json_agg(json_build_array(a.pid, a.application_name, a.state, a.xact_start, left(a.query, 60))) from pg_stat_activity a where a.datname = current_database())::text`
	var rows *string
	if err := pool.QueryRow(context.Background(), asked).Scan(&rows); err != nil || rows == nil {
		t.Log(err)
		return
	}
	t.Log(*rows)
}

// However often a worker loses its lease and lives, none of its runs becomes stuck, and each execution again is written down.
func TestLeasesLostAgainAndAgainMakeNoRunStuck(t *testing.T) {
	t.Parallel()
	const losses = 3
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	begun := make(chan struct{}, losses+1)
	var bodies atomic.Int64
	charge := workflow.DefineActivity("charge", func(ctx context.Context, n int) (int, error) {
		begun <- struct{}{}
		if bodies.Add(1) <= losses {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		return n, nil
	})
	flow := workflow.Define("pays", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Lease, c.MaxDeaths = 3*time.Second, 1 }))
	// Takes over as soon as it can, so that both orders occur: before the worker has said that it lived, and after.
	other := startWorker(t, pool, []workflow.Definition{steps}, configured(func(c *workflow.Config) { c.MaxDeaths = 1 }))
	run, err := flow.Start(ctx, w.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	for range losses {
		<-begun
		loseLease(t, pool, w)
		if _, err := other.SweepResume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the run has ended", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'completed'") == 1
	})
	if got, err := run.Result(ctx); err != nil || got != 7 {
		t.Errorf("got %d, %v", got, err)
	}
	eventually(t, "the interruptions are written down", func() bool {
		return count(t, pool, "select count(*) from romancy.interruptions where error ->> 'type' = 'lease_lost'") == losses
	})
}
