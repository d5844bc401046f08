package workflow_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

func TestRetryContinuesAFailedRunAtTheStepThatFailed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var reserved, charged atomic.Int32
	var up atomic.Bool
	reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return int(reserved.Add(1)), nil })
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) {
		charged.Add(1)
		if !up.Load() {
			return 0, errors.New("the bank is closed")
		}
		return 1, nil
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond}))
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (string, error) {
		if err := workflow.Subscribe(ctx, "prices", workflow.Broadcast); err != nil {
			return "", err
		}
		if _, err := reserve.Execute(ctx, n); err != nil {
			return "", err
		}
		if _, err := charge.Execute(ctx, n); err != nil {
			return "", err
		}
		price, err := workflow.Receive[string](ctx, "prices")
		return price.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("order-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err == nil || !strings.Contains(err.Error(), "bank is closed") {
		t.Fatalf("result %v", err)
	}
	up.Store(true)
	if err := w.Retry(ctx, "order-1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is past the step that failed", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
	})
	// Its subscription is back: a broadcast reaches it.
	if err := w.Publish(ctx, "prices", "12.50"); err != nil {
		t.Fatal(err)
	}
	if out, err := run.Result(ctx); err != nil || out != "12.50" {
		t.Errorf("result %q, %v", out, err)
	}
	if reserved.Load() != 1 || charged.Load() != 3 {
		t.Errorf("reserved %d times, charged %d times, want 1 and 3", reserved.Load(), charged.Load())
	}
	if err := w.Retry(ctx, "order-1"); !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), "completed") {
		t.Errorf("retry of a completed run: %v", err)
	}
}

func TestCompensatedRunCannotBeRetried(t *testing.T) {
	t.Parallel()
	reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return 1, nil }).
		WithCompensation(func(context.Context, int, int) error { return nil })
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := reserve.Execute(ctx, n); err != nil {
			return 0, err
		}
		return 0, errors.New("changed my mind")
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err == nil {
		t.Fatal("the run completed")
	}
	if err := w.Retry(ctx, run.ID()); !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), "compensated") {
		t.Errorf("got %v", err)
	}
}

// A run whose replay diverged keeps its history and its mail; the right code and a Retry let it go on.
func TestStuckRunGoesOnAfterRetry(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	var charged atomic.Int32
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return int(charged.Add(1)), nil })
	refund := workflow.DefineActivity("refund", func(context.Context, int) (int, error) { return 0, nil })
	right := workflow.Define("order", func(ctx *workflow.Context, n int) (string, error) {
		if _, err := charge.Execute(ctx, n); err != nil {
			return "", err
		}
		approval, err := workflow.Receive[string](ctx, "approvals")
		return approval.Body, err
	})
	wrong := workflow.Define("order", func(ctx *workflow.Context, n int) (string, error) {
		_, err := refund.Execute(ctx, n)
		return "", err
	})
	first := startWorker(t, pool, []workflow.Definition{right})
	run, err := right.Start(ctx, first.Engine, 1, workflow.WithID("order-1"))
	if err != nil {
		t.Fatal(err)
	}
	waits := func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
	}
	eventually(t, "the run waits", waits)
	first.shutdown(t)

	second := startWorker(t, pool, []workflow.Definition{wrong})
	if err := second.SendTo(ctx, "order-1", "approvals", "granted"); err != nil {
		t.Fatal(err)
	}
	if _, err := wrong.Run(second.Engine, "order-1").Result(ctx); !errors.Is(err, workflow.ErrDiverged) {
		t.Errorf("the result of a run that diverged is %v", err)
	}
	var info *workflow.RunInfo
	eventually(t, "the run is stuck", func() bool {
		if info, err = second.Get(ctx, "order-1"); err != nil {
			t.Fatal(err)
		}
		return info.Status == workflow.StatusStuck
	})
	if info.Err == nil || !strings.Contains(info.Err.Message, "position 1") {
		t.Errorf("the stuck run says %v", info.Err)
	}
	second.shutdown(t)

	third := startWorker(t, pool, []workflow.Definition{right})
	if err := third.Retry(ctx, "order-1"); err != nil {
		t.Fatal(err)
	}
	run = right.Run(third.Engine, run.ID())
	if out, err := run.Result(ctx); err != nil || out != "granted" || charged.Load() != 1 {
		t.Errorf("result %q, %v, charged %d times", out, err, charged.Load())
	}
}

func TestRetentionDeletesOnlyWhatEndedLongAgo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	step := workflow.DefineActivity("step", func(context.Context, int) (int, error) { return 1, nil })
	flow := workflow.Define("flow", func(ctx *workflow.Context, wait bool) (int, error) {
		if _, err := step.Execute(ctx, 1); err != nil || !wait {
			return 0, err
		}
		_, err := workflow.Receive[int](ctx, "never")
		return 0, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) {
		c.Retention, c.MaxWorkflowsPerBatch = time.Hour, 3
	}))
	start := func(id string, wait bool) {
		t.Helper()
		if _, err := flow.Start(ctx, w.Engine, wait, workflow.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"old-1", "old-2", "old-3", "old-4", "young"} {
		start(id, false)
	}
	start("waiting", true)
	eventually(t, "all have ended or wait", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status in ('completed', 'waiting')") == 6
	})
	if _, err := pool.Exec(ctx, `update romancy.instances set created_at = now() - interval '2 days',
		ended_at = case when id like 'old-%' then now() - interval '1 day' else ended_at end`); err != nil {
		t.Fatal(err)
	}
	if deleted, err := w.SweepRetention(ctx); err != nil || deleted != 4 {
		t.Fatalf("deleted %d, %v, want 4", deleted, err)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where id in ('young', 'waiting')"); n != 2 {
		t.Errorf("%d of 2 runs are kept", n)
	}
	if n := count(t, pool, "select count(*) from romancy.history"); n != 2 {
		t.Errorf("%d rows of history, want one for each run that is kept", n)
	}
}
