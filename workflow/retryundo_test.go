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

// stubbornTrip books three times and then fails, or waits to be cancelled. The second booking cannot be cancelled until up is set.
func stubbornTrip(executed *tally, up *atomic.Bool, wait bool) *workflow.Workflow[int, int] {
	book := workflow.DefineActivity("book", func(_ context.Context, what string) (string, error) { return what, nil },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond})).
		WithCompensation(func(_ context.Context, what, _ string) error {
			executed.add("cancel " + what)
			if what == "second" && !up.Load() {
				return errors.New("the second is stubborn")
			}
			return nil
		})
	return workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
		for _, what := range []string{"first", "second", "third"} {
			if _, err := book.Execute(ctx, what); err != nil {
				return 0, err
			}
		}
		if wait {
			return 0, workflow.Sleep(ctx, time.Hour)
		}
		return 0, errors.New("changed my mind")
	})
}

// A compensation that has used up its attempts is no dead end: Retry attempts it again, and repeats none of the others. The run ends
// as it had.
func TestRetryGoesOnUndoingWhatCouldNotBeUndone(t *testing.T) {
	t.Parallel()
	for _, status := range []workflow.Status{workflow.StatusFailed, workflow.StatusCancelled} {
		t.Run(string(status), func(t *testing.T) {
			t.Parallel()
			retryUndoing(t, status)
		})
	}
}

func retryUndoing(t *testing.T, status workflow.Status) {
	t.Helper()
	pool := pgtest.Pool(t)
	var executed tally
	var up atomic.Bool
	flow := stubbornTrip(&executed, &up, status == workflow.StatusCancelled)
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if status == workflow.StatusCancelled {
		eventually(t, "all is booked", func() bool { return count(t, pool, "select count(*) from romancy.history where kind = 'timer'") == 1 })
		if err := w.Cancel(ctx, run.ID(), "changed my mind", workflow.Compensate()); err != nil {
			t.Fatal(err)
		}
	}
	end := func(compensationErrors int) {
		t.Helper()
		_, err := run.Result(ctx)
		failed := new(workflow.RunError)
		if !errors.As(err, &failed) || failed.Status != status || failed.Message != "changed my mind" || len(failed.CompensationErrors) != compensationErrors {
			t.Fatalf("got %v, want the run to be %s with %d failed compensations", err, status, compensationErrors)
		}
	}
	end(1)
	if err := w.Retry(ctx, run.ID()); err != nil {
		t.Fatal(err)
	}
	end(1)
	up.Store(true)
	if err := w.Retry(ctx, run.ID()); err != nil {
		t.Fatal(err)
	}
	end(0)
	for what, want := range map[string]int{"third": 1, "second": 5, "first": 1} {
		if n := executed.of("cancel " + what); n != want {
			t.Errorf("the compensation of the %s booking was attempted %d times, want %d", what, n, want)
		}
	}
	if err := w.Retry(ctx, run.ID()); !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), "all that it had done was compensated") {
		t.Errorf("retry of a run that is undone: %v", err)
	}
	if n := count(t, pool, "select count(*) from romancy.history where kind = 'compensation' and payload ->> 'error' is null"); n != 3 {
		t.Errorf("history has %d compensations that succeeded, want 3", n)
	}
}

