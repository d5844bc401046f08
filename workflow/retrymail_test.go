package workflow_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// failsUntilUp is a workflow that has a step before it receives its approval: the step waits until sent is closed, and fails
// for good unless up is set.
func failsUntilUp(up *atomic.Bool, sent <-chan struct{}) *workflow.Workflow[int, string] {
	charge := workflow.DefineActivity("charge", func(ctx context.Context, _ int) (int, error) {
		select {
		case <-sent:
		case <-ctx.Done():
		}
		if !up.Load() {
			return 0, errors.New("the bank is closed")
		}
		return 1, nil
	})
	return workflow.Define("order", func(ctx *workflow.Context, n int) (string, error) {
		if err := workflow.Subscribe(ctx, "prices", workflow.Broadcast); err != nil {
			return "", err
		}
		if _, err := charge.Execute(ctx, n); err != nil {
			return "", err
		}
		approval, err := workflow.Receive[string](ctx, "approval")
		return approval.Body, err
	})
}

// failWithMail starts such a run, sends and publishes to it while it executes its step, and waits for its failure.
func failWithMail(t *testing.T, w *worker, flow *workflow.Workflow[int, string], sent chan struct{}) *workflow.Run[string] {
	t.Helper()
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("order-1"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is subscribed", func() bool {
		history, err := w.History(ctx, "order-1")
		return err == nil && len(history) > 0
	})
	if err := errors.Join(
		w.SendTo(ctx, "order-1", "approval", "granted", workflow.WithSendKey("approval-1")), w.Publish(ctx, "prices", "12.50"),
	); err != nil {
		t.Fatal(err)
	}
	close(sent)
	if _, err := run.Result(ctx); err == nil {
		t.Fatal("the run completed")
	}
	return run
}

// A sender was told that its message had arrived: whoever retries the run has it received, however often retention has passed.
func TestRetriedRunReceivesWhatWasSentBeforeItFailed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var up atomic.Bool
	sent := make(chan struct{})
	flow := failsUntilUp(&up, sent)
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Retention = time.Hour }))
	run := failWithMail(t, w, flow, sent)
	ctx := testContext(t)
	if removed, err := w.SweepRetention(ctx); err != nil || removed != 0 {
		t.Fatalf("removed %d, %v; want nothing", removed, err)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 1 {
		t.Errorf("%d messages are kept, want the one that was sent to the run alone", n)
	}
	if err := w.SendTo(ctx, "order-1", "approval", "granted again"); !errors.Is(err, workflow.ErrUndeliverable) {
		t.Errorf("sent to a run that has failed: %v", err)
	}
	up.Store(true)
	if err := w.Retry(ctx, "order-1"); err != nil {
		t.Fatal(err)
	}
	if out, err := run.Result(ctx); err != nil || out != "granted" {
		t.Errorf("result %q, %v", out, err)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Errorf("%d messages are left of a run that has completed", n)
	}
}

// The mail that waits for a Retry goes with its run.
func TestRetentionDeletesTheMailOfAFailedRunWithIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	sent := make(chan struct{})
	flow := failsUntilUp(new(atomic.Bool), sent)
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Retention = time.Hour }))
	failWithMail(t, w, flow, sent)
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 1 {
		t.Fatalf("%d messages are kept, want 1", n)
	}
	if _, err := pool.Exec(testContext(t), "update romancy.instances set ended_at = ended_at - interval '2 hours'"); err != nil {
		t.Fatal(err)
	}
	if removed, err := w.SweepRetention(testContext(t)); err != nil || removed != 1 {
		t.Fatalf("removed %d, %v; want the run", removed, err)
	}
	for _, table := range []string{"instances", "history", "mailbox"} {
		if n := count(t, pool, "select count(*) from romancy."+table); n != 0 {
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
}

// A run that has undone its steps receives nothing any more, so nothing is kept for it.
func TestUndoneRunKeepsNoMail(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	undoing, release := make(chan struct{}), make(chan struct{})
	reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return 1, nil }).
		WithCompensation(func(ctx context.Context, _, _ int) error {
			close(undoing)
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := reserve.Execute(ctx, n); err != nil {
			return 0, err
		}
		return 0, errors.New("changed my mind")
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	<-undoing
	if err := w.SendTo(ctx, run.ID(), "approval", "granted"); err != nil {
		t.Fatal(err)
	}
	close(release)
	if _, err := run.Result(ctx); err == nil {
		t.Fatal("the run completed")
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Errorf("%d messages are kept for it", n)
	}
}
