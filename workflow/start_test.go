package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

func TestStartManyStartsThousandsInFewCommits(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	double := workflow.Define("double", func(_ *workflow.Context, n int) (int, error) { return 2 * n, nil })
	w := startWorker(t, pool, []workflow.Definition{double})
	ctx := testContext(t)
	requests := make([]workflow.StartRequest[int], 10_000)
	for i := range requests {
		requests[i].Input = i
		if i%2 == 0 {
			requests[i].Options = []workflow.StartOption{workflow.WithID(fmt.Sprintf("double-%d", i))}
		}
	}
	runs, err := double.StartMany(ctx, w.Engine, requests)
	if err != nil {
		t.Fatal(err)
	}
	if commits := w.Status().Commits; commits > 2000 {
		t.Errorf("%d commits for 10,000 runs", commits)
	}
	eventually(t, "all have completed", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'completed'") == len(requests)
	})
	for i := 0; i < len(runs); i += 100 {
		if out, err := runs[i].Result(ctx); err != nil || out != 2*i {
			t.Fatalf("run %d: %d, %v", i, out, err)
		}
	}
	again, err := double.StartMany(ctx, w.Engine, requests)
	if err != nil {
		t.Fatal(err)
	}
	for i, run := range again {
		if run.Existing() != (i%2 == 0) {
			t.Fatalf("request %d, started again: existing is %v", i, run.Existing())
		}
	}
}

func TestStartManyStartsWhatItCan(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	double := workflow.Define("double", func(_ *workflow.Context, n int) (int, error) { return 2 * n, nil })
	w := startWorker(t, pool, []workflow.Definition{double})
	ctx := testContext(t)
	if _, err := double.Start(ctx, w.Engine, 1, workflow.WithID("taken")); err != nil {
		t.Fatal(err)
	}
	runs, err := double.StartMany(ctx, w.Engine, []workflow.StartRequest[int]{
		{Input: 5}, {Input: 2, Options: []workflow.StartOption{workflow.WithID("taken")}}, {Input: 6},
	})
	var failed *workflow.StartError
	if !errors.As(err, &failed) || len(failed.Failed) != 1 || !errors.Is(failed.Failed[1], workflow.ErrIDConflict) || !errors.Is(err, workflow.ErrIDConflict) {
		t.Fatalf("got %v, want that request 1 alone conflicts", err)
	}
	if len(runs) != 3 || runs[1] != nil {
		t.Fatalf("handles %v", runs)
	}
	for i, want := range map[int]int{0: 10, 2: 12} {
		if out, err := runs[i].Result(ctx); err != nil || out != want {
			t.Errorf("run %d: %d, %v", i, out, err)
		}
	}
	_, err = double.StartMany(ctx, w.Engine, []workflow.StartRequest[int]{
		{Input: 1}, {Input: 2, Options: []workflow.StartOption{workflow.WithID("")}}, {Input: 3, Options: []workflow.StartOption{workflow.WithDelay(-1)}},
	})
	for _, said := range []string{"request 1", "id is empty", "request 2", "WithDelay(-1ns)"} {
		if err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("error %v does not say %q", err, said)
		}
	}
	if n := count(t, pool, "select count(*) from romancy.instances"); n != 3 {
		t.Errorf("%d runs are stored, want 3", n)
	}
}

// A run that begins later exists at once: messages can be sent to it, and are there when it begins.
func TestDelayedStart(t *testing.T) {
	t.Parallel()
	for name, notifies := range map[string][]workerOption{"notified": nil, "all notifications lost": {withoutNotify}} {
		for _, way := range []string{"Start", "StartTx"} {
			t.Run(name+", "+way, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				flow := workflow.Define("later", func(ctx *workflow.Context, _ int) (time.Time, error) {
					if _, err := workflow.Receive[string](ctx, "notes"); err != nil {
						return time.Time{}, err
					}
					return workflow.Now(ctx)
				})
				options := slices.Concat(notifies, []workerOption{configured(func(c *workflow.Config) { c.FallbackInterval = time.Second })})
				w := startWorker(t, pool, []workflow.Definition{flow}, options...)
				ctx := testContext(t)
				const delay = 1500 * time.Millisecond
				began := time.Now()
				start := func() (*workflow.Run[time.Time], error) {
					if way == "Start" {
						return flow.Start(ctx, w.Engine, 1, workflow.WithID("later"), workflow.WithDelay(delay))
					}
					tx, err := pool.Begin(ctx)
					if err != nil {
						return nil, err
					}
					defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
					run, err := flow.StartTx(ctx, tx, w.Engine, 1, workflow.WithID("later"), workflow.WithStartAt(began.Add(delay)))
					if err != nil {
						return nil, err
					}
					return run, tx.Commit(ctx)
				}
				run, err := start()
				if err != nil {
					t.Fatal(err)
				}
				info, err := w.Get(ctx, "later")
				if err != nil || info.Status != workflow.StatusWaiting || info.WakeAt.Sub(began) < delay-time.Second {
					t.Errorf("before its time: %+v, %v", info, err)
				}
				if err := w.SendTo(ctx, "later", "notes", "hello"); err != nil {
					t.Fatal(err)
				}
				if again, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("later"), workflow.WithDelay(time.Hour)); err != nil || !again.Existing() {
					t.Errorf("started again: %v, %v", again, err)
				}
				if _, err := flow.Start(ctx, w.Engine, 2, workflow.WithID("later"), workflow.WithDelay(time.Hour)); !errors.Is(err, workflow.ErrIDConflict) {
					t.Errorf("started with another input: %v", err)
				}
				at, err := run.Result(ctx)
				if err != nil || at.Sub(began) < delay-100*time.Millisecond {
					t.Errorf("began %s after its start, want %s: %v", at.Sub(began), delay, err)
				}
			})
		}
	}
}

func TestBeginningIsSetOnce(t *testing.T) {
	t.Parallel()
	flow := workflow.Define("later", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	_, err := flow.Start(testContext(t), w.Engine, 1, workflow.WithDelay(time.Second), workflow.WithStartAt(time.Now()))
	if err == nil || !strings.Contains(err.Error(), "WithDelay or WithStartAt, once") {
		t.Errorf("got %v", err)
	}
}