// While a run undoes again what it could not it is compensating, and cannot be cancelled in another way. A worker that dies over
// it leaves it to the next, which finds the gap in its history and goes on there.
func TestRunThatIsUndoneAgainGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var undone tally
	there, release := make(chan struct{}, 1), make(chan struct{})
	book := workflow.DefineActivity("book", func(_ context.Context, what string) (string, error) { return what, nil },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1})).
		WithCompensation(func(ctx context.Context, what, _ string) error {
			attempt := undone.add(what)
			switch {
			case what == "first" || attempt == 3:
				return nil
			case attempt == 1:
				return errors.New("not now")
			}
			there <- struct{}{}
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
		for _, what := range []string{"first", "second"} {
			if _, err := book.Execute(ctx, what); err != nil {
				return 0, err
			}
		}
		return 0, errors.New("changed my mind")
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	failed := new(workflow.RunError)
	if _, err := run.Result(ctx); !errors.As(err, &failed) || len(failed.CompensationErrors) != 1 {
		t.Fatalf("got %v, want one compensation that failed", err)
	}
	if err := one.Retry(ctx, run.ID()); err != nil {
		t.Fatal(err)
	}
	<-there
	if info, err := one.Get(ctx, run.ID()); err != nil || info.Status != workflow.StatusCompensating {
		t.Errorf("%+v, %v: want it to be compensating", info, err)
	}
	if err := one.Retry(ctx, run.ID()); !errors.Is(err, workflow.ErrNotRetryable) {
		t.Errorf("retried while it undoes its steps: %v", err)
	}
	if err := one.Cancel(ctx, run.ID(), "at once"); !errors.Is(err, workflow.ErrEnded) {
		t.Errorf("cancelled while it undoes its steps: %v", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := one.Shutdown(over); err == nil {
		t.Fatal("shut down within no time although a compensation was executing")
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	failed = new(workflow.RunError)
	_, err = flow.Run(two.Engine, run.ID()).Result(ctx)
	close(release)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message != "changed my mind" || failed.CompensationErrors != nil {
		t.Errorf("got %v, want the failure that it was undone for", err)
	}
	if undone.of("first") != 1 || undone.of("second") != 3 {
		t.Errorf("the first was undone %d times and the second %d; want 1 and, for the attempt that was lost, 3", undone.of("first"), undone.of("second"))
	}
}

// An explicit policy is the compensation's too, also one that allows a single attempt.
func TestExplicitPolicyOfOneAttemptIsRespectedWhenUndoing(t *testing.T) {
	t.Parallel()
	var attempts atomic.Int32
	reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return 1, nil },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1})).
		WithCompensation(func(context.Context, int, int) error { attempts.Add(1); return errors.New("not possible") })
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
	failed := new(workflow.RunError)
	if _, err := run.Result(ctx); !errors.As(err, &failed) || len(failed.CompensationErrors) != 1 {
		t.Errorf("got %v, want one compensation that failed", err)
	}
	if n := attempts.Load(); n != 1 {
		t.Errorf("the compensation was attempted %d times, its policy allows 1", n)
	}
}

// A step beside the workflow that was given up when its run failed does not begin again when a later execution goes on undoing.
func TestNoStepBeginsBesideARunThatIsUndone(t *testing.T) {
	t.Parallel()
	var executed tally
	watch := workflow.DefineActivity("watch", func(ctx context.Context, _ int) (int, error) {
		executed.add("watch")
		<-ctx.Done()
		return 0, ctx.Err()
	})
	reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return 1, nil },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1})).
		WithCompensation(func(context.Context, int, int) error {
			if executed.add("undo") == 1 {
				return errors.New("not now")
			}
			return nil
		})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		watch.Go(ctx, n)
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
	for range 2 {
		if _, err := run.Result(ctx); err == nil {
			t.Fatal("the run completed")
		}
		if executed.of("undo") == 1 {
			if err := w.Retry(ctx, run.ID()); err != nil {
				t.Fatal(err)
			}
		}
	}
	w.shutdown(t) // what had begun has ended
	if executed.of("undo") != 2 || executed.of("watch") > 1 {
		t.Errorf("undone in %d attempts, and %d times begun beside it; want 2 and once", executed.of("undo"), executed.of("watch"))
	}
}

// tracked is a result that has become a number of its own since it was recorded as text.
type tracked struct{ Number int }

