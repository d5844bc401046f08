package workflow_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Whatever a run is doing, cancelling it ends it, its waits and its subscriptions, and tells those who wait for the result, here
// and elsewhere.
func TestCancelEndsARunWhateverItDoes(t *testing.T) {
	t.Parallel()
	hung := make(chan struct{}, 10)
	hang := workflow.DefineActivity("hang", func(ctx context.Context, _ int) (int, error) {
		hung <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	})
	for name, do := range map[string]func(ctx *workflow.Context) error{
		"sleeping": func(ctx *workflow.Context) error { hung <- struct{}{}; return workflow.Sleep(ctx, time.Hour) },
		"receiving": func(ctx *workflow.Context) error {
			hung <- struct{}{}
			_, err := workflow.Receive[int](ctx, "news", workflow.WithTimeout(time.Hour))
			return err
		},
		"executing": func(ctx *workflow.Context) error { _, err := hang.Execute(ctx, 0); return err },
		"beside":    func(ctx *workflow.Context) error { _, err := hang.Go(ctx, 0).Get(ctx); return err },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			over := make(chan struct{}, 10)
			flow := workflow.Define("endless", func(ctx *workflow.Context, _ int) (int, error) {
				if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
					return 0, err
				}
				err := do(ctx)
				over <- struct{}{} // never: the goroutine ends
				return 0, err
			})
			w := startWorker(t, pool, []workflow.Definition{flow})
			other := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			<-hung
			if err := other.Cancel(ctx, run.ID(), "not wanted any more"); err != nil {
				t.Fatal(err)
			}
			for _, handle := range []*workflow.Run[int]{run, flow.Run(other.Engine, run.ID())} {
				_, err := handle.Result(ctx)
				failed := new(workflow.RunError)
				if !errors.As(err, &failed) || failed.Status != workflow.StatusCancelled || failed.Message != "not wanted any more" || !errors.Is(err, workflow.ErrCancelled) {
					t.Errorf("got %v", err)
				}
			}
			eventually(t, "nothing is left in memory", func() bool { return w.Status().Executing+w.Status().Parked == 0 })
			if n := count(t, pool, "select count(*) from romancy.subscriptions"); n != 0 {
				t.Errorf("%d subscriptions left", n)
			}
			if err := other.SendTo(ctx, run.ID(), "news", 1); !errors.Is(err, workflow.ErrUndeliverable) {
				t.Errorf("sent to a cancelled run: %v", err)
			}
			if err := other.Cancel(ctx, run.ID(), "again"); err != nil {
				t.Errorf("cancelled again: %v", err)
			}
			select {
			case <-over:
				if name == "sleeping" || name == "receiving" {
					t.Error("the workflow went on")
				}
			default:
			}
		})
	}
}

// Asked to, a cancelled run undoes what it has done: every command of the workflow says that it is cancelled, wherever it was, also
// if it was in nobody's memory, and no notification arrives.
func TestCancelWithCompensation(t *testing.T) {
	t.Parallel()
	for _, world := range []struct {
		name    string
		options []workerOption
	}{{"notified", nil}, {"evicted, without notifications", []workerOption{withoutNotify, evicting}}} {
		for _, what := range []string{"sleep", "receive", "receive with timeout", "execute", "retry", "future", "retry of a future", "select"} {
			t.Run(world.name+"/"+what, func(t *testing.T) {
				t.Parallel()
				cancelCompensating(t, what, world.options)
			})
		}
	}
}

