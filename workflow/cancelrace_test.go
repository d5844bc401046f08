package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// undoing counts, by run, what was done and what was undone.
type undoing struct{ done, undone tally }

// step returns an activity that counts, with a compensation that does.
func (j *undoing) step() *workflow.Activity[int, int] {
	return workflow.DefineActivity("step", func(ctx context.Context, n int) (int, error) {
		j.done.add(workflow.ActivityInfo(ctx).InstanceID)
		return n, nil
	}).WithCompensation(func(ctx context.Context, _, _ int) error {
		j.undone.add(workflow.ActivityInfo(ctx).InstanceID)
		return nil
	})
}

// allUndone checks that every step of the run was undone, once.
func (j *undoing) allUndone(t *testing.T, id string) {
	t.Helper()
	if done, undone := j.done.of(id), j.undone.of(id); done != undone {
		t.Errorf("run %s: %d steps done, %d undone", id, done, undone)
	}
}

// noneUndone checks that no step of the run was.
func (j *undoing) noneUndone(t *testing.T, id string) {
	t.Helper()
	if undone := j.undone.of(id); undone != 0 {
		t.Errorf("run %s: %d steps undone", id, undone)
	}
}

func statusOf(t *testing.T, pool *pgxpool.Pool, id string) (status string) {
	t.Helper()
	if err := pool.QueryRow(testContext(t), "select status from romancy.instances where id = $1", id).Scan(&status); err != nil {
		t.Fatal(err)
	}
	return status
}

// A line that continues as new as fast as it can is cancelled by the id that it began with, or by any later one: what lives then
// undoes its steps, and nothing goes on.
func TestCancelStopsALineThatContinuesQuickly(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var j undoing
	step := j.step()
	flow := workflow.Define("endless", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := step.Execute(ctx, n); err != nil {
			return 0, err
		}
		return 0, workflow.ContinueAsNew(ctx, n+1)
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	const lines = 40
	var all sync.WaitGroup
	for i := range lines {
		all.Go(func() {
			id := fmt.Sprint("line-", i)
			if _, err := flow.Start(ctx, w.Engine, 0, workflow.WithID(id)); err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Duration(rand.IntN(200)) * time.Millisecond)
			var options []workflow.CancelOption
			if i%4 > 0 {
				options = append(options, workflow.Compensate())
			}
			if err := w.Cancel(ctx, id, "enough", options...); err != nil {
				t.Errorf("line %d: %v", i, err)
				return
			}
			failed := new(workflow.RunError)
			if _, err := flow.Run(w.Engine, id).Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusCancelled {
				t.Errorf("line %d: got %v, want it cancelled", i, err)
				return
			}
			if len(options) > 0 {
				j.allUndone(t, failed.ID)
			}
			if err := w.Cancel(ctx, id, "again", workflow.Compensate()); err != nil {
				t.Errorf("line %d cancelled again by its first id: %v", i, err)
			}
		})
	}
	all.Wait()
	if n := count(t, pool, "select count(*) from romancy.instances where status not in ('continued', 'cancelled')"); n != 0 {
		t.Errorf("%d runs go on", n)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where status = 'cancelled'"); n != lines {
		t.Errorf("%d lines are cancelled, want %d", n, lines)
	}
}

// A line that has ended says so for each of its ids.
func TestCancelOfAFormerIDSaysHowTheLineEnded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("thrice", func(ctx *workflow.Context, n int) (int, error) {
		if n < 3 {
			return 0, workflow.ContinueAsNew(ctx, n+1)
		}
		return n, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	for _, options := range [][]workflow.CancelOption{nil, {workflow.Compensate()}} {
		if err := w.Cancel(ctx, run.ID(), "late", options...); !errors.Is(err, workflow.ErrEnded) {
			t.Errorf("got %v", err)
		} else if want := "it is completed"; !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q in it", err, want)
		}
	}
}

