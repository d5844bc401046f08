package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// refusal is an error as they are written every day: Error panics when it is asked of a nil pointer.
type refusal struct{ why string }

func (r *refusal) Error() string { return r.why }

// spiteful panics in the one method that is named.
type spiteful struct{ method string }

func (s spiteful) panicIn(method string) {
	if s.method == method {
		panic("you should not have asked")
	}
}

func (s spiteful) Error() string { s.panicIn("Error"); return "spite" }

func (s spiteful) ErrorType() string { s.panicIn("ErrorType"); return "spite" }

func (s spiteful) ErrorDetails() json.RawMessage { s.panicIn("ErrorDetails"); return nil }

func (s spiteful) Unwrap() error { s.panicIn("Unwrap"); return nil }

func (s spiteful) Is(error) bool { s.panicIn("Is"); return false }

func (s spiteful) As(any) bool { s.panicIn("As"); return false }

// stillServes fails the test unless a worker that executes echoing executes another run of it.
func stillServes(ctx context.Context, t *testing.T, w *worker) {
	t.Helper()
	run, err := echoing.Start(ctx, w.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 7 {
		t.Errorf("afterwards another run returned %d, %v", got, err)
	}
}

var echoing = workflow.Define("echoing", func(_ *workflow.Context, n int) (int, error) { return n, nil })

// An error whose methods panic, as those of a nil pointer do, is a failure like others, wherever it is returned: it is retried as the
// policy says, recorded, shown in traces, and leaves the worker as it was.
func TestErrorThatPanicsWhenAskedIsARecordedFailure(t *testing.T) {
	t.Parallel()
	var nilPointer *refusal
	for name, test := range map[string]struct {
		cause error
		named string
	}{
		"nil pointer":          {nilPointer, "*workflow_test.refusal that is a nil pointer"},
		"terminal nil pointer": {workflow.Terminal(nilPointer), "*workflow_test.refusal that is a nil pointer"},
		"nil Error":            {(*workflow.Error)(nil), "*workflow.Error that is a nil pointer"},
		"wrapped nil Error":    {fmt.Errorf("charge: %w", (*workflow.Error)(nil)), "*fmt.wrapError"},
		"Error":                {spiteful{"Error"}, "workflow_test.spiteful: you should not have asked"},
		"ErrorType":            {spiteful{"ErrorType"}, "workflow_test.spiteful: you should not have asked"},
		"ErrorDetails":         {spiteful{"ErrorDetails"}, "workflow_test.spiteful: you should not have asked"},
		"Unwrap":               {spiteful{"Unwrap"}, "workflow_test.spiteful: you should not have asked"},
		"Is":                   {spiteful{"Is"}, "workflow_test.spiteful: you should not have asked"},
		"As":                   {spiteful{"As"}, "workflow_test.spiteful: you should not have asked"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			const attempts = 3
			var executed tally
			charge := workflow.DefineActivity("charge", func(ctx context.Context, _ int) (int, error) {
				executed.add(workflow.ActivityInfo(ctx).InstanceID)
				return 0, test.cause
			}, workflow.WithRetry(workflow.RetryPolicy{
				MaxAttempts: attempts, InitialInterval: time.Millisecond, NonRetryable: []error{workflow.NewError("declined", "")},
			}))
			reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return 1, nil }).
				WithCompensation(func(context.Context, int, int) error { executed.add("undone"); return nil })
			flow := workflow.Define("asking", func(ctx *workflow.Context, how string) (int, error) {
				switch how {
				case "Execute":
					return charge.Execute(ctx, 0)
				case "Go":
					return charge.Go(ctx, 0).Get(ctx)
				}
				if _, err := reserve.Execute(ctx, 0); err != nil {
					return 0, err
				}
				return 0, test.cause
			})
			w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow, echoing}, newTracing().option())
			ctx := testContext(t)
			for how, want := range map[string]int{"Execute": attempts, "Go": attempts, "return": 0} {
				run, err := flow.Start(ctx, w.Engine, how, workflow.WithID(how))
				if err != nil {
					t.Fatal(err)
				}
				_, err = run.Result(ctx)
				failed := new(workflow.RunError)
				if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Type != "panic" {
					t.Errorf("%s: got %v, want a failed run of type panic", how, err)
				} else if !strings.Contains(failed.Message, "panic in a method of the error that was returned, a "+test.named) || failed.Stack == "" {
					t.Errorf("%s: the failure says %q with stack %q", how, failed.Message, failed.Stack)
				}
				if n := executed.of(how); n != want {
					t.Errorf("%s: %d attempts, want %d", how, n, want)
				}
			}
			if n := executed.of("undone"); n != 1 {
				t.Errorf("the run that returned the error was undone %d times, want once", n)
			}
			stillServes(ctx, t, w)
		})
	}
}

