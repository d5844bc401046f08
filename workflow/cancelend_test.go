package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Cancel with Compensate has returned nil while the workflow was past its last command: however its function ends then, the run
// undoes its steps and ends as cancelled.
func TestCancelThatWasAcknowledgedIsCarriedOutHoweverTheFunctionEnds(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(ctx *workflow.Context) error{
		"completes": func(*workflow.Context) error { return nil },
		"fails":     func(*workflow.Context) error { return errors.New("out of stock") },
		"panics":    func(*workflow.Context) error { panic("out of stock") },
		"continues": func(ctx *workflow.Context) error { return workflow.ContinueAsNew(ctx, 1) },
	} {
		for _, undoes := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, undoes %t", name, undoes), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				var undone tally
				there, release := make(chan struct{}, 100), make(chan struct{})
				reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil })
				if undoes {
					reserve = reserve.WithCompensation(func(context.Context, int, int) error { undone.add("reserve"); return nil })
				}
				flow := workflow.Define("returning", func(ctx *workflow.Context, n int) (int, error) {
					if _, err := reserve.Execute(ctx, n); err != nil {
						return 0, err
					}
					there <- struct{}{}
					<-release // not a command: nothing tells it
					return 7, end(ctx)
				})
				w := startWorker(t, pool, []workflow.Definition{flow})
				ctx := testContext(t)
				run, err := flow.Start(ctx, w.Engine, 0)
				if err != nil {
					t.Fatal(err)
				}
				<-there
				if err := w.Cancel(ctx, run.ID(), "changed my mind", workflow.Compensate()); err != nil {
					t.Fatal(err)
				}
				if err := w.Cancel(ctx, run.ID(), "at once"); !errors.Is(err, workflow.ErrEnded) {
					t.Errorf("what was promised was given up: %v", err)
				}
				if err := w.Cancel(ctx, run.ID(), "once more", workflow.Compensate()); err != nil {
					t.Errorf("asked again: %v", err)
				}
				close(release)
				failed := new(workflow.RunError)
				if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusCancelled || failed.Message != "changed my mind" {
					t.Fatalf("got %v, want it cancelled", err)
				}
				want := 0
				if undoes {
					want = 1
				}
				if n := undone.of("reserve"); n != want {
					t.Errorf("undone %d times, want %d", n, want)
				}
				if n := count(t, pool, "select count(*) from romancy.instances"); n != 1 {
					t.Errorf("there are %d runs, want the one", n)
				}
			})
		}
	}
}

// A worker that is gone while a run undoes its steps, because it learnt at its end that it is cancelled, leaves it to the next: there
// the function ends as before, and the run goes on undoing and ends as cancelled.
func TestCancelThatWasLearntAtTheEndGoesOnElsewhere(t *testing.T) {
	t.Parallel()
	for name, end := range map[string]func(ctx *workflow.Context) error{
		"completes": func(*workflow.Context) error { return nil },
		"fails":     func(*workflow.Context) error { return errors.New("out of stock") },
		"continues": func(ctx *workflow.Context) error { return workflow.ContinueAsNew(ctx, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var undone tally
			there, release := make(chan struct{}, 10), make(chan struct{})
			reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil }).
				WithCompensation(func(ctx context.Context, _, _ int) error {
					if undone.add("reserve") > 1 {
						return nil
					}
					there <- struct{}{}
					<-ctx.Done()
					return ctx.Err()
				})
			flow := workflow.Define("returning", func(ctx *workflow.Context, n int) (int, error) {
				if _, err := reserve.Execute(ctx, n); err != nil {
					return 0, err
				}
				there <- struct{}{}
				<-release
				return 7, end(ctx)
			})
			one := startWorker(t, pool, []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, one.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			<-there
			if err := one.Cancel(ctx, run.ID(), "changed my mind", workflow.Compensate()); err != nil {
				t.Fatal(err)
			}
			close(release)
			<-there
			over, cancel := context.WithCancel(context.Background())
			cancel()
			if err := one.Shutdown(over); err == nil {
				t.Fatal("shut down within no time although a compensation was executing")
			}
			two := startWorker(t, pool, []workflow.Definition{flow})
			failed := new(workflow.RunError)
			_, err = flow.Run(two.Engine, run.ID()).Result(ctx)
			if !errors.As(err, &failed) || failed.Status != workflow.StatusCancelled || failed.Message != "changed my mind" {
				t.Fatalf("got %v, want it cancelled", err)
			}
			if n := undone.of("reserve"); n != 2 {
				t.Errorf("undone in %d attempts, want the one that was lost and another", n)
			}
		})
	}
}

