package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// journey is what a run's code has observed of itself, execution by execution.
type journey struct {
	mu   sync.Mutex
	seen [][]string
}

func (j *journey) begin() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.seen = append(j.seen, nil)
}

func (j *journey) notef(format string, args ...any) {
	j.mu.Lock()
	defer j.mu.Unlock()
	last := len(j.seen) - 1
	j.seen[last] = append(j.seen[last], fmt.Sprintf(format, args...))
}

func (j *journey) executions() [][]string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return slices.Clone(j.seen)
}

// passOn starts a run on one worker, shuts that down when the run is parked, and has another finish it: everything before the
// first Receive is executed twice, live and replayed.
func passOn[Out any](ctx context.Context, t *testing.T, flow *workflow.Workflow[int, Out]) Out {
	t.Helper()
	pool := pgtest.Pool(t)
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	// Not between two attempts or in a sleep: those park it too.
	eventually(t, "the run waits for the message", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and 'go' = any (wake_channels)") == 1
	})
	one.shutdown(t)
	two := startWorker(t, pool, []workflow.Definition{flow})
	if err := two.SendTo(ctx, run.ID(), "go", 0); err != nil {
		t.Fatal(err)
	}
	out, err := flow.Run(two.Engine, run.ID()).Result(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// A failed activity is recorded as failed: when it is replayed the workflow is told the same, asks errors.Is and errors.As the
// same, and takes the same branch.
func TestFailureIsTheSameLiveAndReplayed(t *testing.T) {
	t.Parallel()
	declined := workflow.NewError("declined", "the card was declined")
	var executed tally
	failing := func(name string, err error, options ...workflow.ActivityOption) *workflow.Activity[int, int] {
		return workflow.DefineActivity(name, func(context.Context, int) (int, error) {
			executed.add(name)
			return 0, err
		}, options...)
	}
	charges := []*workflow.Activity[int, int]{
		failing("typed", declined),
		failing("wrapped", fmt.Errorf("charge: %w", declined)),
		failing("terminal", workflow.Terminal(declined), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5})),
		failing("untyped", errors.New("out of paper")),
		failing("retried", declined, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 3, InitialInterval: time.Millisecond})),
	}
	apologise := workflow.DefineActivity("apologise", func(_ context.Context, n int) (int, error) { return n, nil })
	var seen journey
	flow := workflow.Define("shop", func(ctx *workflow.Context, _ int) (int, error) {
		seen.begin()
		branches := 0
		for _, charge := range charges {
			_, err := charge.Execute(ctx, 0)
			failure := new(workflow.ActivityError)
			seen.notef("%s: is declined %v, is other %v, as ActivityError %v: %+v, says %q", charge.Name(), errors.Is(err, declined),
				errors.Is(err, workflow.NewError("other", "")), errors.As(err, &failure), *failure, fmt.Sprint(err))
			if errors.Is(err, declined) {
				if _, err := apologise.Execute(ctx, 1); err != nil {
					return 0, err
				}
				branches++
			}
		}
		_, err := workflow.Receive[int](ctx, "go")
		return branches, err
	})
	if branches := passOn(testContext(t), t, flow); branches != 4 {
		t.Errorf("%d branches taken, want 4", branches)
	}
	executions := seen.executions()
	if len(executions) < 2 {
		t.Fatal("nothing was replayed, so nothing was tested")
	}
	live, replayed := executions[0], executions[len(executions)-1]
	if !slices.Equal(live, replayed) {
		t.Errorf("live the workflow saw\n%q\nand replayed\n%q", live, replayed)
	}
	for name, want := range map[string]int{"typed": 1, "wrapped": 1, "terminal": 1, "untyped": 1, "retried": 3} {
		if n := executed.of(name); n != want {
			t.Errorf("%s was executed %d times, want %d", name, n, want)
		}
	}
}

// IsReplaying is true exactly while history answers.
func TestIsReplayingWhileHistoryAnswers(t *testing.T) {
	t.Parallel()
	var seen journey
	flow := workflow.Define("watched", func(ctx *workflow.Context, n int) (int, error) {
		seen.begin()
		seen.notef("start %v", ctx.IsReplaying())
		if _, err := nothing.Execute(ctx, n); err != nil {
			return 0, err
		}
		seen.notef("step %v", ctx.IsReplaying())
		if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
		seen.notef("sleep %v", ctx.IsReplaying())
		if _, err := workflow.SideEffect(ctx, "drawn", func() (int, error) { return 1, nil }); err != nil {
			return 0, err
		}
		seen.notef("side effect %v", ctx.IsReplaying())
		if _, err := workflow.Receive[int](ctx, "go"); err != nil {
			return 0, err
		}
		seen.notef("receive %v", ctx.IsReplaying())
		return n, nil
	})
	passOn(testContext(t), t, flow)
	executions := seen.executions()
	for i, want := range [][]string{
		{"start false", "step false", "sleep false", "side effect false"},
		{"start true", "step true", "sleep true", "side effect false", "receive false"},
	} {
		if i >= len(executions) || !slices.Equal(executions[i], want) {
			t.Errorf("the executions saw %q; want number %d to see %q", executions, i+1, want)
		}
	}
}