// An activity that ends its goroutine instead of returning (runtime.Goexit, as a test's FailNow does) has failed an attempt, however it was
// begun: its policy says how many there are, and the workflow is told of the last.
func TestActivityThatEndsItsGoroutineHasFailedAnAttempt(t *testing.T) {
	t.Parallel()
	const attempts = 3
	retry := workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: attempts, InitialInterval: time.Millisecond})
	pool := pgtest.Pool(t)
	var executed tally
	leave := func(ctx context.Context, _ int) (int, error) {
		executed.add(workflow.ActivityInfo(ctx).InstanceID)
		runtime.Goexit()
		return 1, nil
	}
	retried := workflow.DefineActivity("retried", leave, retry)
	once := workflow.DefineActivity("once", leave)
	inTransaction := workflow.DefineActivity("in transaction", leave, retry, workflow.WithTransaction())
	second := workflow.DefineActivity("second", func(ctx context.Context, n int) (int, error) {
		if info := workflow.ActivityInfo(ctx); info.Attempt < 2 {
			return leave(ctx, n)
		}
		executed.add(workflow.ActivityInfo(ctx).InstanceID)
		return 2, nil
	}, retry)
	flow := workflow.Define("leaving", func(ctx *workflow.Context, how string) (string, error) {
		var n int
		var err error
		switch how {
		case "Execute":
			n, err = retried.Execute(ctx, 0)
		case "once":
			n, err = once.Execute(ctx, 0)
		case "transaction":
			n, err = inTransaction.Execute(ctx, 0)
		case "second":
			n, err = second.Execute(ctx, 0)
		case "Go":
			n, err = retried.Go(ctx, 0).Get(ctx)
		case "Go second":
			n, err = second.Go(ctx, 0).Get(ctx)
		}
		if err == nil {
			return fmt.Sprint(n), nil
		}
		failed := new(workflow.ActivityError)
		if !errors.As(err, &failed) {
			return "", err
		}
		return fmt.Sprintf("%s, %d attempts", failed.Type, failed.Attempts), nil // the workflow goes on
	})
	w := startWorker(t, pool, []workflow.Definition{flow, echoing})
	ctx := testContext(t)
	for how, want := range map[string]struct {
		result   string
		executed int
	}{
		"Execute":     {"goexit, 3 attempts", attempts},
		"once":        {"goexit, 1 attempts", 1},
		"transaction": {"goexit, 3 attempts", attempts},
		"second":      {"2", 2},
		"Go":          {"goexit, 3 attempts", attempts},
		"Go second":   {"2", 2},
	} {
		run, err := flow.Start(ctx, w.Engine, how, workflow.WithID(how))
		if err != nil {
			t.Fatal(err)
		}
		if got, err := run.Result(ctx); err != nil || got != want.result {
			t.Errorf("%s: got %q, %v; want %q", how, got, err, want.result)
		}
		if n := executed.of(how); n != want.executed {
			t.Errorf("%s: executed %d times, want %d", how, n, want.executed)
		}
	}
	stillServes(ctx, t, w)
}

