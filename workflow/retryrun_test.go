package workflow_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// PostgreSQL takes nothing out of JSON with \u0000 in it. Steps that return or report it are retried like any other.
func TestRetryTakesUpARunWithZeroBytesInItsHistory(t *testing.T) {
	t.Parallel()
	var up atomic.Bool
	read := workflow.DefineActivity("read", func(context.Context, int) (string, error) { return "a\x00b", nil })
	charge := workflow.DefineActivity("charge", func(context.Context, int) (string, error) {
		if !up.Load() {
			return "", errors.New("c\x00d")
		}
		return "e\x00f", nil
	})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (string, error) {
		if err := workflow.Subscribe(ctx, "prices", workflow.Broadcast); err != nil {
			return "", err
		}
		was, err := read.Execute(ctx, n)
		if err != nil {
			return "", err
		}
		is, err := charge.Execute(ctx, n)
		return was + is, err
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
	up.Store(true)
	if err := w.Retry(ctx, run.ID()); err != nil {
		t.Fatal(err)
	}
	if out, err := run.Result(ctx); err != nil || out != "a\x00be\x00f" {
		t.Errorf("result %q, %v", out, err)
	}
}

// A run that fails before it notices that it is to be cancelled has failed; whoever retries it wants it to go on.
func TestRetryForgetsACancellationThatCameTooLate(t *testing.T) {
	t.Parallel()
	there, release := make(chan struct{}), make(chan struct{})
	var executions atomic.Int32
	step := workflow.DefineActivity("step", func(context.Context, int) (int, error) { return 1, nil })
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := step.Execute(ctx, n); err != nil {
			return 0, err
		}
		if executions.Add(1) == 1 {
			close(there)
			<-release // no command of the workflow tells it
			return 0, errors.New("out of stock")
		}
		return step.Execute(ctx, n)
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	<-there
	if err := w.Cancel(ctx, run.ID(), "changed my mind", workflow.Compensate()); err != nil {
		t.Fatal(err)
	}
	close(release)
	failed := new(workflow.RunError)
	if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusFailed {
		t.Fatalf("got %v, want the failure that came first", err)
	}
	if err := w.Retry(ctx, run.ID()); err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Errorf("the retried run: %v", err)
	}
}
