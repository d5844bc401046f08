package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

func TestRunCompletesWithItsOutput(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	double := workflow.DefineActivity("double", func(_ context.Context, n int) (int, error) { return 2 * n, nil })
	flow := workflow.Define("doubling", func(ctx *workflow.Context, n int) (int, error) {
		for range 5 {
			var err error
			if n, err = double.Execute(ctx, n); err != nil {
				return 0, err
			}
			if err := workflow.Sleep(ctx, 10*time.Millisecond); err != nil {
				return 0, err
			}
		}
		return n, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 3)
	if err != nil {
		t.Fatal(err)
	}
	got, err := run.Result(ctx)
	if err != nil || got != 96 {
		t.Fatalf("got %d, %v; want 96", got, err)
	}
	t.Logf("%+v", w.Status())
}

func TestRunReceivesDirectMessage(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("waiting", func(ctx *workflow.Context, _ string) (string, error) {
		message, err := workflow.Receive[string](ctx, "approvals", workflow.WithTimeout(time.Hour))
		return message.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	other := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	for i := range 20 {
		run, err := flow.Start(ctx, w.Engine, "", workflow.WithID(fmt.Sprintf("run-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if err := other.SendTo(ctx, run.ID(), "approvals", "yes"); err != nil {
			t.Fatal(err)
		}
		got, err := flow.Run(other.Engine, run.ID()).Result(ctx)
		if err != nil || got != "yes" {
			t.Fatalf("got %q, %v", got, err)
		}
	}
}

func TestFailedRunCompensatesInReverse(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(testContext(t), "create table log (id bigint generated always as identity, what text)"); err != nil {
		t.Fatal(err)
	}
	note := func(ctx context.Context, what string) error {
		_, err := workflow.Tx(ctx).Exec(ctx, "insert into log (what) values ($1)", what)
		return err
	}
	reserve := workflow.DefineActivity("reserve", func(ctx context.Context, n int) (int, error) {
		return 10 * n, note(ctx, fmt.Sprint("reserve ", n))
	}, workflow.WithTransaction()).WithCompensation(func(ctx context.Context, _, out int) error {
		return note(ctx, fmt.Sprint("unreserve ", out))
	})
	refused := workflow.NewError("refused", "the carrier refuses")
	ship := workflow.DefineActivity("ship", func(context.Context, int) (int, error) { return 0, refused })
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		for i := range 3 {
			if _, err := reserve.Execute(ctx, n+i); err != nil {
				return 0, err
			}
		}
		return ship.Execute(ctx, n)
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	var failed *workflow.RunError
	if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || !errors.Is(err, refused) {
		t.Fatalf("got %v; want a RunError of type refused", err)
	}
	var log string
	if err := pool.QueryRow(ctx, "select string_agg(what, ', ' order by id) from log").Scan(&log); err != nil {
		t.Fatal(err)
	}
	if want := "reserve 1, reserve 2, reserve 3, unreserve 30, unreserve 20, unreserve 10"; log != want {
		t.Fatalf("done: %s; want %s", log, want)
	}
}

// A transaction whose connection is lost between the activity's last statement and the record of its result is not a failed
// attempt: the activity has done nothing wrong, and may have no other.
func TestConnectionLostBeforeTheRecordIsNoFailedAttempt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	work := workflow.DefineActivity("work", func(ctx context.Context, n int) (int, error) {
		if executed.add("work") > 1 {
			return n, nil
		}
		var ended bool
		pid := workflow.Tx(ctx).Conn().PgConn().PID()
		err := pool.QueryRow(ctx, "select pg_terminate_backend($1::integer, 10000)", pid).Scan(&ended)
		return n, err
	}, workflow.WithTransaction())
	flow := workflow.Define("unlucky", func(ctx *workflow.Context, n int) (int, error) { return work.Execute(ctx, n) })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 7 {
		t.Fatalf("got %d, %v", got, err)
	}
	if n := executed.of("work"); n != 2 {
		t.Errorf("executed %d times, want 2", n)
	}
}
