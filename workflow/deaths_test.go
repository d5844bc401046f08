package workflow_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// die makes the run one of a worker that has died.
func die(t *testing.T, pool *pgxpool.Pool, id string) {
	t.Helper()
	tag, err := pool.Exec(testContext(t), `with dead as (insert into romancy.workers (label, lease_until) values ('dead', now() - interval '1 second') returning id)
		update romancy.instances i set status = 'running', worker = dead.id, token = token + 1, wake_at = null
		from dead where i.id = $1::text and status in ('ready', 'waiting')`, id)
	if err != nil || tag.RowsAffected() != 1 {
		t.Fatalf("%d runs have a dead worker, %v", tag.RowsAffected(), err)
	}
}

type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logText) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

// deathbed is a run, and an engine that takes runs over but executes none.
func deathbed(t *testing.T) (pool *pgxpool.Pool, client *worker, id string, log *logText) {
	t.Helper()
	pool, log = pgtest.Pool(t), &logText{}
	client = startWorker(t, pool, []workflow.Definition{steps}, configured(func(c *workflow.Config) {
		c.ClientOnly, c.MaxDeaths, c.Logger = true, 3, slog.New(slog.NewTextHandler(log, nil))
	}))
	run, err := steps.Start(testContext(t), client.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	return pool, client, run.ID(), log
}

func (w *worker) takeOver(t *testing.T, id string, wantStatus workflow.Status, wantDeaths int) {
	t.Helper()
	if _, err := w.SweepResume(testContext(t)); err != nil {
		t.Fatal(err)
	}
	info, err := w.Get(testContext(t), id)
	if err != nil {
		t.Fatal(err)
	}
	if info.Status != wantStatus || info.Deaths != wantDeaths {
		t.Errorf("%s after %d deaths, want %s after %d", info.Status, info.Deaths, wantStatus, wantDeaths)
	}
	if wantStatus == workflow.StatusWaiting && info.WakeAt.IsZero() {
		t.Error("it waits for nothing")
	}
}

func TestRunThatKillsItsWorkersIsStuckVisibleAndRetryable(t *testing.T) {
	t.Parallel()
	pool, client, id, log := deathbed(t)
	ctx := testContext(t)
	told := make(chan error, 1)
	go func() {
		_, err := steps.Run(client.Engine, id).Result(ctx)
		told <- err
	}()
	die(t, pool, id)
	client.takeOver(t, id, workflow.StatusReady, 1)
	die(t, pool, id)
	client.takeOver(t, id, workflow.StatusWaiting, 2)
	die(t, pool, id)
	client.takeOver(t, id, workflow.StatusStuck, 3)

	err := <-told
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusStuck || !errors.Is(err, workflow.ErrWorkersDied) || !strings.Contains(failed.Message, "3 workers in a row died") {
		t.Errorf("the result is %v", err)
	}
	info, err := client.Get(ctx, id)
	if err != nil || !errors.Is(info.Err, workflow.ErrWorkersDied) {
		t.Errorf("Get says %v, %v", info.Err, err)
	}
	page, err := client.List(ctx, workflow.Filter{Statuses: []workflow.Status{workflow.StatusStuck}})
	if err != nil || len(page.Runs) != 1 || page.Runs[0].ID != id {
		t.Errorf("List says %v, %v", page.Runs, err)
	}
	if line := log.String(); !strings.Contains(line, "level=ERROR msg=\"run is stuck\" instance_id="+id+" workflow=steps") {
		t.Errorf("the log says %s", line)
	}

	if err := client.Retry(ctx, id); err != nil {
		t.Fatal(err)
	}
	if info, err := client.Get(ctx, id); err != nil || info.Deaths != 0 || info.Status != workflow.StatusReady || info.Err != nil {
		t.Errorf("after Retry: %+v, %v", info, err)
	}
	startWorker(t, pool, []workflow.Definition{steps})
	if _, err := steps.Run(client.Engine, id).Result(ctx); err != nil {
		t.Error(err)
	}
}

// A stuck run that is cancelled to undo its steps begins anew, as after Retry: neither its error nor its deaths are left.
func TestCancelOfAStuckRunClearsWhatItWasStuckBy(t *testing.T) {
	t.Parallel()
	pool, client, id, _ := deathbed(t)
	ctx := testContext(t)
	execAll(t, pool, "insert into romancy.history (instance_id, position, token, kind, name) select id, 1, 0, 'activity', 'work' from romancy.instances")
	for n, status := range []workflow.Status{workflow.StatusReady, workflow.StatusWaiting, workflow.StatusStuck} {
		die(t, pool, id)
		client.takeOver(t, id, status, n+1)
	}
	if err := client.Cancel(ctx, id, "give it up", workflow.Compensate()); err != nil {
		t.Fatal(err)
	}
	info, err := client.Get(ctx, id)
	if err != nil || info.Status != workflow.StatusReady || info.Err != nil || info.Deaths != 0 {
		t.Errorf("%s after %d deaths with %v, %v", info.Status, info.Deaths, info.Err, err)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where error is null and deaths = 0 and died_at is null and died_with is null"); n != 1 {
		t.Error("its deaths are still there")
	}
	die(t, pool, id)
	client.takeOver(t, id, workflow.StatusReady, 1)
}

// What a worker has recorded before it died says that the run was not what killed it.
func TestDeathsAreForgottenWhenTheRunMakesProgress(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		progress string
		deaths   int // with which the last worker counts
	}{
		"by the worker that died": {
			"insert into romancy.history (instance_id, position, token, kind, name) select id, 1, token, 'activity', 'work' from romancy.instances where id = $1::text", 0,
		},
		"by a worker before it": {
			"insert into romancy.history (instance_id, position, token, kind, name) select id, 1, token - 1, 'activity', 'work' from romancy.instances where id = $1::text", 1,
		},
		"by an attempt that failed": {
			"insert into romancy.attempts (instance_id, position, attempt, error) values ($1::text, 1, 1, '{}')", 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool, client, id, _ := deathbed(t)
			die(t, pool, id)
			client.takeOver(t, id, workflow.StatusReady, 1)
			die(t, pool, id)
			client.takeOver(t, id, workflow.StatusWaiting, 2)
			die(t, pool, id)
			if _, err := pool.Exec(testContext(t), test.progress, id); err != nil {
				t.Fatal(err)
			}
			client.takeOver(t, id, workflow.StatusReady, test.deaths)
			die(t, pool, id)
			client.takeOver(t, id, []workflow.Status{workflow.StatusReady, workflow.StatusWaiting}[test.deaths], test.deaths+1)
		})
	}
}