// race starts n runs of flow, calls racer beside each at some moment, and check when both are over.
func race(t *testing.T, w *worker, flow *workflow.Workflow[int, int], n int, racer func(ctx context.Context, id string) error, check func(id string, raced, ended error)) {
	t.Helper()
	ctx := testContext(t)
	room := make(chan struct{}, 16)
	var all sync.WaitGroup
	for i := range n {
		room <- struct{}{}
		all.Go(func() {
			defer func() { <-room }()
			id := fmt.Sprint("run-", i)
			run, err := flow.Start(ctx, w.Engine, i, workflow.WithID(id))
			if err != nil {
				t.Error(err)
				return
			}
			time.Sleep(time.Duration(rand.IntN(8_000)) * time.Microsecond)
			raced := racer(ctx, id)
			_, ended := run.Result(ctx)
			check(id, raced, ended)
		})
	}
	all.Wait()
}

// Whoever is told nil has cancelled the run, and who is told ErrEnded has not, however closely the two race.
func TestCancelThatRacesWithTheEndMeansWhatItReturns(t *testing.T) {
	t.Parallel()
	for name, world := range map[string]struct {
		end        error
		compensate bool
	}{
		"completion":                  {compensate: true},
		"completion, without undoing": {},
		"failure":                     {end: errors.New("out of stock"), compensate: true},
		"failure, without undoing":    {end: errors.New("out of stock")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var j undoing
			step := j.step()
			flow := workflow.Define("short", func(ctx *workflow.Context, n int) (int, error) {
				for range n % 4 {
					if _, err := step.Execute(ctx, n); err != nil {
						return 0, err
					}
				}
				return n, world.end
			})
			w := startWorker(t, pool, []workflow.Definition{flow})
			var options []workflow.CancelOption
			if world.compensate {
				options = append(options, workflow.Compensate())
			}
			var won, late atomic.Int32
			race(t, w, flow, 300, func(ctx context.Context, id string) error { return w.Cancel(ctx, id, "no", options...) }, func(id string, cancelled, ended error) {
				switch status := statusOf(t, pool, id); {
				case cancelled == nil && (status != "cancelled" || !errors.Is(ended, workflow.ErrCancelled)):
					t.Errorf("run %s: Cancel returned nil, and it is %s, %v", id, status, ended)
				case cancelled == nil:
					won.Add(1)
					if world.compensate {
						j.allUndone(t, id)
					}
				case !errors.Is(cancelled, workflow.ErrEnded) || status == "cancelled":
					t.Errorf("run %s: Cancel returned %v, and it is %s", id, cancelled, status)
				default:
					late.Add(1)
					if world.end == nil {
						j.noneUndone(t, id)
					} else {
						j.allUndone(t, id)
					}
				}
			})
			t.Logf("%d cancelled, %d had ended", won.Load(), late.Load())
		})
	}
}