// A run that is stuck while it undoes its steps, because it has failed or is cancelled, is given up by Cancel without Compensate, which
// ends it with what is not undone. Cancel with Compensate leaves it as it is.
func TestCancelGivesUpARunThatIsStuckWhileItUndoesItsSteps(t *testing.T) {
	t.Parallel()
	for _, cause := range []workflow.Status{workflow.StatusFailed, workflow.StatusCancelled} {
		t.Run(string(cause), func(t *testing.T) {
			t.Parallel()
			giveUpUndoing(t, cause)
		})
	}
}

func giveUpUndoing(t *testing.T, cause workflow.Status) {
	t.Helper()
	pool, ctx := pgtest.Pool(t), testContext(t)
	var attempts atomic.Int32
	trip := func(name string) *workflow.Workflow[int, int] {
		book := workflow.DefineActivity(name, func(context.Context, int) (int, error) { return 1, nil },
			workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1000, InitialInterval: 100 * time.Millisecond, MaxInterval: 100 * time.Millisecond})).
			WithCompensation(func(context.Context, int, int) error {
				attempts.Add(1)
				return errors.New("not now")
			})
		return workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
			if _, err := book.Execute(ctx, 1); err != nil {
				return 0, err
			}
			if cause == workflow.StatusFailed {
				return 0, errors.New("no flight")
			}
			return 0, workflow.Sleep(ctx, time.Hour)
		})
	}
	flow := trip("hotel")
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if cause == workflow.StatusCancelled {
		eventually(t, "it sleeps", func() bool {
			return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
		})
		if err := one.Cancel(ctx, run.ID(), "changed my mind", workflow.Compensate()); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it undoes", func() bool { return attempts.Load() > 0 })
	if err := one.Cancel(ctx, run.ID(), "give it up"); !errors.Is(err, workflow.ErrEnded) {
		t.Errorf("cancel of a run that undoes its steps: %v, want ErrEnded", err)
	}
	one.shutdown(t)
	changed := trip("inn") // does not fit its history
	two := startWorker(t, pool, []workflow.Definition{changed})
	status := func() workflow.Status {
		info, err := two.Get(ctx, run.ID())
		if err != nil {
			t.Fatal(err)
		}
		return info.Status
	}
	eventually(t, "it is stuck", func() bool { return status() == workflow.StatusStuck })
	_ = two.Cancel(ctx, run.ID(), "again", workflow.Compensate()) // nil or ErrEnded, after what it undoes its steps for
	if now := status(); now != workflow.StatusStuck {
		t.Errorf("cancelled with Compensate it is %s, want it to stay stuck", now)
	}
	for range 2 { // a Cancel whose answer was lost can be repeated
		if err := two.Cancel(ctx, run.ID(), "give it up"); err != nil {
			t.Fatal(err)
		}
	}
	ended := new(workflow.RunError)
	if _, err := changed.Run(two.Engine, run.ID()).Result(ctx); !errors.As(err, &ended) || ended.Status != workflow.StatusCancelled || ended.Message != "give it up" {
		t.Errorf("got %v, want the run to be cancelled for the reason that it was given up for", err)
	}
}
