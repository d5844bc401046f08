package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// evicting is a worker that keeps one parked run in memory: nearly every wake replays.
var evicting = configured(func(c *workflow.Config) { c.CacheSize = 1 })

// Everything with a side effect is recorded: however often a run is replayed, one publish is one message, one send is one
// message, one value stays one value.
func TestReplayRepeatsNoSideEffect(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const senders = 3
	var drawn tally
	receiver := workflow.Define("receiver", func(ctx *workflow.Context, _ int) ([]string, error) {
		var got []string
		for range senders {
			message, err := workflow.Receive[string](ctx, "replies")
			if err != nil {
				return got, err
			}
			got = append(got, message.Body)
		}
		if message, err := workflow.Receive[string](ctx, "replies", workflow.WithTimeout(500*time.Millisecond)); !errors.Is(err, workflow.ErrTimeout) {
			return append(got, message.Body), err
		}
		return got, nil
	})
	sender := workflow.Define("sender", func(ctx *workflow.Context, to string) (string, error) {
		if err := workflow.Subscribe(ctx, "own", workflow.Competing); err != nil {
			return "", err
		}
		id, err := workflow.SideEffect(ctx, "draw", func() (int, error) { return drawn.add("draw"), nil })
		if err != nil {
			return "", err
		}
		at, err := workflow.Now(ctx)
		if err != nil {
			return "", err
		}
		if err := workflow.SendTo(ctx, to, "replies", fmt.Sprintf("%s %d", ctx.InstanceID(), id)); err != nil {
			return "", err
		}
		if err := workflow.Publish(ctx, "own", "to myself"); err != nil {
			return "", err
		}
		for range 3 {
			if err := workflow.Sleep(ctx, 20*time.Millisecond); err != nil {
				return "", err
			}
		}
		if again, err := workflow.Receive[string](ctx, "own"); err != nil || again.Body != "to myself" {
			return "", fmt.Errorf("own message: %q, %w", again.Body, err)
		}
		if _, err := workflow.Receive[string](ctx, "own", workflow.WithTimeout(10*time.Millisecond)); !errors.Is(err, workflow.ErrTimeout) {
			return "", fmt.Errorf("a second message: %w", err)
		}
		return at.Format(time.RFC3339Nano), nil
	})
	w := startWorker(t, pool, []workflow.Definition{receiver, sender}, evicting)
	ctx := testContext(t)
	to, err := receiver.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	// One after the other, because they share a competing channel.
	for i := range senders {
		run, err := sender.Start(ctx, w.Engine, to.ID(), workflow.WithID(fmt.Sprintf("sender-%d", i)))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
	got, err := to.Result(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != senders {
		t.Errorf("received %q: want one message from each of %d senders", got, senders)
	}
	if n := drawn.of("draw"); n != senders {
		t.Errorf("a recorded value was made %d times, want %d", n, senders)
	}
	if w.Status().Replayed == 0 {
		t.Error("nothing was replayed, so nothing was tested")
	}
}

// Three sleeps after one publish: replayed from the top each time, the message is there once.
func TestOnePublishBeforeThreeSleepsIsOneMessage(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("publisher", func(ctx *workflow.Context, n int) (int, error) {
		if err := workflow.Publish(ctx, "unheard", n); err != nil {
			return 0, err
		}
		for range 3 {
			if err := workflow.Sleep(ctx, 30*time.Millisecond); err != nil {
				return 0, err
			}
		}
		return n, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, evicting)
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range 10 {
		wg.Go(func() {
			run, err := flow.Start(ctx, w.Engine, i)
			if err == nil {
				_, err = run.Result(ctx)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(t, pool, "select count(*) from romancy.mailbox where channel = 'unheard'"); n != 10 {
		t.Errorf("%d messages of 10 publishes", n)
	}
	if w.Status().Replayed == 0 {
		t.Error("nothing was replayed, so nothing was tested")
	}
}

// A deadline, its outcome and the change of owner are one statement. Connections that break at any moment lose no timer and
// record none twice.
func TestTimersSurviveBrokenConnections(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	proxy := pgtest.NewProxy(t, direct.Config().ConnString())
	pool := pgtest.Connect(t, proxy.URL())
	const runs = 60
	flow := workflow.Define("timers", func(ctx *workflow.Context, n int) (int, error) {
		for i := range 5 {
			if err := workflow.Sleep(ctx, time.Duration(10+n+i)*time.Millisecond); err != nil {
				return 0, err
			}
			_, err := workflow.Receive[int](ctx, "silence", workflow.WithTimeout(time.Duration(5+i)*time.Millisecond))
			if !errors.Is(err, workflow.ErrTimeout) {
				return 0, fmt.Errorf("receive: %w", err)
			}
			if _, err := nothing.Execute(ctx, i); err != nil {
				return 0, err
			}
		}
		return n, nil
	})
	soon := configured(func(c *workflow.Config) { c.FallbackInterval = 500 * time.Millisecond })
	w := startWorker(t, pool, []workflow.Definition{flow}, soon)
	ctx := testContext(t)
	for i := range runs {
		if _, err := flow.Start(ctx, w.Engine, i, workflow.WithID(fmt.Sprintf("run-%d", i))); err != nil {
			t.Fatal(err)
		}
	}
	cuts := 0
	eventually(t, "all runs have completed", func() bool {
		if cuts < 20 {
			proxy.Cut()
			cuts++
		}
		return count(t, direct, "select count(*) from romancy.instances where status = 'completed'") == runs
	})
	// Five rounds of a sleep, a receive with its timer, and a step; then nothing.
	if n := count(t, direct, "select count(*) from romancy.history"); n != runs*20 {
		t.Errorf("%d records, want %d", n, runs*20)
	}
	if n := count(t, direct, "select count(*) from romancy.history where kind = 'receive' and payload->>'timeout' = 'true'"); n != runs*5 {
		t.Errorf("%d timeouts, want %d", n, runs*5)
	}
}

// Code that does not fit the history stops the run, says where, and leaves the history alone.
func TestDivergingReplayIsStuckAndSaysWhere(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	body := func(step *workflow.Activity[int, int]) func(*workflow.Context, int) (int, error) {
		return func(ctx *workflow.Context, n int) (int, error) {
			if _, err := step.Execute(ctx, n); err != nil {
				return 0, err
			}
			message, err := workflow.Receive[int](ctx, "numbers")
			return message.Body, err
		}
	}
	before := workflow.Define("deployed", body(nothing))
	other := workflow.DefineActivity("something_else", func(context.Context, int) (int, error) { return 0, nil })
	after := workflow.Define("deployed", body(other))
	one := startWorker(t, pool, []workflow.Definition{before})
	ctx := testContext(t)
	run, err := before.Start(ctx, one.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is parked", func() bool { return one.Status().Parked == 1 })
	if err := one.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{after})
	if err := two.SendTo(ctx, run.ID(), "numbers", 1); err != nil {
		t.Fatal(err)
	}
	_, err = after.Run(two.Engine, run.ID()).Result(ctx)
	var stuck *workflow.RunError
	if !errors.As(err, &stuck) || stuck.Status != workflow.StatusStuck {
		t.Fatalf("got %v; want the run stuck", err)
	}
	for _, said := range []string{"position 1", `activity "nothing"`, `activity "something_else"`} {
		if !strings.Contains(stuck.Message, said) {
			t.Errorf("message %q does not say %s", stuck.Message, said)
		}
	}
	if n := count(t, pool, "select count(*) from romancy.history where name = 'nothing'"); n != 1 {
		t.Errorf("%d records of the original history, want 1", n)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 1 {
		t.Errorf("%d messages kept, want 1", n)
	}
}

// A panic is a recorded failure with its stack; the process lives.
func TestPanicsAreRecordedFailures(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	explode := workflow.DefineActivity("explode", func(context.Context, int) (int, error) { panic("boom") })
	fragile := workflow.DefineActivity("fragile", func(_ context.Context, n int) (int, error) { return n, nil },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond})).
		WithCompensation(func(context.Context, int, int) error { panic("crack") })
	inActivity := workflow.Define("in_activity", func(ctx *workflow.Context, n int) (int, error) { return explode.Execute(ctx, n) })
	beside := workflow.Define("beside", func(ctx *workflow.Context, n int) (int, error) { return explode.Go(ctx, n).Get(ctx) })
	inWorkflow := workflow.Define("in_workflow", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := fragile.Execute(ctx, n); err != nil {
			return 0, err
		}
		panic("bang")
	})
	w := startWorker(t, pool, []workflow.Definition{inActivity, beside, inWorkflow})
	ctx := testContext(t)
	for _, flow := range []*workflow.Workflow[int, int]{inActivity, beside, inWorkflow} {
		run, err := flow.Start(ctx, w.Engine, 0)
		if err != nil {
			t.Fatal(err)
		}
		_, err = run.Result(ctx)
		var failed *workflow.RunError
		if !errors.As(err, &failed) || failed.Type != "panic" || failed.Status != workflow.StatusFailed {
			t.Errorf("%s: got %v, want a failed run of type panic", flow.Name(), err)
		} else if !strings.Contains(failed.Stack, "replay_test.go") {
			t.Errorf("%s: the stack does not say where it panicked: %q", flow.Name(), failed.Stack)
		}
	}
	for step, want := range map[string]int{"explode": 2, "fragile": 1} {
		if n := count(t, pool, `select count(*) from romancy.history
			where name = $1 and payload->'error'->>'stack' like '%replay_test.go%'`, step); n != want {
			t.Errorf("the stacks of %d panics of %s are in history, want %d", n, step, want)
		}
	}
}

// Retries wait durably and count across workers; each transactional attempt has a transaction of its own.
func TestRetriesAreCountedAcrossWorkers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var attempts tally
	flaky := workflow.DefineActivity("flaky", func(ctx context.Context, _ int) (int, error) {
		info := workflow.ActivityInfo(ctx)
		if n := attempts.add("flaky"); n != info.Attempt {
			return 0, workflow.Terminal(fmt.Errorf("execution %d is told that it is attempt %d", n, info.Attempt))
		}
		if info.Attempt < 4 {
			_, err := workflow.Tx(ctx).Exec(ctx, "select 1 / 0") // and the transaction is of no use any more
			return 0, err
		}
		return info.Attempt, nil
	}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5, InitialInterval: 150 * time.Millisecond, Multiplier: 1}))
	flow := workflow.Define("flaky", func(ctx *workflow.Context, n int) (int, error) { return flaky.Execute(ctx, n) })
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "two attempts have failed", func() bool { return count(t, pool, "select count(*) from romancy.attempts") >= 2 })
	if err := one.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.FallbackInterval = 100 * time.Millisecond }))
	if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != 4 {
		t.Fatalf("got %d, %v; want success at attempt 4", got, err)
	}
	if n := count(t, pool, "select count(*) from romancy.attempts"); n != 3 {
		t.Errorf("%d failed attempts stored, want 3", n)
	}
}

