package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Runs of which the database refuses everything, for as long as it likes, keep no others from being recorded: neither new ones nor one
// that was refused itself for a while.
func TestRefusedRunsStarveNobody(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	for _, statement := range []string{
		`create function public.refuse() returns trigger language plpgsql as $$ begin
			if new.instance_id like 'bad-%' then raise exception using errcode = 'P0001', message = 'never'; end if;
			return new;
		end $$`,
		`create trigger refuse before insert on romancy.history for each row execute function public.refuse()`,
	} {
		if _, err := pool.Exec(testContext(t), statement); err != nil {
			t.Fatal(err)
		}
	}
	entered := make(chan struct{}, 1)
	returned := make(chan struct{})
	charge := workflow.DefineActivity("charge", func(_ context.Context, n int) (int, error) {
		if n == 1 {
			entered <- struct{}{}
			<-returned
		}
		return n, nil
	})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	const bad = 20
	for n := range bad {
		if _, err := flow.Start(ctx, w.Engine, 0, workflow.WithID(fmt.Sprint("bad-", n))); err != nil {
			t.Fatal(err)
		}
	}
	held, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("held"))
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	row := holdRow(t, pool, "held")
	close(returned)
	time.Sleep(3 * time.Second) // it is refused as often as the others
	if err := row.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := held.Result(ctx); err != nil {
		t.Errorf("the run whose row was held: %v", err)
	}
	for n := range 20 {
		run, err := flow.Start(ctx, w.Engine, 0, workflow.WithID(fmt.Sprint("good-", n)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); err != nil {
			t.Errorf("a new run: %v", err)
		}
	}
	if n := count(t, pool, "select count(*) from romancy.instances where status = 'running' and id like 'bad-%'"); n != bad {
		t.Errorf("%d of the refused runs are there, want all %d, kept", n, bad)
	}
	if _, err := pool.Exec(ctx, "drop trigger refuse on romancy.history"); err != nil {
		t.Fatal(err)
	}
	for n := range bad {
		if _, err := flow.Run(w.Engine, fmt.Sprint("bad-", n)).Result(ctx); err != nil {
			t.Errorf("after it is allowed: %v", err)
		}
	}
}

// A unique key of somebody's own says nothing about whether a step was recorded.
func TestAForeignUniqueKeyIsCountedLikeAnyRefusal(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	defer refuse(t, pool, "history", "insert", "23505", -1)()
	var executed atomic.Int64
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return int(executed.Add(1)), nil }, workflow.WithTransaction())
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxInterruptions = 2 }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); !errors.Is(err, workflow.ErrInterrupted) {
		t.Errorf("got %v, want it stuck when its budget is spent", err)
	}
	if n := executed.Load(); n != 3 {
		t.Errorf("executed %d times, want 3", n)
	}
}

// The time of an attempt is its body's: waiting for a connection, or for a lock on the run's row, is no failure of it.
func TestTheTimeOfAnAttemptIsItsBodys(t *testing.T) {
	t.Parallel()
	var executed atomic.Int64
	entered, returned := make(chan struct{}, 1), make(chan struct{})
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) {
		if executed.Add(1) == 1 {
			entered <- struct{}{}
			<-returned
		}
		return 1, nil
	}, workflow.WithTransaction(), workflow.WithTimeout(2*time.Second), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1}))
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	pool := pgtest.Pool(t)
	small := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) { c.MaxConns = 2 })
	w := startWorker(t, small, []workflow.Definition{flow})
	ctx := testContext(t)
	var taken []*pgxpool.Conn
	for range 2 {
		conn, err := small.Acquire(ctx)
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, conn)
	}
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	time.Sleep(2500 * time.Millisecond) // longer than an attempt may take
	for _, conn := range taken {
		conn.Release()
	}
	<-entered
	row := holdRow(t, pool, run.ID())
	close(returned)
	time.Sleep(2500 * time.Millisecond)
	if err := row.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 1 {
		t.Errorf("got %d, %v", got, err)
	}
	if info, err := w.Get(ctx, run.ID()); err != nil || int64(info.Interruptions) != executed.Load()-1 {
		t.Errorf("executed %d times with %d interruptions, %v", executed.Load(), info.Interruptions, err)
	}
}

// An interruption whose answer is lost is counted once.
func TestAnInterruptionIsCountedOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proxy := pgtest.NewFaultProxy(t, pool.Config().ConnString())
	lost := proxy.Inject(pgtest.Fault{Statement: "InterruptRuns", Kind: pgtest.FaultCutAfterCommit, Nth: 1, Times: 4})
	defer refuse(t, pool, "history", "insert", "53100", 1)()
	var executed atomic.Int64
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return int(executed.Add(1)), nil }, workflow.WithTransaction())
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	w := startWorker(t, pgtest.Connect(t, proxy.URL()), []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxInterruptions = 3 }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 2 {
		t.Errorf("got %d, %v, want the second execution's result", got, err)
	}
	if info, err := w.Get(ctx, run.ID()); err != nil || info.Interruptions != 1 {
		t.Errorf("%d interruptions, %v; want 1", info.Interruptions, err)
	}
	if lost.Hits() == 0 {
		t.Error("no answer was lost")
	}
}
