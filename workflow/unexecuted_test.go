package workflow_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// plantReady adds ready runs of a workflow, ready for a span.
func plantReady(t *testing.T, pool *pgxpool.Pool, flow string, runs int, since string) {
	t.Helper()
	if _, err := pool.Exec(testContext(t), `insert into romancy.instances (id, workflow, status, token, ready_at)
		select $1 || n, $1, 'ready', 0, clock_timestamp() - $3::text::interval from generate_series(1, $2) n`, flow, runs, since); err != nil {
		t.Fatal(err)
	}
}

func execute(t *testing.T, pool *pgxpool.Pool, statement string) {
	t.Helper()
	if _, err := pool.Exec(testContext(t), statement); err != nil {
		t.Fatal(err)
	}
}

const (
	saysUnexecuted = "runs are ready whose workflow no living worker executes"
	saysExecuted   = "no run waits for this workflow's worker any more"
)

// Runs whose workflow no living worker has are warned of once, shown, and said to be over. Runs that are ready for a moment only are not
// worth it, nor is anything while a worker lives that may execute all of it for what is known.
func TestRunsThatNobodyExecutesAreWarnedOf(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	plantReady(t, pool, "gone", 1500, "10 minutes")
	plantReady(t, pool, "fresh", 1, "1 second")
	var logged lines
	m := newMeter()
	w := startWorker(t, pool, []workflow.Definition{steps}, configured(func(c *workflow.Config) {
		c.Logger, c.FallbackInterval, c.MeterProvider = logged.logger(), 20*time.Millisecond, m
	}))
	said := func(message string) (found []map[string]any) {
		for _, line := range logged.all(t) {
			if line["msg"] == message {
				found = append(found, line)
			}
		}
		return found
	}
	eventually(t, "it is warned of", func() bool { return len(said(saysUnexecuted)) > 0 })
	if line := said(saysUnexecuted)[0]; line["level"] != "WARN" || line["workflow"] != "gone" || line["runs"] != 1000.0 || line["remedy"] == nil {
		t.Errorf("the line is %v", line)
	}
	found := w.Status().Unexecuted
	if len(found) != 1 || found[0].Workflow != "gone" || found[0].Runs != 1000 || found[0].Oldest < 10*time.Minute {
		t.Errorf("the status shows %+v", found)
	}
	if got := m.read(t)["romancy.workflow.runs.unexecuted{workflow=gone}"].value; got != 1000 {
		t.Errorf("the metric says %v", got)
	}

	execute(t, pool, "insert into romancy.workers (label, lease_until) values ('older build', now() + interval '1 hour')")
	eventually(t, "a worker of an older build may execute it", func() bool { return len(said(saysExecuted)) == 1 })
	if n := len(said(saysUnexecuted)); n != 1 {
		t.Errorf("it is warned of %d times, want once", n)
	}
	execute(t, pool, "delete from romancy.workers where label = 'older build'")
	eventually(t, "that has gone", func() bool { return len(said(saysUnexecuted)) == 2 })

	gone := workflow.Define("gone", func(_ *workflow.Context, _ any) (int, error) { return 0, nil })
	startWorker(t, pool, []workflow.Definition{gone}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
	eventually(t, "a worker has it", func() bool { return len(said(saysExecuted)) == 2 && len(w.Status().Unexecuted) == 0 })
}

// Of several workers one warns.
func TestOneWorkerWarnsOfRunsThatNobodyExecutes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	short := configured(func(c *workflow.Config) { c.FallbackInterval = 20 * time.Millisecond })
	workers := []*worker{}
	for range 3 {
		workers = append(workers, startWorker(t, pool, []workflow.Definition{steps}, short))
	}
	first := workers[0] // was registered first
	plantReady(t, pool, "gone", 3, "10 minutes")
	eventually(t, "it is found", func() bool { return len(first.Status().Unexecuted) == 1 })
	for range 10 {
		time.Sleep(20 * time.Millisecond) // several searches of the others
		for _, w := range workers {
			if found := w.Status().Unexecuted; w != first && len(found) > 0 {
				t.Fatalf("another worker has found %+v, too", found)
			}
		}
	}
	first.shutdown(t)
	eventually(t, "another has taken its place", func() bool {
		for _, w := range workers {
			if w != first && len(w.Status().Unexecuted) == 1 {
				return true
			}
		}
		return false
	})
}

// While no worker lives at all, those who only start runs warn.
func TestStartersWarnWhileNoWorkerLives(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	short := func(c *workflow.Config) { c.FallbackInterval = 20 * time.Millisecond }
	starter := startWorker(t, pool, []workflow.Definition{steps}, configured(func(c *workflow.Config) { short(c); c.ClientOnly = true }))
	plantReady(t, pool, "steps", 2, "10 minutes")
	plantReady(t, pool, "gone", 2, "10 minutes")
	eventually(t, "both are found", func() bool { return len(starter.Status().Unexecuted) == 2 })
	w := startWorker(t, pool, []workflow.Definition{steps}, configured(short))
	eventually(t, "the worker finds the other", func() bool {
		found := w.Status().Unexecuted
		return len(found) == 1 && found[0].Workflow == "gone" && len(starter.Status().Unexecuted) == 0
	})
}