func cancelCompensating(t *testing.T, what string, options []workerOption) {
	t.Helper()
	pool := pgtest.Pool(t)
	var undone tally
	there := make(chan struct{}, 100)
	reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil }).
		WithCompensation(func(context.Context, int, int) error { undone.add("reserve"); return nil })
	hang := workflow.DefineActivity("hang", func(ctx context.Context, _ int) (int, error) {
		there <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	})
	fail := workflow.DefineActivity("fail", func(context.Context, int) (int, error) { there <- struct{}{}; return 0, errors.New("not yet") },
		workflow.WithRetry(workflow.RetryPolicy{InitialInterval: time.Hour, MaxInterval: time.Hour}))
	flow := workflow.Define("cautious", func(ctx *workflow.Context, _ int) (int, error) {
		if _, err := reserve.Execute(ctx, 1); err != nil {
			return 0, err
		}
		var err error
		switch what {
		case "sleep":
			there <- struct{}{}
			err = workflow.Sleep(ctx, time.Hour)
		case "receive":
			there <- struct{}{}
			_, err = workflow.Receive[int](ctx, "news")
		case "receive with timeout":
			there <- struct{}{}
			_, err = workflow.Receive[int](ctx, "news", workflow.WithTimeout(time.Hour))
		case "execute":
			_, err = hang.Execute(ctx, 0)
		case "retry":
			_, err = fail.Execute(ctx, 0)
		case "future":
			_, err = hang.Go(ctx, 0).Get(ctx)
		case "retry of a future":
			_, err = fail.Go(ctx, 0).Get(ctx)
		case "select":
			err = workflow.Select(ctx, workflow.OnResult(hang.Go(ctx, 0), func(int, error) error { return nil }),
				workflow.OnMessage("news", func(workflow.Message[int]) error { return nil }), workflow.OnTimer(time.Hour, func() error { return nil }))
		}
		if !errors.Is(err, workflow.ErrCancelled) {
			return 0, err
		}
		if _, err := reserve.Execute(ctx, 2); !errors.Is(err, workflow.ErrCancelled) {
			return 0, err
		}
		return 7, nil // which is too late
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, options...)
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-there
	if err := w.Cancel(ctx, run.ID(), "changed my mind", workflow.Compensate()); err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusCancelled || !strings.Contains(failed.Message, "changed my mind") {
		t.Fatalf("got %v", err)
	}
	if n := undone.of("reserve"); n != 1 {
		t.Errorf("undone %d times, want once", n)
	}
	if n := count(t, pool, "select count(*) from romancy.history where kind = 'compensation'"); n != 1 {
		t.Errorf("%d compensations recorded", n)
	}
}