// A step whose result does not fit the code any more is not forgotten: its run is stuck, and goes on with code that fits, as if nothing had
// been. If nobody has asked for the result, and the run fails, that the step could not be undone is recorded, and Retry undoes it.
func TestAStepWhoseResultDoesNotFitIsNotForgotten(t *testing.T) {
	t.Parallel()
	for how, want := range map[string]struct {
		status       workflow.Status
		compensation bool
		said         string
	}{
		"executed": {workflow.StatusStuck, false, `history does not fit the code at position 1: decode the recorded result of activity "send"`},
		"got":      {workflow.StatusStuck, false, `history does not fit the code at position 1: decode the recorded result of activity "send"`},
		"awaited":  {workflow.StatusFailed, true, `decode the recorded result of activity`},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			var undone atomic.Int32
			fitting := sending(how, func(_ context.Context, number string) error {
				if number != "parcel 7" {
					return fmt.Errorf("undoing %q", number)
				}
				undone.Add(1)
				return nil
			}, "parcel 7")
			changed := sending(how, func(context.Context, tracked) error { undone.Add(100); return nil }, tracked{})
			one := startWorker(t, pool, []workflow.Definition{fitting})
			run, err := fitting.Start(ctx, one.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "it is parked", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_channels = array['go']") == 1
			})
			one.shutdown(t)
			two := startWorker(t, pool, []workflow.Definition{changed})
			if err := two.SendTo(ctx, run.ID(), "go", 1); err != nil {
				t.Fatal(err)
			}
			_, err = changed.Run(two.Engine, run.ID()).Result(ctx)
			failed := new(workflow.RunError)
			if !errors.As(err, &failed) || failed.Status != want.status || (len(failed.CompensationErrors) == 1) != want.compensation || !strings.Contains(err.Error(), want.said) {
				t.Fatalf("got %v, want a run that is %s and says %s", err, want.status, want.said)
			}
			two.shutdown(t)
			three := startWorker(t, pool, []workflow.Definition{fitting})
			if err := three.Retry(ctx, run.ID()); err != nil {
				t.Fatal(err)
			}
			_, err = fitting.Run(three.Engine, run.ID()).Result(ctx)
			if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message != "changed my mind" || len(failed.CompensationErrors) != 0 {
				t.Errorf("got %v, want a failed run that is undone", err)
			}
			if n := undone.Load(); n != 1 {
				t.Errorf("undone %d times, want once, by the code that fits", n)
			}
		})
	}
}

// sending is a workflow that sends something, waits, and fails.
func sending[Out any](how string, undo func(context.Context, Out) error, sent Out) *workflow.Workflow[int, int] {
	send := workflow.DefineActivity("send", func(context.Context, int) (Out, error) { return sent, nil }).
		WithCompensation(func(ctx context.Context, _ int, out Out) error { return undo(ctx, out) })
	return workflow.Define("sending", func(ctx *workflow.Context, _ int) (_ int, err error) {
		switch how {
		case "executed":
			_, err = send.Execute(ctx, 0)
		case "got":
			_, err = send.Go(ctx, 0).Get(ctx)
		default:
			err = workflow.All(ctx, send.Go(ctx, 0))
		}
		if err != nil {
			return 0, err
		}
		if _, err := workflow.Receive[int](ctx, "go"); err != nil {
			return 0, err
		}
		return 0, errors.New("changed my mind")
	})
}

// A run whose input or recorded value does not fit the code is stuck, too, with all that it has done, and goes on with code that fits.
func TestARunThatDoesNotFitTheCodeIsStuck(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	fitting, otherInput, otherValue := remembering[int](7), workflow.Define("remembering", func(*workflow.Context, tracked) (int, error) { return 0, nil }), remembering(tracked{})
	one := startWorker(t, pool, []workflow.Definition{fitting})
	run, err := fitting.Start(ctx, one.Engine, 5)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is parked", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
	})
	one.shutdown(t)
	client := startWorker(t, pool, nil, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	if err := client.SendTo(ctx, run.ID(), "go", 1); err != nil {
		t.Fatal(err)
	}
	for said, definition := range map[string]workflow.Definition{
		`decode the input of workflow "remembering" into workflow_test.tracked`:        otherInput,
		`decode the recorded value of side effect "number" into workflow_test.tracked`: otherValue,
	} {
		w := startWorker(t, pool, []workflow.Definition{definition})
		_, err := fitting.Run(w.Engine, run.ID()).Result(ctx)
		failed := new(workflow.RunError)
		if !errors.Is(err, workflow.ErrDiverged) || !errors.As(err, &failed) || failed.Status != workflow.StatusStuck || !strings.Contains(err.Error(), said) || !strings.Contains(err.Error(), "deploy code that fits") {
			t.Errorf("got %v, want a stuck run that says %s", err, said)
		}
		w.shutdown(t)
		if err := client.Retry(ctx, run.ID()); err != nil {
			t.Fatal(err)
		}
	}
	three := startWorker(t, pool, []workflow.Definition{fitting})
	if got, err := fitting.Run(three.Engine, run.ID()).Result(ctx); err != nil || got != 5 {
		t.Errorf("with code that fits it returned %d, %v", got, err)
	}
}

// remembering records a value, waits, and returns its input.
func remembering[T any](value T) *workflow.Workflow[int, int] {
	return workflow.Define("remembering", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := workflow.SideEffect(ctx, "number", func() (T, error) { return value, nil }); err != nil {
			return 0, err
		}
		_, err := workflow.Receive[int](ctx, "go")
		return n, err
	})
}
