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

// rendezvous is an activity body that returns only when all of a group are in it at the same time.
type rendezvous struct {
	want int32
	here atomic.Int32
	met  chan struct{}
}

func newRendezvous(want int) *rendezvous {
	return &rendezvous{want: int32(want), met: make(chan struct{})}
}

func (m *rendezvous) meet(ctx context.Context) error {
	if m.here.Add(1) == m.want {
		close(m.met)
	}
	select {
	case <-m.met:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestFuturesExecuteConcurrently(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const steps = 20
	meeting := newRendezvous(steps)
	double := workflow.DefineActivity("double", func(ctx context.Context, n int) (int, error) { return 2 * n, meeting.meet(ctx) })
	flow := workflow.Define("fan out", func(ctx *workflow.Context, _ int) (int, error) {
		futures := make([]*workflow.Future[int], steps)
		all := make([]workflow.Awaitable, steps)
		for i := range futures {
			futures[i] = double.Go(ctx, i)
			all[i] = futures[i]
		}
		if err := workflow.All(ctx, all...); err != nil {
			return 0, err
		}
		sum := 0
		for _, future := range futures {
			n, err := future.Get(ctx)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != steps*(steps-1) {
		t.Fatalf("got %d, %v; want %d", got, err, steps*(steps-1))
	}
	history, err := w.History(ctx, run.ID())
	if err != nil || len(history) != steps {
		t.Fatalf("%d records, %v; want %d", len(history), err, steps)
	}
}

// A worker dies when some of the steps under way are recorded and others are not: the next executes only those again.
func TestOnlyUnrecordedFuturesAreExecutedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	hold, held := make(chan struct{}), make(chan struct{}, 10)
	work := workflow.DefineActivity("work", func(ctx context.Context, n int) (int, error) {
		if executed.add(fmt.Sprint(n)) == 1 && n%2 == 0 {
			held <- struct{}{}
			select {
			case <-hold:
			case <-ctx.Done():
				return 0, ctx.Err()
			}
		}
		return n * n, nil
	})
	flow := workflow.Define("half done", func(ctx *workflow.Context, _ int) (int, error) {
		var futures []*workflow.Future[int]
		for n := range 6 {
			futures = append(futures, work.Go(ctx, n))
		}
		sum := 0
		for _, future := range futures {
			n, err := future.Get(ctx)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		<-held
	}
	eventually(t, "the others are recorded", func() bool { return count(t, pool, "select count(*) from romancy.history") == 3 })
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := one.Shutdown(over); err == nil {
		t.Fatal("shut down within no time although steps were executing")
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	got, err := flow.Run(two.Engine, run.ID()).Result(ctx)
	close(hold)
	if err != nil || got != 0+1+4+9+16+25 {
		t.Fatalf("got %d, %v", got, err)
	}
	for n := range 6 {
		if want := 2 - n%2; executed.of(fmt.Sprint(n)) != want {
			t.Errorf("step %d was executed %d times, want %d", n, executed.of(fmt.Sprint(n)), want)
		}
	}
}

// While all of a run's steps wait for their next attempts, it is parked, and holds no place among those that execute.
func TestRunIsParkedWhileItsFuturesWaitForTheirNextAttempts(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var attempts tally
	flaky := workflow.DefineActivity("flaky", func(_ context.Context, name string) (string, error) {
		if attempts.add(name) < 3 {
			return "", errors.New("not yet")
		}
		return name, nil
	}, workflow.WithRetry(workflow.RetryPolicy{InitialInterval: 300 * time.Millisecond}))
	flow := workflow.Define("patient", func(ctx *workflow.Context, _ int) (string, error) {
		a, b := flaky.Go(ctx, "a"), flaky.Go(ctx, "b")
		if err := workflow.All(ctx, a, b); err != nil {
			return "", err
		}
		first, _ := a.Get(ctx)
		second, _ := b.Get(ctx)
		return first + second, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is parked", func() bool { return w.Status().Parked == 1 && w.Status().Executing == 0 })
	if got, err := run.Result(ctx); err != nil || got != "ab" {
		t.Fatalf("got %q, %v", got, err)
	}
	if a, b := attempts.of("a"), attempts.of("b"); a != 3 || b != 3 {
		t.Errorf("%d and %d attempts, want 3 each", a, b)
	}
	history, err := w.History(ctx, run.ID())
	if err != nil || len(history) != 2 || len(history[0].Attempts) != 2 {
		t.Fatalf("history %+v, %v: want two steps with two failed attempts each", history, err)
	}
}

// The attempts of a future are counted across workers, and a run is resumed when the next is due although nobody has it in memory.
func TestRetriesOfFuturesSurviveTheirWorker(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var attempts tally
	flaky := workflow.DefineActivity("flaky", func(ctx context.Context, _ int) (int, error) {
		if attempts.add("flaky") < 3 {
			return 0, errors.New("not yet")
		}
		return workflow.ActivityInfo(ctx).Attempt, nil
	}, workflow.WithRetry(workflow.RetryPolicy{InitialInterval: 500 * time.Millisecond}))
	flow := workflow.Define("passed on", func(ctx *workflow.Context, _ int) (int, error) { return flaky.Go(ctx, 0).Get(ctx) })
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "one attempt has failed", func() bool { return count(t, pool, "select count(*) from romancy.attempts") == 1 })
	one.shutdown(t)
	two := startWorker(t, pool, []workflow.Definition{flow}, evicting)
	if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != 3 {
		t.Fatalf("got %d, %v; want the third attempt", got, err)
	}
}

func TestFuturesNobodyWaitedForAreWaitedForAtTheEnd(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	begun, release := make(chan struct{}), make(chan struct{})
	slow := workflow.DefineActivity("slow", func(context.Context, int) (int, error) {
		close(begun)
		<-release
		return 1, nil
	})
	flow := workflow.Define("forgetful", func(ctx *workflow.Context, _ int) (string, error) {
		slow.Go(ctx, 0)
		return "done", nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	if info, err := w.Get(ctx, run.ID()); err != nil || info.Status != workflow.StatusRunning {
		t.Fatalf("%+v, %v: want it to be running", info, err)
	}
	close(release)
	if got, err := run.Result(ctx); err != nil || got != "done" {
		t.Fatalf("got %q, %v", got, err)
	}
	if n := count(t, pool, "select count(*) from romancy.history where kind = 'activity'"); n != 1 {
		t.Errorf("%d records, want that of the step", n)
	}
}

// A failing workflow ends its other steps, and undoes those that were done, in the order opposite to that of the calls.
func TestFailureEndsOtherFuturesAndUndoesThem(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var undone journey
	undone.begin()
	reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil }).
		WithCompensation(func(_ context.Context, _, n int) error { undone.notef("%d", n); return nil })
	stopped := make(chan struct{})
	hang := workflow.DefineActivity("hang", func(ctx context.Context, _ int) (int, error) {
		<-ctx.Done()
		close(stopped)
		return 0, ctx.Err()
	})
	refuse := workflow.DefineActivity("refuse", func(context.Context, int) (int, error) { return 0, workflow.NewError("refused", "no") })
	flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
		one, two := reserve.Go(ctx, 1), reserve.Go(ctx, 2)
		hang.Go(ctx, 0)
		if err := workflow.All(ctx, two, one); err != nil {
			return 0, err
		}
		if _, err := reserve.Execute(ctx, 3); err != nil {
			return 0, err
		}
		return refuse.Execute(ctx, 0)
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); !errors.Is(err, workflow.NewError("refused", "")) {
		t.Fatalf("got %v", err)
	}
	<-stopped
	if got := fmt.Sprint(undone.executions()[0]); got != "[3 2 1]" {
		t.Errorf("undone %s, want [3 2 1]", got)
	}
}

func TestFuturesAreRefusedOutOfPlace(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	echo := workflow.DefineActivity("echo", func(_ context.Context, n int) (int, error) { return n, nil })
	nameless := workflow.DefineActivity("", func(_ context.Context, n int) (int, error) { return n, nil })
	foreign := make(chan *workflow.Future[int], 1)
	flow := workflow.Define("swap", func(ctx *workflow.Context, n int) (string, error) {
		if _, err := nameless.Go(ctx, 1).Get(ctx); err == nil {
			return "", errors.New("an activity without a name was begun")
		}
		if n == 0 {
			foreign <- echo.Go(ctx, n)
			return "", nil
		}
		_, err := (<-foreign).Get(ctx)
		return fmt.Sprint(err), nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	first, err := flow.Start(ctx, w.Engine, 0, workflow.WithID("first"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := first.Result(ctx); err != nil {
		t.Fatal(err)
	}
	second, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("second"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := second.Result(ctx); err != nil || got != `future of activity "echo": it belongs to run "first", not to "second"` {
		t.Fatalf("got %q, %v", got, err)
	}
}
