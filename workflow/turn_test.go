package workflow_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// wantStuck waits for the end of a run and fails the test unless it is stuck and says said.
func wantStuck[Out any](ctx context.Context, t *testing.T, run *workflow.Run[Out], said string) {
	t.Helper()
	_, err := run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusStuck || !strings.Contains(err.Error(), said) {
		t.Errorf("got %v, want a stuck run that says %q", err, said)
	}
}

// A command that is issued inside the function of a side effect, or inside an activity or a compensation, has no place in history: the run is
// stuck, with its history as it was, and goes on with code that does without.
func TestCommandInsideAFunctionThatIsRecordedLeavesTheRunStuck(t *testing.T) {
	t.Parallel()
	for how, said := range map[string]string{
		"value":        "Activity.Execute was called inside the function of a SideEffect",
		"value sleeps": "Sleep was called inside the function of a SideEffect",
		"value begins": "Activity.Go was called inside the function of a SideEffect",
		"activity":     "SideEffect was called inside an activity or a compensation",
		"compensation": "SideEffect was called inside an activity or a compensation",
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			var refunded tally
			var mended atomic.Bool
			flow := workflow.Define("order", func(ctx *workflow.Context, _ int) (int, error) {
				inside := func() error {
					if mended.Load() {
						return nil
					}
					_, err := workflow.Now(ctx)
					return err
				}
				charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return 5, nil }).
					WithCompensation(func(context.Context, int, int) error {
						if how == "compensation" {
							if err := inside(); err != nil {
								return err
							}
						}
						refunded.add("")
						return nil
					})
				if _, err := charge.Execute(ctx, 1); err != nil {
					return 0, err
				}
				if how == "activity" {
					if _, err := workflow.DefineActivity("ask", func(context.Context, int) (int, error) { return 0, inside() }).Execute(ctx, 1); err != nil {
						return 0, err
					}
				}
				if _, err := workflow.SideEffect(ctx, "draw", func() (int, error) {
					switch {
					case mended.Load():
					case how == "value":
						return nothing.Execute(ctx, 1)
					case how == "value sleeps":
						return 0, workflow.Sleep(ctx, time.Millisecond)
					case how == "value begins":
						return nothing.Go(ctx, 1).Get(ctx)
					}
					return 1, nil
				}); err != nil {
					return 0, err
				}
				return 0, errors.New("changed my mind")
			})
			one := startWorker(t, pool, []workflow.Definition{flow, echoing})
			run, err := flow.Start(ctx, one.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			wantStuck(ctx, t, run, said)
			stillServes(ctx, t, one)
			one.shutdown(t)
			mended.Store(true)
			two := startWorker(t, pool, []workflow.Definition{flow})
			if err := two.Retry(ctx, run.ID()); err != nil {
				t.Fatal(err)
			}
			_, err = flow.Run(two.Engine, run.ID()).Result(ctx)
			failed := new(workflow.RunError)
			if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message != "changed my mind" || refunded.of("") != 1 {
				t.Errorf("mended: got %v, refunded %d times", err, refunded.of(""))
			}
		})
	}
}