// How long a step has been failing is counted across workers, too, by when its attempts failed: the first that fails after MaxElapsed is the last.
func TestElapsedTimeIsCountedAcrossWorkers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flaky := workflow.DefineActivity("flaky", func(context.Context, int) (int, error) { return 0, errors.New("still broken") },
		workflow.WithRetry(workflow.RetryPolicy{
			MaxAttempts: 1000, InitialInterval: 24 * time.Hour, MaxInterval: 24 * time.Hour, Multiplier: 1, MaxElapsed: 2 * time.Hour,
		}))
	flow := workflow.Define("flaky", func(ctx *workflow.Context, _ int) (int, error) {
		_, err := flaky.Execute(ctx, 0)
		failed := new(workflow.ActivityError)
		if !errors.As(err, &failed) {
			return 0, err
		}
		return failed.Attempts, nil
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	runs := map[string]*workflow.Run[int]{}
	for _, id := range []string{"old", "young"} {
		run, err := flow.Start(ctx, one.Engine, 0, workflow.WithID(id))
		if err != nil {
			t.Fatal(err)
		}
		runs[id] = run
	}
	const parked = "select count(*) from romancy.instances where status = 'waiting' and wake_at > now()"
	eventually(t, "an attempt of each has failed", func() bool { return count(t, pool, parked) == len(runs) })
	one.shutdown(t)
	// As if it had failed so long ago, and the next attempt were due.
	for id, ago := range map[string]string{"old": "3 hours", "young": "1 hour"} {
		if _, err := pool.Exec(ctx, "update romancy.attempts set failed_at = failed_at - $2::interval, next_at = now() where instance_id = $1", id, ago); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := pool.Exec(ctx, "update romancy.instances set wake_at = now()"); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	if _, err := two.SweepTimers(ctx); err != nil {
		t.Fatal(err)
	}
	if got, err := flow.Run(two.Engine, "old").Result(ctx); err != nil || got != 2 {
		t.Errorf("after three hours: %d attempts, %v; want the second to be the last", got, err)
	}
	eventually(t, "after one hour the second attempt is not the last", func() bool {
		return count(t, pool, "select count(*) from romancy.attempts where instance_id = 'young'") == 2 && count(t, pool, parked) == 1
	})
}