// A worker that dies while a cancelled run undoes its steps leaves it to the next, which goes on undoing; meanwhile the run is shown as
// compensating, and cannot be cancelled in another way.
func TestCancelledRunGoesOnUndoingElsewhere(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var undone tally
	there, release := make(chan struct{}, 10), make(chan struct{})
	reserve := workflow.DefineActivity("reserve", func(_ context.Context, n string) (string, error) { return n, nil }).
		WithCompensation(func(ctx context.Context, _, n string) error {
			if undone.add(n) == 1 && n == "first" {
				there <- struct{}{}
				select {
				case <-release:
				case <-ctx.Done():
					return ctx.Err()
				}
			}
			return nil
		})
	flow := workflow.Define("two steps", func(ctx *workflow.Context, _ int) (int, error) {
		for _, step := range []string{"first", "second"} {
			if _, err := reserve.Execute(ctx, step); err != nil {
				return 0, err
			}
		}
		there <- struct{}{}
		return 0, workflow.Sleep(ctx, time.Hour)
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-there
	if err := one.Cancel(ctx, run.ID(), "no", workflow.Compensate()); err != nil {
		t.Fatal(err)
	}
	<-there
	if info, err := one.Get(ctx, run.ID()); err != nil || info.Status != workflow.StatusCompensating {
		t.Fatalf("%+v, %v: want it to be compensating", info, err)
	}
	page, err := one.List(ctx, workflow.Filter{Statuses: []workflow.Status{workflow.StatusCompensating}})
	if err != nil || len(page.Runs) != 1 {
		t.Fatalf("%+v, %v: want it in the list", page, err)
	}
	if err := one.Cancel(ctx, run.ID(), "at once"); !errors.Is(err, workflow.ErrEnded) {
		t.Fatalf("cancelled while it undid its steps: %v", err)
	}
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := one.Shutdown(over); err == nil {
		t.Fatal("shut down within no time although a compensation was executing")
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	_, err = flow.Run(two.Engine, run.ID()).Result(ctx)
	close(release)
	if !errors.Is(err, workflow.ErrCancelled) {
		t.Fatalf("got %v", err)
	}
	if undone.of("second") != 1 || undone.of("first") != 2 {
		t.Errorf("second undone %d times, first %d; want 1 and, for the attempt that was lost, 2", undone.of("second"), undone.of("first"))
	}
}

// A run that is cancelled when its function has returned, and only a step beside it is still under way, undoes its steps; a worker
// that takes it over in the middle of that finds no command for what history says, and goes on undoing.
func TestRunCancelledAtItsEndGoesOnUndoingElsewhere(t *testing.T) {
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
			select {
			case <-release:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	hang := workflow.DefineActivity("hang", func(ctx context.Context, _ int) (int, error) {
		there <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	})
	flow := workflow.Define("returned", func(ctx *workflow.Context, _ int) (int, error) {
		if _, err := reserve.Execute(ctx, 1); err != nil {
			return 0, err
		}
		hang.Go(ctx, 0)
		return 1, nil
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-there
	if err := one.Cancel(ctx, run.ID(), "no", workflow.Compensate()); err != nil {
		t.Fatal(err)
	}
	<-there
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := one.Shutdown(over); err == nil {
		t.Fatal("shut down within no time although a compensation was executing")
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	_, err = flow.Run(two.Engine, run.ID()).Result(ctx)
	close(release)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusCancelled || undone.of("reserve") != 2 {
		t.Fatalf("got %v after %d attempts to undo", err, undone.of("reserve"))
	}
}

func TestCancelSaysWhatItCannotDo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("short", func(*workflow.Context, int) (int, error) { return 1, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Cancel(ctx, run.ID(), "late"); !errors.Is(err, workflow.ErrEnded) || !strings.Contains(err.Error(), "completed") {
		t.Errorf("cancelled a completed run: %v", err)
	}
	if err := w.Cancel(ctx, "nobody", "x"); !errors.Is(err, workflow.ErrNotFound) {
		t.Errorf("cancelled a run that does not exist: %v", err)
	}
	if err := w.Cancel(ctx, run.ID(), strings.Repeat("x", 20_000)); err == nil || !strings.Contains(err.Error(), "10000 bytes") {
		t.Errorf("took an endless reason: %v", err)
	}
}

// A run that parks while Cancel waits for its row has something to undo, although it had not when Cancel began to wait.
func TestCancelSeesWhatWasRecordedWhileItWaited(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var undone tally
	reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil }).
		WithCompensation(func(context.Context, int, int) error { undone.add("reserve"); return nil })
	flow := workflow.Define("raced", func(ctx *workflow.Context, _ int) (int, error) {
		if _, err := reserve.Execute(ctx, 1); err != nil {
			return 0, err
		}
		_, err := workflow.Receive[int](ctx, "news")
		return 0, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	const runs = 200
	outcomes := make(chan error, runs)
	for range runs {
		go func() {
			run, err := flow.Start(ctx, w.Engine, 0)
			if err == nil {
				err = w.Cancel(ctx, run.ID(), "at once", workflow.Compensate())
			}
			if err == nil {
				if _, err = run.Result(ctx); errors.Is(err, workflow.ErrCancelled) {
					err = nil
				}
			}
			outcomes <- err
		}()
	}
	for range runs {
		if err := <-outcomes; err != nil {
			t.Fatal(err)
		}
	}
	done := count(t, pool, "select count(*) from romancy.history where kind = 'activity'")
	if n := undone.of("reserve"); n != done {
		t.Errorf("%d steps done, %d undone", done, n)
	}
}

// A cancelled run leaves no message that nobody will read, and no deadline that nobody waits for, whether it undoes its steps or not.
func TestCancelLeavesNeitherMailNorDeadline(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("sleeper", func(ctx *workflow.Context, _ int) (int, error) { return 0, workflow.Sleep(ctx, time.Hour) })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	for id, options := range map[string][]workflow.CancelOption{"at once": nil, "undoing": {workflow.Compensate()}} {
		run, err := flow.Start(ctx, w.Engine, 0, workflow.WithID(id))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the run sleeps", func() bool {
			return count(t, pool, "select count(*) from romancy.instances where id = $1 and status = 'waiting' and wake_at is not null", id) == 1
		})
		if err := w.SendTo(ctx, id, "unread", 1); err != nil {
			t.Fatal(err)
		}
		if n := count(t, pool, "select count(*) from romancy.mailbox where receiver = $1", id); n != 1 {
			t.Fatalf("%s: %d messages wait for the run, want 1", id, n)
		}
		if err := w.Cancel(ctx, id, "not wanted any more", options...); err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
			t.Fatalf("%s: got %v", id, err)
		}
		if n := count(t, pool, "select count(*) from romancy.mailbox where receiver = $1", id); n != 0 {
			t.Errorf("%s: %d messages are left", id, n)
		}
		if n := count(t, pool, "select count(*) from romancy.instances where id = $1 and wake_at is null", id); n != 1 {
			t.Errorf("%s: the run has kept its deadline", id)
		}
	}
}
