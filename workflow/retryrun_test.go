package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

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

// A run whose function fails before it notices that it is to be cancelled is cancelled all the same: Retry does not bring it back.
func TestRetryDoesNotBringBackWhatWasCancelledBeforeItFailed(t *testing.T) {
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
	if _, err := run.Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
		t.Fatalf("got %v, want it cancelled", err)
	}
	if err := w.Retry(ctx, run.ID()); !errors.Is(err, workflow.ErrNotRetryable) {
		t.Fatalf("retried: %v", err)
	}
}

// What a workflow has recorded after a failure may follow from it, so the failure stays: a Retry that would attempt nothing
// says which step is in the way, instead of having the run fail again.
func TestRetryRefusesAFailureThatHistoryGoesOnAfter(t *testing.T) {
	t.Parallel()
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return 0, errors.New("the bank is closed") })
	crash := workflow.DefineActivity("crash", func(context.Context, int) (int, error) { panic("no bank") })
	reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return 1, nil })
	for name, test := range map[string]struct {
		said string
		do   func(ctx *workflow.Context) error
	}{
		"published": {said: `activity "charge" at position 2 has failed (the bank is closed), and history goes on after it to position 3`, do: func(ctx *workflow.Context) error {
			if _, err := reserve.Execute(ctx, 1); err != nil {
				return err
			}
			_, err := charge.Execute(ctx, 1)
			return errors.Join(workflow.Publish(ctx, "payment.failed", "order-1"), err)
		}},
		"published after a panic": {said: `activity "crash" at position 1 has failed (panic: no bank), and history goes on after it to position 2`, do: func(ctx *workflow.Context) error {
			_, err := crash.Execute(ctx, 1)
			return errors.Join(workflow.Publish(ctx, "payment.failed", "order-1"), err)
		}},
		"told of one beside another": {said: `activity "charge" at position 1 has failed (the bank is closed), and history goes on after it to position 3`, do: func(ctx *workflow.Context) error {
			err := workflow.All(ctx, charge.Go(ctx, 1), reserve.Go(ctx, 1))
			return errors.Join(workflow.Publish(ctx, "payment.failed", "order-1"), err)
		}},
		"told of in a value": {said: `activity "charge" at position 1 has failed (the bank is closed), and history goes on after it to position 2`, do: func(ctx *workflow.Context) error {
			future := charge.Go(ctx, 1)
			text, err := workflow.SideEffect(ctx, "outcome", func() (string, error) {
				_, err := future.Get(ctx)
				return fmt.Sprint(err), nil
			})
			return errors.Join(err, errors.New(text))
		}},
		"begun after the failure": {said: `activity "charge" at position 1 has failed (the bank is closed), and history goes on after it to position 2`, do: func(ctx *workflow.Context) error {
			_, failed := charge.Go(ctx, 1).Get(ctx)
			return errors.Join(failed, workflow.All(ctx, reserve.Go(ctx, 1)))
		}},
		"followed by one that failed and was told of": {said: `activity "charge" at position 2 has failed (the bank is closed), and history goes on after it to position 3`, do: func(ctx *workflow.Context) error {
			if _, err := charge.Execute(ctx, 1); err == nil {
				return nil
			}
			_, err := charge.Execute(ctx, 1)
			return errors.Join(workflow.Publish(ctx, "payment.failed", "order-1"), err)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flow := workflow.Define("order", func(ctx *workflow.Context, _ int) (int, error) { return 0, test.do(ctx) })
			w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := run.Result(ctx); err == nil {
				t.Fatal("the run completed")
			}
			err = w.Retry(ctx, run.ID())
			if !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), test.said) || !strings.Contains(err.Error(), "start a new run") {
				t.Errorf("got %v, want it to say %s", err, test.said)
			}
			if info, err := w.Get(ctx, run.ID()); err != nil || info.Status != workflow.StatusFailed {
				t.Errorf("the run is %+v, %v; want it failed as before", info, err)
			}
		})
	}
}

// Of steps beside each other those that failed last are attempted again, and so is the workflow's own code if that has panicked, whatever
// failures it had lived with.
func TestRetryTakesUpWhatHistoryDoesNotDecide(t *testing.T) {
	t.Parallel()
	for _, name := range []string{"failed last", "failed first", "failed unheard of", "chosen", "panicked"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			var up atomic.Bool
			var executed tally
			reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return executed.add("reserve"), nil })
			charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) {
				if executed.add("charge"); !up.Load() {
					return 0, errors.New("the bank is closed")
				}
				return 1, nil
			})
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
				switch name {
				case "failed last":
					return n, workflow.All(ctx, reserve.Go(ctx, 1), charge.Go(ctx, 1))
				case "failed first":
					// It waits for the failure when other steps have been begun, and one of them has been waited for.
					charged, reserved, other := charge.Go(ctx, 1), reserve.Go(ctx, 1), charge.Go(ctx, 2)
					_, err := reserved.Get(ctx)
					if err == nil {
						err = workflow.Publish(ctx, "reserved", n)
					}
					return n, errors.Join(err, workflow.All(ctx, charged, other))
				case "failed unheard of":
					unheard := charge.Go(ctx, 1)
					if _, err := reserve.Execute(ctx, 1); err != nil {
						return 0, err
					}
					if _, err := charge.Execute(ctx, 2); err != nil {
						return 0, err
					}
					return n, workflow.All(ctx, unheard)
				case "chosen":
					reserved := reserve.Go(ctx, 1)
					err := workflow.Select(ctx,
						workflow.OnResult(charge.Go(ctx, 1), func(_ int, err error) error { return err }),
						workflow.OnTimer(time.Hour, func() error { return errors.New("too late") }))
					if err != nil {
						return 0, err
					}
					_, err = reserved.Get(ctx)
					return n, err
				}
				_, failed := charge.Execute(ctx, 1) // and pays later
				if _, err := reserve.Execute(ctx, 1); err != nil || failed == nil {
					return 0, err
				}
				if !up.Load() {
					panic("no debtor")
				}
				return n, nil
			})
			w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 7)
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
			if out, err := run.Result(ctx); err != nil || out != 7 || executed.of("reserve") != 1 {
				t.Errorf("result %d, %v; reserved %d times", out, err, executed.of("reserve"))
			}
		})
	}
}