// Two commands of a run at a time are found at once, whatever goroutines they are called in and whoever waits for these: one is told of
// Activity.Go, the run is stuck, what an activity has done is recorded, and the worker is as it was.
func TestTwoCommandsAtATimeLeaveTheRunStuck(t *testing.T) {
	t.Parallel()
	const several = 8
	for how, issue := range map[string]func(ctx *workflow.Context, act *workflow.Activity[int, int]) error{
		"goroutines": func(ctx *workflow.Context, act *workflow.Activity[int, int]) error {
			errs := make([]error, several)
			var group sync.WaitGroup
			for i := range several {
				group.Go(func() { _, errs[i] = act.Execute(ctx, i) })
			}
			group.Wait()
			return errors.Join(errs...)
		},
		"errors ignored": func(ctx *workflow.Context, act *workflow.Activity[int, int]) error {
			var group sync.WaitGroup
			for i := range several {
				group.Go(func() { _, _ = act.Execute(ctx, i) })
			}
			group.Wait()
			return nil
		},
		"results sent": func(ctx *workflow.Context, act *workflow.Activity[int, int]) error {
			results := make(chan error) // nobody sends twice, and whoever does not send is waited for
			for i := range several {
				go func() {
					_, err := act.Execute(ctx, i)
					results <- err
				}()
			}
			var errs []error
			for range several {
				errs = append(errs, <-results)
			}
			return errors.Join(errs...)
		},
		"beside the workflow's own": func(ctx *workflow.Context, act *workflow.Activity[int, int]) error {
			var group sync.WaitGroup
			begun := make(chan struct{})
			group.Go(func() { close(begun); _, _ = act.Execute(ctx, 1) })
			<-begun
			_, err := act.Execute(ctx, 2)
			group.Wait()
			return err
		},
		"not waited for": func(ctx *workflow.Context, _ *workflow.Activity[int, int]) error {
			begun := make(chan struct{})
			act := workflow.DefineActivity("slow", func(context.Context, int) (int, error) {
				close(begun)
				time.Sleep(50 * time.Millisecond)
				return 1, nil
			})
			go func() { _, _ = act.Execute(ctx, 1) }()
			<-begun
			return nil
		},
		"while one waits": func(ctx *workflow.Context, _ *workflow.Activity[int, int]) error {
			var group sync.WaitGroup
			begun := make(chan struct{})
			long := workflow.DefineActivity("long", func(context.Context, int) (int, error) { time.Sleep(3 * time.Second); return 0, nil })
			long.Go(ctx, 0) // so that the wait does not park the run
			group.Go(func() { close(begun); _, _ = workflow.Receive[int](ctx, "never") })
			<-begun
			for range 1000 {
				runtime.Gosched()
			}
			err := workflow.Publish(ctx, "news", 1)
			group.Wait()
			return err
		},
		"begun": func(ctx *workflow.Context, act *workflow.Activity[int, int]) error {
			var group sync.WaitGroup
			var errs [several]error
			for i := range several {
				group.Go(func() { _, errs[i] = act.Go(ctx, i).Get(ctx) })
			}
			group.Wait()
			return errors.Join(errs[:]...)
		},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			var executed tally
			act := workflow.DefineActivity("act", func(_ context.Context, i int) (int, error) {
				executed.add("")
				time.Sleep(20 * time.Millisecond) // others come meanwhile
				return i, nil
			})
			flow := workflow.Define("concurrent", func(ctx *workflow.Context, n int) (int, error) { return n, issue(ctx, act) })
			w := startWorker(t, pool, []workflow.Definition{flow, echoing})
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			wantStuck(ctx, t, run, "use Activity.Go")
			if recorded := count(t, pool, "select count(*) from romancy.history where name = 'act'"); recorded != executed.of("") {
				t.Errorf("%d activities were executed, %d are recorded", executed.of(""), recorded)
			}
			stillServes(ctx, t, w)
		})
	}
}

// A command in a goroutine of the workflow's own, with no other under way, is not found, but when the run ends here it neither ends that goroutine
// nor leaves the run's waiting for it: the run goes on elsewhere.
func TestCommandInAGoroutineOfTheWorkflowLetsTheRunGo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	var told atomic.Pointer[error]
	flow := workflow.Define("delegating", func(ctx *workflow.Context, n int) (int, error) {
		result := make(chan error)
		go func() {
			_, err := workflow.Receive[int](ctx, "go")
			if err != nil {
				told.Store(&err)
			}
			result <- err // not reached if the goroutine were ended
		}()
		return n, <-result
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is parked", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
	})
	one.shutdown(t)
	if told.Load() == nil {
		t.Error("the goroutine was not told that the run has left")
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	if err := two.SendTo(ctx, run.ID(), "go", 1); err != nil {
		t.Fatal(err)
	}
	if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
		t.Errorf("got %d, %v", got, err)
	}
}