// A workflow that ends its goroutine has failed, and is undone; so has a compensation, which its run reports.
func TestWorkflowThatEndsItsGoroutineHasFailed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { return 1, nil },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond})).
		WithCompensation(func(context.Context, int, int) error {
			executed.add("undone")
			runtime.Goexit()
			return nil
		})
	flow := workflow.Define("leaving", func(ctx *workflow.Context, _ int) (int, error) {
		executed.add("begun")
		if _, err := reserve.Execute(ctx, 0); err != nil {
			return 0, err
		}
		runtime.Goexit()
		return 1, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow, echoing})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Type != "goexit" ||
		failed.Message != "the workflow ended its goroutine instead of returning" || len(failed.CompensationErrors) != 1 {
		t.Errorf("got %v", err)
	}
	if n := executed.of("undone"); n != 2 {
		t.Errorf("the compensation was attempted %d times, want 2", n)
	}
	if n := executed.of("begun"); n != 3 { // and once again after each attempt of the compensation
		t.Errorf("the workflow was executed %d times, want 3", n)
	}
	stillServes(ctx, t, w)
}

// touchy is a log handler that panics when it is told of a compensation that failed.
type touchy struct{ slog.Handler }

func (h touchy) WithAttrs(attrs []slog.Attr) slog.Handler { return touchy{h.Handler.WithAttrs(attrs)} }

func (h touchy) Handle(ctx context.Context, record slog.Record) error {
	if record.Message == "compensation failed for good" {
		panic("touched")
	}
	return h.Handler.Handle(ctx, record)
}

// What panics while its steps are undone, outside of them, stops the run where it is: neither is it repeated for ever,
// nor does it fail without having been undone.
func TestRunThatPanicsAtItsEndIsStuck(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	set := workflow.DefineActivity("set", func(context.Context, int) (int, error) { return 1, nil }).
		WithCompensation(func(context.Context, int, int) error {
			return workflow.Terminal(errors.New("cannot be undone"))
		})
	flow := workflow.Define("trapped", func(ctx *workflow.Context, _ int) (int, error) {
		for range 2 {
			if _, err := set.Execute(ctx, 0); err != nil {
				return 0, err
			}
		}
		return 0, errors.New("changed my mind")
	})
	w := startWorker(t, pool, []workflow.Definition{flow, echoing}, configured(func(c *workflow.Config) {
		c.Logger = slog.New(touchy{c.Logger.Handler()})
	}))
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusStuck || failed.Message != "panic at the end of the run: touched" || failed.Stack == "" {
		t.Errorf("got %v, want a stuck run", err)
	}
	stillServes(ctx, t, w)
}

// A step beside one that ends the run's goroutine is given up and executed again, never by two at a time.
func TestStepBesideOneThatEndsTheGoroutineIsNotExecutedTwiceAtATime(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var inside, most atomic.Int32
	begun := make(chan struct{})
	var once sync.Once
	beside := workflow.DefineActivity("beside", func(ctx context.Context, _ int) (int, error) {
		most.Store(max(most.Load(), inside.Add(1)))
		defer inside.Add(-1)
		first := false
		once.Do(func() { first = true })
		if !first {
			return 1, nil
		}
		close(begun)
		<-ctx.Done()
		return 0, ctx.Err()
	})
	leave := workflow.DefineActivity("leave", func(context.Context, int) (int, error) { <-begun; runtime.Goexit(); return 1, nil })
	flow := workflow.Define("leaving", func(ctx *workflow.Context, _ int) (int, error) {
		future := beside.Go(ctx, 0)
		if _, err := leave.Execute(ctx, 0); !errors.Is(err, workflow.NewError("goexit", "")) {
			return 0, fmt.Errorf("the step that ended the goroutine returned %w", err)
		}
		return future.Get(ctx)
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 1 {
		t.Errorf("got %d, %v", got, err)
	}
	if n := most.Load(); n != 1 {
		t.Errorf("the step beside was executed by %d at a time", n)
	}
}