// Of two that cancel a run, one to have it undone and one at once, each is told what became of it.
func TestCancelsThatRaceWithEachOtherMeanWhatTheyReturn(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var j undoing
	step := j.step()
	flow := workflow.Define("waits", func(ctx *workflow.Context, n int) (int, error) {
		for range 2 {
			if _, err := step.Execute(ctx, n); err != nil {
				return 0, err
			}
		}
		return 0, workflow.Sleep(ctx, time.Hour)
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	race(t, w, flow, 300, func(ctx context.Context, id string) error {
		outcomes := make(chan error, 2)
		for range 2 {
			go func() { outcomes <- w.Cancel(ctx, id, "undo it", workflow.Compensate()) }()
		}
		atOnce := w.Cancel(ctx, id, "at once")
		for range 2 {
			if err := <-outcomes; err != nil { // the run does not end by itself
				t.Errorf("run %s: %v", id, err)
			}
		}
		return atOnce
	}, func(id string, atOnce, ended error) {
		if !errors.Is(ended, workflow.ErrCancelled) {
			t.Errorf("run %s: %v", id, ended)
		}
		switch {
		case atOnce == nil && j.undone.of(id) > 0:
			j.allUndone(t, id) // it came when they were undone
		case errors.Is(atOnce, workflow.ErrEnded):
			j.allUndone(t, id)
		case atOnce != nil:
			t.Errorf("run %s: %v", id, atOnce)
		}
	})
}

// A failed run is retried and cancelled at the same moment: it is cancelled if Cancel says so, else it completes.
func TestCancelThatRacesWithRetryMeansWhatItReturns(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var j undoing
	step := j.step()
	var tried tally
	charge := workflow.DefineActivity("charge", func(ctx context.Context, n int) (int, error) {
		if tried.add(workflow.ActivityInfo(ctx).InstanceID) == 1 {
			return 0, workflow.Terminal(errors.New("no funds"))
		}
		return n, nil
	})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := charge.Execute(ctx, n); err != nil {
			return 0, err
		}
		for range 2 {
			if _, err := step.Execute(ctx, n); err != nil {
				return 0, err
			}
		}
		return n, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	race(t, w, flow, 200, func(ctx context.Context, id string) error {
		if _, err := flow.Run(w.Engine, id).Result(ctx); err == nil {
			t.Errorf("run %s has not failed", id)
		}
		retried := make(chan error, 1)
		go func() { retried <- w.Retry(ctx, id) }()
		time.Sleep(time.Duration(rand.IntN(5_000)) * time.Microsecond)
		err := w.Cancel(ctx, id, "no", workflow.Compensate())
		if failed := <-retried; failed != nil {
			t.Errorf("run %s: retried: %v", id, failed)
		}
		return err
	}, func(id string, cancelled, ended error) {
		switch {
		case cancelled == nil:
			if !errors.Is(ended, workflow.ErrCancelled) {
				t.Errorf("run %s: Cancel returned nil, and it ended with %v", id, ended)
			}
			j.allUndone(t, id)
		case errors.Is(cancelled, workflow.ErrEnded):
			if ended != nil {
				t.Errorf("run %s: Cancel returned %v, and it ended with %v", id, cancelled, ended)
			}
			j.noneUndone(t, id)
		default:
			t.Errorf("run %s: %v", id, cancelled)
		}
	})
}

// Runs are cancelled while their worker loses its lease and another takes them over.
func TestCancelThatRacesWithATakeoverMeansWhatItReturns(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var j undoing
	step := j.step()
	slow := workflow.DefineActivity("slow", func(ctx context.Context, n int) (int, error) {
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
		return n, ctx.Err()
	})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		for range 3 {
			if _, err := step.Execute(ctx, n); err != nil {
				return 0, err
			}
			if _, err := slow.Execute(ctx, n); err != nil {
				return 0, err
			}
		}
		return n, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxDeaths = 1000 }))
	startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxDeaths = 1000 }))
	over := make(chan struct{})
	var losing sync.WaitGroup
	losing.Go(func() {
		for {
			select {
			case <-over:
				return
			case <-time.After(300 * time.Millisecond):
			}
			_, err := pool.Exec(context.Background(), `update romancy.workers set lease_until = clock_timestamp() - interval '1 second'
				where id = (select id from romancy.workers order by random() limit 1)`)
			if err != nil {
				t.Error(err)
			}
		}
	})
	race(t, w, flow, 150, func(ctx context.Context, id string) error {
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		return w.Cancel(ctx, id, "no", workflow.Compensate())
	}, func(id string, cancelled, ended error) {
		switch {
		case cancelled == nil && !errors.Is(ended, workflow.ErrCancelled):
			t.Errorf("run %s: Cancel returned nil, and it ended with %v", id, ended)
		case cancelled == nil: // what was executed twice, because a lease was lost, was undone once
			recorded := count(t, pool, "select count(*) from romancy.history where instance_id = $1 and kind = 'activity' and name = 'step'", id)
			undone := count(t, pool, "select count(*) from romancy.history where instance_id = $1 and kind = 'compensation'", id)
			if recorded != undone {
				t.Errorf("run %s: %d steps recorded, %d undone", id, recorded, undone)
			}
		case !errors.Is(cancelled, workflow.ErrEnded) || ended != nil:
			t.Errorf("run %s: Cancel returned %v, and it ended with %v", id, cancelled, ended)
		}
	})
	close(over)
	losing.Wait()
}
