package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

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
