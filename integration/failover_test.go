package integration_test

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

const (
	failoverSteps = 6
	failoverRuns  = 150
)

// failoverLedger counts in the memory of the test what bodies did.
type failoverLedger struct {
	mu   sync.Mutex
	done map[failoverStep]int
}

type failoverStep struct {
	run      string
	position int32
}

func (l *failoverLedger) add(step failoverStep) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.done[step]++
}

// The primary is lost, and with it what its asynchronous standby has not received. The standby is promoted below a worker that lives,
// and the worker goes on there: nothing is executed again whose record the standby has, every run that it has ends, and those that it
// does not have are said to be gone.
func TestFailoverToAStandbyThatLagsBehind(t *testing.T) {
	t.Parallel()
	primary := pgtest.Private(t)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	address, _, err := primary.CreateDatabase(ctx)
	if err != nil {
		t.Fatal(err)
	}
	standby := primary.Standby(t)
	pool := pgtest.Connect(t, either(t, address, standby.URL()))

	ledger := &failoverLedger{done: map[failoverStep]int{}}
	charge := workflow.DefineActivity("charge", func(ctx context.Context, n int) (int, error) {
		info := workflow.ActivityInfo(ctx)
		ledger.add(failoverStep{info.InstanceID, info.Position})
		time.Sleep(20 * time.Millisecond) // the work itself
		return n, nil
	})
	flow := workflow.Define("charges", func(ctx *workflow.Context, steps int) (sum int, err error) {
		for i := range steps {
			n, err := charge.Execute(ctx, i)
			if err != nil {
				return 0, err
			}
			sum += n
			if err := workflow.Sleep(ctx, 50*time.Millisecond); err != nil {
				return 0, err
			}
		}
		return sum, nil
	})
	app := romancy.NewApp(romancy.WithPool(pool), romancy.WithAutoMigrate(), romancy.WithWorkflows(flow), romancy.WithNotifyFallbackInterval(time.Second))
	if err := app.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		if err := app.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})

	// Runs begin all the time. Half of them before the standby receives nothing any more.
	var runs []*workflow.Run[int]
	start := func(n int) {
		t.Helper()
		for range n {
			run, err := flow.Start(ctx, app.Engine(), failoverSteps)
			if err != nil {
				t.Fatal(err)
			}
			runs = append(runs, run)
			time.Sleep(2 * time.Millisecond)
		}
	}
	start(failoverRuns / 2)
	if err := standby.Follows(ctx, primary); err != nil {
		t.Fatal(err)
	}
	safe := len(runs)
	if err := standby.Unfollow(ctx); err != nil {
		t.Fatal(err)
	}
	start(failoverRuns / 2) // the standby knows nothing of these, nor of what the others do meanwhile
	known, recorded := failoverKnowledge(ctx, t, onServer(t, address, standby.URL()))
	if err := primary.Halt(ctx, "immediate"); err != nil {
		t.Fatal(err)
	}
	if err := standby.Promote(ctx); err != nil {
		t.Fatal(err)
	}

	for i, run := range runs {
		got, err := run.Result(ctx)
		switch {
		case slices.Contains(known, run.ID()) && (err != nil || got != failoverSteps*(failoverSteps-1)/2):
			t.Errorf("run %d of %d, which the standby knew, ended with %d, %v", i, len(runs), got, err)
		case i < safe && !slices.Contains(known, run.ID()):
			t.Errorf("run %d of %d had been received by the standby, which does not know it", i, len(runs))
		case !slices.Contains(known, run.ID()) && !errors.Is(err, workflow.ErrNotFound):
			t.Errorf("run %d of %d, which is lost, ended with %d, %v", i, len(runs), got, err)
		}
	}
	again := 0
	for step, times := range ledger.done {
		switch lost := !slices.Contains(recorded, step); {
		case !slices.Contains(known, step.run):
		case times > 1 && !lost:
			t.Errorf("step %d of %s was executed %d times, although the standby had its record", step.position, step.run, times)
		case times > 2:
			t.Errorf("step %d of %s was executed %d times; its record was lost once", step.position, step.run, times)
		case times == 2:
			again++
		}
	}
	t.Logf("%d runs, of which %d were known to the standby, with %d records; %d steps whose records were lost were executed again",
		len(runs), len(known), len(recorded), again)
}

// either returns the address of a database on whichever of two servers is the primary.
func either(t *testing.T, database, other string) string {
	t.Helper()
	first, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	second, err := url.Parse(other)
	if err != nil {
		t.Fatal(err)
	}
	query := first.Query()
	query.Set("target_session_attrs", "read-write")
	return fmt.Sprintf("%s://%s@%s,%s%s?%s", first.Scheme, first.User, first.Host, second.Host, first.Path, query.Encode())
}

// onServer returns a pool on the same database of another server.
func onServer(t *testing.T, database, other string) *pgxpool.Pool {
	t.Helper()
	there, err := url.Parse(other)
	if err != nil {
		t.Fatal(err)
	}
	here, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	there.Path = here.Path
	return pgtest.Connect(t, there.String())
}

// failoverKnowledge returns the runs that a standby knows, and their steps that are recorded there.
func failoverKnowledge(ctx context.Context, t *testing.T, pool *pgxpool.Pool) (runs []string, steps []failoverStep) {
	t.Helper()
	rows, err := pool.Query(ctx, "select id from romancy.instances")
	if err != nil {
		t.Fatal(err)
	}
	if runs, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil {
		t.Fatal(err)
	}
	if rows, err = pool.Query(ctx, "select instance_id, position from romancy.history where kind = 'activity'"); err != nil {
		t.Fatal(err)
	}
	var step failoverStep
	if _, err := pgx.ForEachRow(rows, []any{&step.run, &step.position}, func() error { steps = append(steps, step); return nil }); err != nil {
		t.Fatal(err)
	}
	return runs, steps
}