// A worker that knows the workflow executes a run again that waits because several workers have died with it.
func TestSuspectedRunIsExecutedAfterItsWait(t *testing.T) {
	t.Parallel()
	pool, client, id, _ := deathbed(t)
	w := startWorker(t, pool, nil) // executes nothing, knows nothing
	if _, err := pool.Exec(testContext(t), "update romancy.instances set deaths = 1 where id = $1::text", id); err != nil {
		t.Fatal(err)
	}
	die(t, pool, id)
	w.takeOver(t, id, workflow.StatusWaiting, 2)
	startWorker(t, pool, []workflow.Definition{steps})
	if _, err := steps.Run(client.Engine, id).Result(testContext(t)); err != nil {
		t.Error(err)
	}
}

// A worker that shuts down hands its runs over: that is no death, however often it happens.
func TestShutdownIsNoDeath(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	entered := make(chan struct{})
	stay := workflow.DefineActivity("stay", func(ctx context.Context, _ int) (int, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	})
	flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) { return stay.Execute(ctx, n) })
	client := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	run, err := flow.Start(testContext(t), client.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxDeaths = 1 }))
		<-entered
		over, cancel := context.WithCancel(testContext(t))
		cancel()
		if err := w.Shutdown(over); !errors.Is(err, context.Canceled) {
			t.Errorf("shutdown: %v", err)
		}
	}
	if info, err := client.Get(testContext(t), run.ID()); err != nil || info.Deaths != 0 || info.Status != workflow.StatusReady {
		t.Errorf("%s after %d deaths, %v", info.Status, info.Deaths, err)
	}
}

// A claim may be under way when its loop ends: the worker owns a run then that it knows nothing of.
func TestShutdownGivesBackWhatWasJustClaimed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	flow := workflow.Define("flow", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	once := configured(func(c *workflow.Config) { c.MaxDeaths = 1 })
	client := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	w := startWorker(t, pool, []workflow.Definition{flow}, once)
	run, err := flow.Start(ctx, client.Engine, 1, workflow.WithDelay(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "update romancy.instances set status = 'running', worker = $1, token = token + 1, wake_at = null where id = $2",
		w.Status().Worker, run.ID()); err != nil {
		t.Fatal(err)
	}
	w.shutdown(t)
	if info, err := client.Get(ctx, run.ID()); err != nil || info.Status != workflow.StatusReady || info.Deaths != 0 {
		t.Fatalf("%s after %d deaths, %v", info.Status, info.Deaths, err)
	}
	startWorker(t, pool, []workflow.Definition{flow}, once)
	if n, err := run.Result(ctx); n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
}
