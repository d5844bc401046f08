package workflow_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/workflow"
)

// What an error says may be in any language: it is stored and read back in a database of any encoding.
func TestWordsOfAnErrorFitEveryEncoding(t *testing.T) {
	t.Parallel()
	const words = "支払い → failed 💳 “quoted” <&>"
	pool := pgtest.Latin1(t)
	ctx := testContext(t)
	if err := schema.Migrate(ctx, pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	pay := workflow.DefineActivity("pay", func(context.Context, int) (int, error) { return 0, errors.New(words) },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond}))
	flow := workflow.Define("flow", func(ctx *workflow.Context, wait bool) (int, error) {
		if wait {
			_, err := workflow.Receive[int](ctx, "never")
			return 0, err
		}
		return pay.Execute(ctx, 1)
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, w.Engine, false)
	if err != nil {
		t.Fatal(err)
	}
	var failed *workflow.RunError
	if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || !strings.HasSuffix(failed.Message, words) {
		t.Errorf("the run ended with %v, want %q", err, words)
	}
	history, err := w.History(ctx, run.ID())
	if err != nil || len(history) != 1 || len(history[0].Attempts) == 0 || history[0].Attempts[0].Message != words {
		t.Errorf("history: %+v, %v", history, err)
	}
	waiting, err := flow.Start(ctx, w.Engine, true)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Cancel(ctx, waiting.ID(), words); err != nil {
		t.Fatal(err)
	}
	if _, err := waiting.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusCancelled || failed.Message != words {
		t.Errorf("the run ended with %v, want it cancelled because of %q", err, words)
	}
}

// A run that somebody's trigger does not let be marked as stuck is not executed again and again.
func TestARunThatCannotBeMarkedAsStuckIsLeftAloneForAWhile(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	if _, err := pool.Exec(ctx, `create function public.refuse_stuck() returns trigger language plpgsql as $$ begin
			if new.status = 'stuck' then raise exception 'no' using errcode = '22023'; end if;
			return new;
		end $$`); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "create trigger refuse_stuck before update on romancy.instances for each row execute function public.refuse_stuck()"); err != nil {
		t.Fatal(err)
	}
	var logged lines
	flow := workflow.Define("flow", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
	if _, err := pool.Exec(ctx, `insert into romancy.instances (id, workflow, status, token, ready_at, input) values ('odd', 'flow', 'ready', 0, now(), '"no number"')`); err != nil {
		t.Fatal(err)
	}
	const refused = "run cannot be marked as stuck; it will be executed again in a while"
	eventually(t, "the mark is refused", func() bool { return len(logged.about(t, refused, "odd")) > 0 })
	time.Sleep(3 * time.Second) // once a second it was
	if n := len(logged.about(t, refused, "odd")); n != 1 {
		t.Errorf("it was executed %d times within seconds, want once", n)
	}
}
