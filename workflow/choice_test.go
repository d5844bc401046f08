package workflow_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A choice that is made as soon as Select is called never sets its timer. The place of that in history stays empty, and the run
// is replayed all the same, by a worker that has lost it from memory and by another.
func TestChoiceMadeAtOnceIsReplayed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	search := workflow.DefineActivity("search", func(_ context.Context, what string) (string, error) { return "a " + what, nil })
	flow := workflow.Define("offers", func(ctx *workflow.Context, what string) (chosen string, err error) {
		found := search.Go(ctx, what)
		if _, err := found.Get(ctx); err != nil {
			return "", err
		}
		if err := workflow.Select(ctx,
			workflow.OnResult(found, func(out string, err error) error { chosen = out; return err }),
			workflow.OnTimer(time.Hour, func() error { chosen = "nothing"; return nil }),
		); err != nil {
			return "", err
		}
		for range 2 {
			if _, err := workflow.Receive[int](ctx, "go"); err != nil {
				return "", err
			}
		}
		return chosen, nil
	})
	first := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.CacheSize = 1 }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, first.Engine, "boat")
	if err != nil {
		t.Fatal(err)
	}
	waits := func(received int) {
		t.Helper()
		eventually(t, "the run waits for a message", func() bool {
			return count(t, pool, `select count(*) from romancy.instances i where i.id = $1 and i.status = 'waiting'
				and (select count(*) from romancy.history h where h.instance_id = i.id and h.kind = 'receive') = $2`, run.ID(), received) == 1
		})
	}
	waits(0)
	other, err := flow.Start(ctx, first.Engine, "raft") // takes its place in memory
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is evicted", func() bool { return first.Status().Evicted > 0 })
	if err := first.SendTo(ctx, run.ID(), "go", 1); err != nil {
		t.Fatal(err)
	}
	waits(1)
	second := startWorker(t, pool, []workflow.Definition{flow})
	first.shutdown(t)
	for _, id := range []string{run.ID(), other.ID(), other.ID()} {
		if err := second.SendTo(ctx, id, "go", 2); err != nil {
			t.Fatal(err)
		}
	}
	for id, want := range map[string]string{run.ID(): "a boat", other.ID(): "a raft"} {
		if got, err := flow.Run(second.Engine, id).Result(ctx); err != nil || got != want {
			t.Errorf("result %q, %v, want %q", got, err, want)
		}
	}
}

// Every channel is looked at before the deadline decides, even if that has passed.
func TestMessageOfAnyChannelGoesBeforeTheTimer(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("offers", func(ctx *workflow.Context, channels []string) (chosen []string, err error) {
		if err := workflow.SendTo(ctx, ctx.InstanceID(), "bargains", "a raft"); err != nil {
			return nil, err
		}
		for range 2 {
			cases := []workflow.Case{workflow.OnTimer(0, func() error { chosen = append(chosen, "nothing"); return nil })}
			for _, channel := range channels {
				cases = append(cases, workflow.OnMessage(channel, func(m workflow.Message[string]) error {
					chosen = append(chosen, m.Body)
					return nil
				}))
			}
			if err := workflow.Select(ctx, cases...); err != nil {
				return nil, err
			}
		}
		_, err = workflow.Receive[int](ctx, "go")
		return chosen, err
	})
	first := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, first.Engine, []string{"offers", "news", "bargains"})
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has chosen twice", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and 'go' = any(wake_channels)") == 1
	})
	second := startWorker(t, pool, []workflow.Definition{flow})
	first.shutdown(t) // what was chosen is replayed
	if err := second.SendTo(ctx, run.ID(), "go", 1); err != nil {
		t.Fatal(err)
	}
	got, err := flow.Run(second.Engine, run.ID()).Result(ctx)
	if err != nil || len(got) != 2 || got[0] != "a raft" || got[1] != "nothing" {
		t.Errorf("chose %q, %v, want the raft, then nothing", got, err)
	}
}

// A run that learns of its cancellation from a future, whose step has recorded nothing, ends as cancelled, whether its workflow
// returns that or goes on as if nothing had happened.
func TestRunToldByAFutureEndsAsCancelled(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	begun := make(chan struct{}, 10)
	reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil }).
		WithCompensation(func(context.Context, int, int) error { return nil })
	hang := workflow.DefineActivity("hang", func(ctx context.Context, _ int) (int, error) {
		begun <- struct{}{}
		<-ctx.Done()
		return 0, ctx.Err()
	})
	flow := workflow.Define("told", func(ctx *workflow.Context, heeds bool) (int, error) {
		if _, err := reserve.Execute(ctx, 1); err != nil {
			return 0, err
		}
		if _, err := hang.Go(ctx, 0).Get(ctx); heeds {
			return 0, err
		}
		return 1, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	for _, heeds := range []bool{true, false} {
		run, err := flow.Start(ctx, w.Engine, heeds)
		if err != nil {
			t.Fatal(err)
		}
		<-begun
		if err := w.Cancel(ctx, run.ID(), "enough", workflow.Compensate()); err != nil {
			t.Fatal(err)
		}
		if out, err := run.Result(ctx); !errors.Is(err, workflow.ErrCancelled) || err.Error() != "run "+run.ID()+" is cancelled: enough" {
			t.Errorf("heeds %v: result %d, %v, want it cancelled", heeds, out, err)
		}
		if n := count(t, pool, "select count(*) from romancy.history where kind = 'compensation' and instance_id = $1", run.ID()); n != 1 {
			t.Errorf("heeds %v: %d steps were undone, want 1", heeds, n)
		}
	}
}

// The database says it first: a step beside the workflow learns, by the retry it records, that its run is cancelled. The run must
// not end as if that step did not belong to it.
func TestRunIsCancelledThoughOnlyAStepBesideItHasLearntOfIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	begun, release := make(chan struct{}, 10), make(chan struct{})
	reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil }).
		WithCompensation(func(context.Context, int, int) error { return nil })
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) {
		begun <- struct{}{}
		<-release
		return 0, errors.New("declined")
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 10}))
	flow := workflow.Define("untold", func(ctx *workflow.Context, waits bool) (int, error) {
		if _, err := reserve.Execute(ctx, 1); err != nil {
			return 0, err
		}
		charged := charge.Go(ctx, 0)
		if waits {
			return charged.Get(ctx)
		}
		return 1, nil
	})
	startWorker(t, pool, []workflow.Definition{flow}, withoutNotify)
	elsewhere := startWorker(t, pool, []workflow.Definition{flow}, withoutNotify, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	var runs []*workflow.Run[int]
	for _, waits := range []bool{true, false} {
		run, err := flow.Start(ctx, elsewhere.Engine, waits)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run)
		<-begun
		if err := elsewhere.Cancel(ctx, run.ID(), "enough", workflow.Compensate()); err != nil {
			t.Fatal(err)
		}
	}
	close(release)
	for _, run := range runs {
		if out, err := run.Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
			t.Errorf("result %d, %v, want it cancelled", out, err)
		}
		if n := count(t, pool, "select count(*) from romancy.history where kind = 'compensation' and instance_id = $1", run.ID()); n != 1 {
			t.Errorf("%d steps were undone, want 1", n)
		}
	}
}