// A run that is failing fails, wherever the crash is: before the first compensation, between two, or after the last. Those that
// are recorded are not repeated, those that are not are carried out.
func TestCompensationsGoOnAfterACrash(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	refused := workflow.NewError("refused", "the carrier refuses")
	var refusing sync.Map // the runs whose last step fails when it is executed: only the first time
	book := workflow.DefineActivity("book", func(_ context.Context, n int) (int, error) { return n, nil }).
		WithCompensation(func(ctx context.Context, n, _ int) error {
			executed.add(fmt.Sprintf("%s cancel %d", workflow.ActivityInfo(ctx).InstanceID, n))
			return nil
		})
	ship := workflow.DefineActivity("ship", func(ctx context.Context, _ int) (int, error) {
		if _, before := refusing.LoadOrStore(workflow.ActivityInfo(ctx).InstanceID, true); before {
			return 1, nil
		}
		return 0, refused
	})
	flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
		for n := range 3 {
			if _, err := book.Execute(ctx, n); err != nil {
				return 0, err
			}
		}
		return ship.Execute(ctx, 0)
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	// Three bookings, the refusal, the note that it fails, three compensations.
	const refusal, all = 4, 8
	for left := refusal; left <= all; left++ {
		id := fmt.Sprintf("trip-%d", left)
		run, err := flow.Start(ctx, one.Engine, 0, workflow.WithID(id))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); !errors.Is(err, refused) {
			t.Fatalf("got %v, want the refusal", err)
		}
	}
	one.shutdown(t)
	// As if the worker had crashed when so many records were written: the run is its again, and it is dead.
	for left := refusal; left <= all; left++ {
		id := fmt.Sprintf("trip-%d", left)
		if _, err := pool.Exec(ctx, "delete from romancy.history where instance_id = $1 and position > $2", id, left); err != nil {
			t.Fatal(err)
		}
	}
	if n := count(t, pool, "select count(*) from romancy.history where kind = 'failing'"); n != all-refusal {
		t.Fatalf("%d records that a run is failing, want %d", n, all-refusal)
	}
	if _, err := pool.Exec(ctx, `update romancy.instances
		set status = 'running', worker = 1000000, ended_at = null, error = null`); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	if _, err := two.SweepResume(ctx); err != nil {
		t.Fatal(err)
	}
	for left := refusal; left <= all; left++ {
		id := fmt.Sprintf("trip-%d", left)
		_, err := flow.Run(two.Engine, id).Result(ctx)
		failed := new(workflow.RunError)
		if !errors.Is(err, refused) || !errors.As(err, &failed) || failed.Status != workflow.StatusFailed {
			t.Errorf("%s: got %v, want it failed by the refusal", id, err)
		}
		for n := range 3 {
			want := 1
			if recorded := all - n; recorded > left { // number 2 is cancelled first, and recorded at position 6
				want = 2
			}
			if got := executed.of(fmt.Sprintf("%s cancel %d", id, n)); got != want {
				t.Errorf("%s: booking %d was cancelled %d times, want %d", id, n, got, want)
			}
		}
	}
}

// A compensation that fails is retried; one that fails for good is reported with the run, and does not keep the others from
// being carried out.
func TestFailedCompensationIsRetriedThenReported(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	failing := func(name string, failures int) *workflow.Activity[int, int] {
		return workflow.DefineActivity(name, func(_ context.Context, n int) (int, error) { return n, nil },
			workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 3, InitialInterval: time.Millisecond})).
			WithCompensation(func(context.Context, int, int) error {
				if executed.add(name) <= failures {
					return fmt.Errorf("%s is stubborn", name)
				}
				return nil
			})
	}
	first, second, third := failing("first", 0), failing("second", 1000), failing("third", 2)
	flow := workflow.Define("trip", func(ctx *workflow.Context, n int) (int, error) {
		for _, step := range []*workflow.Activity[int, int]{first, second, third} {
			if _, err := step.Execute(ctx, n); err != nil {
				return 0, err
			}
		}
		return 0, errors.New("changed my mind")
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message != "changed my mind" {
		t.Fatalf("got %v", err)
	}
	if len(failed.CompensationErrors) != 1 {
		t.Errorf("the run reports %q, want the one compensation that failed for good", failed.CompensationErrors)
	}
	for name, want := range map[string]int{"third": 3, "second": 3, "first": 1} {
		if n := executed.of(name); n != want {
			t.Errorf("the compensation of %s was attempted %d times, want %d", name, n, want)
		}
	}
}
