package workflow_test

import (
	"context"
	"fmt"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

var nothing = workflow.DefineActivity("nothing", func(_ context.Context, n int) (int, error) { return n + 1, nil })

var steps = workflow.Define("steps", func(ctx *workflow.Context, wanted int) (int, error) {
	n := 0
	for n < wanted {
		var err error
		if n, err = nothing.Execute(ctx, n); err != nil {
			return n, err
		}
	}
	return n, nil
})

// A durable step of a lone run costs one round trip: twenty more steps, twenty more round trips.
func TestDurableStepAloneCostsOneRoundTrip(t *testing.T) {
	t.Parallel()
	var trips *pgtest.RoundTrips
	pool := pgtest.Pool(t, func(config *pgxpool.Config) {
		trips = pgtest.CountRoundTrips(&config.ConnConfig.Config)
	})
	engine, err := workflow.NewEngine(workflow.Config{Pool: pool, Workflows: []workflow.Definition{steps}})
	if err != nil {
		t.Fatal(err)
	}
	ctx := testContext(t)
	if err := engine.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	cost := func(wanted int) (roundTrips, commits int64) {
		tripsBefore, commitsBefore := trips.Count(), engine.Status().Commits
		run, err := steps.Start(ctx, engine, wanted)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := run.Result(ctx); err != nil || got != wanted {
			t.Fatalf("got %d, %v", got, err)
		}
		return trips.Count() - tripsBefore, engine.Status().Commits - commitsBefore
	}
	// The first statements of a connection are prepared, and a look for ready runs or a heartbeat may come in between:
	// the least of several counts is the cost itself.
	least := func(wanted int) int64 {
		cost(wanted)
		fewest := int64(1 << 62)
		for range 10 {
			got, _ := cost(wanted)
			fewest = min(fewest, got)
		}
		return fewest
	}
	five, twentyFive := least(5), least(25)
	if twentyFive-five != 20 {
		t.Errorf("20 more steps cost %d more round trips (5 steps: %d, 25 steps: %d), want 20", twentyFive-five, five, twentyFive)
	}
	// Start, five steps; the end shares the last step's.
	if five > 6 {
		t.Errorf("a run of 5 steps cost %d round trips, want 6", five)
	}
}

// 500 runs of five steps at a time share their commits. What the whole database commits is counted: engine, notifier,
// heartbeats and all.
func TestConcurrentRunsShareCommits(t *testing.T) { //nolint:paralleltest // what else runs would take the time that batches share
	server := pgtest.Private(t) // counted alone
	url, drop, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	pool := pgtest.Connect(t, url)
	w := startWorker(t, pool, []workflow.Definition{steps})
	ctx := testContext(t)
	const runs = 500
	batch := func() {
		var wg sync.WaitGroup
		for range runs {
			wg.Go(func() {
				run, err := steps.Start(ctx, w.Engine, 5)
				if err != nil {
					t.Error(err)
					return
				}
				if got, err := run.Result(ctx); err != nil || got != 5 {
					t.Errorf("got %d, %v", got, err)
				}
			})
		}
		wg.Wait()
	}
	// Asked from another database, so that asking is not counted.
	outside := pgtest.Connect(t, server.URL())
	name := pool.Config().ConnConfig.Database
	commits := func() int {
		return count(t, outside, "select xact_commit from pg_stat_database where datname = $1", name)
	}
	if _, err := outside.Exec(ctx, "create extension if not exists pg_stat_statements"); err != nil {
		pgtest.SkipOrFail(t, "postgres", fmt.Sprintf("with its contrib modules (Debian: apt-get install postgresql-contrib): %v", err))
	}
	statements := func() int {
		return count(t, outside, `select coalesce(sum(calls), 0) from pg_stat_statements
			where dbid = (select oid from pg_database where datname = $1)`, name)
	}
	commitsBefore, statementsBefore := commits(), statements()
	batch()
	w.shutdown(t) // a session reports what it has counted at the latest when it ends
	pool.Reset()
	eventually(t, "all sessions have ended", func() bool {
		return count(t, outside, "select count(*) from pg_stat_activity where datname = $1", name) == 0
	})
	committed, sent := float64(commits()-commitsBefore)/runs, float64(statements()-statementsBefore)/runs
	t.Logf("a run of 5 steps among %d: %.3f commits, %.3f statements", runs, committed, sent)
	// On a quiet machine it is a fifth of this. One that is busy with other things brings fewer operations to each flush.
	if committed > 0.5 {
		t.Errorf("%.3f commits a run, want at most 0.5", committed)
	}
	if sent > 1 {
		t.Errorf("%.3f statements a run, want at most 1", sent)
	}
}
