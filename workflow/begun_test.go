package workflow_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// hotel books rooms, by idempotency key as a hotel does. The first answer does not come before answer is closed, whatever the context says.
type hotel struct {
	answer chan struct{}

	begun chan struct{} // closed when the first is asked for

	mu        sync.Mutex
	booked    map[string]int // asked for, by key
	cancelled map[string]int
}

func newHotel(t *testing.T) *hotel {
	h := &hotel{answer: make(chan struct{}), begun: make(chan struct{}), booked: map[string]int{}, cancelled: map[string]int{}}
	t.Cleanup(h.answerAtLast)
	return h
}

func (h *hotel) answerAtLast() {
	h.mu.Lock()
	defer h.mu.Unlock()
	select {
	case <-h.answer:
	default:
		close(h.answer)
	}
}

func (h *hotel) asked() (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, times := range h.booked {
		n += times
	}
	return n
}

func (h *hotel) activity(options ...workflow.ActivityOption) *workflow.Activity[int, string] {
	return workflow.DefineActivity("hotel", func(ctx context.Context, _ int) (string, error) {
		key := workflow.ActivityInfo(ctx).IdempotencyKey
		h.mu.Lock()
		h.booked[key]++
		first := h.booked[key] == 1
		h.mu.Unlock()
		if first {
			close(h.begun)
			<-h.answer
		}
		return key, nil
	}, options...).WithCompensation(func(_ context.Context, _ int, key string) error {
		h.mu.Lock()
		defer h.mu.Unlock()
		h.cancelled[key]++
		return nil
	})
}

// wantAllCancelled fails the test unless rooms were booked, and each was cancelled once.
func (h *hotel) wantAllCancelled(t *testing.T) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.booked) == 0 {
		t.Error("nothing was booked, so nothing was tested")
	}
	for key := range h.booked {
		if h.cancelled[key] != 1 {
			t.Errorf("room %s was cancelled %d times, want once", key, h.cancelled[key])
		}
	}
}

// flight finds no seat, when the hotel has been asked for a room.
func (h *hotel) flight() *workflow.Activity[int, int] {
	return workflow.DefineActivity("flight", func(context.Context, int) (int, error) {
		<-h.begun
		return 0, workflow.NewError("no_seat", "no seat is left")
	})
}

// A step beside the workflow that can be undone, and has begun when its worker leaves, is undone if the run fails, though nothing is recorded
// of it.
func TestStepBesideTheWorkflowIsUndoneThoughItsWorkerLeft(t *testing.T) {
	t.Parallel()
	for how, book := range map[string]func(ctx *workflow.Context, hotel *workflow.Activity[int, string], flight *workflow.Activity[int, int]) error{
		"given up by the failing run": func(ctx *workflow.Context, hotel *workflow.Activity[int, string], flight *workflow.Activity[int, int]) error {
			hotel.Go(ctx, 1)
			_, failed := flight.Execute(ctx, 1)
			_, err := workflow.Now(ctx)
			return errors.Join(failed, err)
		},
		"loser of a Select": func(ctx *workflow.Context, hotel *workflow.Activity[int, string], flight *workflow.Activity[int, int]) error {
			room := hotel.Go(ctx, 1)
			_, failed := flight.Execute(ctx, 1)
			if err := workflow.Select(ctx,
				workflow.OnResult(room, func(string, error) error { return nil }),
				workflow.OnTimer(time.Millisecond, func() error { return nil })); err != nil {
				return err
			}
			_, err := workflow.Now(ctx)
			return errors.Join(failed, err)
		},
	} {
		for name, options := range map[string][]workflow.ActivityOption{"alone": nil, "in a transaction": {workflow.WithTransaction()}} {
			t.Run(how+", "+name, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				ctx := testContext(t)
				rooms := newHotel(t)
				flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
					return 0, book(ctx, rooms.activity(options...), rooms.flight())
				})
				run := leaveBeside(ctx, t, pool, flow, func() bool {
					return rooms.asked() == 1 && count(t, pool, "select count(*) from romancy.history where name = 'now'") == 1
				})
				two := startWorker(t, pool, []workflow.Definition{flow})
				wantFailed(ctx, t, flow.Run(two.Engine, run), "no_seat")
				rooms.wantAllCancelled(t)
				if err := two.Retry(ctx, run); !errors.Is(err, workflow.ErrNotRetryable) {
					t.Errorf("retry of a run that is undone: %v", err)
				}
				rooms.wantAllCancelled(t)
			})
		}
	}
}

// leaveBeside starts a run on a worker that leaves, with the run executing, when ready says so.
func leaveBeside(ctx context.Context, t *testing.T, pool *pgxpool.Pool, flow *workflow.Workflow[int, int], ready func() bool) (id string) {
	t.Helper()
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is where its worker is to leave it", ready)
	over, cancel := context.WithCancel(context.Background())
	cancel()
	if err := one.Shutdown(over); err == nil {
		t.Fatal("shut down within no time although a step was executing")
	}
	return run.ID()
}

func wantFailed[Out any](ctx context.Context, t *testing.T, run *workflow.Run[Out], errorType string) {
	t.Helper()
	_, err := run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || !errors.Is(err, workflow.NewError(errorType, "")) || len(failed.CompensationErrors) != 0 {
		t.Errorf("got %v, want a failed run of type %s that is undone", err, errorType)
	}
}

// The same holds if the run is cancelled: that does not keep the step from being executed to its end, with its retry policy, for it to be undone.
func TestStepBesideACancelledRunIsUndoneThoughItsWorkerLeft(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	rooms := newHotel(t)
	var attempts tally
	book := workflow.DefineActivity("hotel", func(ctx context.Context, _ int) (string, error) {
		if attempts.add("") == 2 {
			return "", errors.New("the line is busy")
		}
		key := workflow.ActivityInfo(ctx).IdempotencyKey
		rooms.mu.Lock()
		rooms.booked[key]++
		rooms.mu.Unlock()
		if attempts.of("") == 1 {
			<-rooms.answer
		}
		return key, ctx.Err()
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5, InitialInterval: 50 * time.Millisecond})).
		WithCompensation(func(_ context.Context, _ int, key string) error {
			rooms.mu.Lock()
			defer rooms.mu.Unlock()
			rooms.cancelled[key]++
			return nil
		})
	flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
		future := book.Go(ctx, 1)
		if _, err := workflow.Receive[int](ctx, "go"); err != nil {
			return 0, err
		}
		_, err := future.Get(ctx)
		return 0, err
	})
	run := leaveBeside(ctx, t, pool, flow, func() bool { return rooms.asked() == 1 })
	client := startWorker(t, pool, nil, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	if err := client.Cancel(ctx, run, "changed my mind", workflow.Compensate()); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	_, err := flow.Run(two.Engine, run).Result(ctx)
	if !errors.Is(err, workflow.ErrCancelled) {
		t.Errorf("got %v, want a cancelled run", err)
	}
	rooms.wantAllCancelled(t)
}

// A step whose body has returned without success after it lost a Select, or after its run has failed, is not executed again to be undone.
func TestStepThatEndedWithoutSuccessIsNotExecutedAgainToBeUndone(t *testing.T) {
	t.Parallel()
	for how, fail := range map[string]bool{"lost a Select": false, "its run has failed": true} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			var executed tally
			begun := make(chan struct{}, 1)
			watch := workflow.DefineActivity("watch", func(ctx context.Context, _ int) (int, error) {
				executed.add("watch")
				begun <- struct{}{}
				<-ctx.Done()
				return 0, ctx.Err()
			}).WithCompensation(func(context.Context, int, int) error { executed.add("unwatch"); return nil })
			reserve := workflow.DefineActivity("reserve", func(context.Context, int) (int, error) { <-begun; return 1, nil },
				workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5, InitialInterval: 10 * time.Second, MaxInterval: 10 * time.Second})).
				WithCompensation(func(context.Context, int, int) error {
					if executed.add("undo") == 1 && fail {
						return errors.New("not now")
					}
					return nil
				})
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
				future := watch.Go(ctx, n)
				if _, err := reserve.Execute(ctx, n); err != nil {
					return 0, err
				}
				if !fail {
					if err := workflow.Select(ctx, workflow.OnResult(future, func(int, error) error { return nil }),
						workflow.OnTimer(time.Millisecond, func() error { return nil })); err != nil {
						return 0, err
					}
					if _, err := workflow.Receive[int](ctx, "go"); err != nil {
						return 0, err
					}
				}
				return 0, workflow.NewError("regret", "changed my mind")
			})
			one := startWorker(t, pool, []workflow.Definition{flow})
			run, err := flow.Start(ctx, one.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the run is parked", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and (wake_channels = array['go'] or compensating)") == 1
			})
			one.shutdown(t)
			bringForward(t, pool, run.ID())
			two := startWorker(t, pool, []workflow.Definition{flow})
			if !fail {
				if err := two.SendTo(ctx, run.ID(), "go", 1); err != nil {
					t.Fatal(err)
				}
			}
			wantFailed(ctx, t, flow.Run(two.Engine, run.ID()), "regret")
			if executed.of("watch") != 1 || executed.of("unwatch") != 0 {
				t.Errorf("executed %d times and undone %d times, want once and never", executed.of("watch"), executed.of("unwatch"))
			}
		})
	}
}

// Of a step that has begun beside the workflow History tells before it ends; what cannot be undone costs no note.
func TestOnlyAStepThatCanBeUndoneIsNotedWhenItBegins(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	rooms := newHotel(t)
	begun := make(chan struct{})
	plain := workflow.DefineActivity("plain", func(context.Context, int) (int, error) { close(begun); <-rooms.answer; return 1, nil })
	hotel := rooms.activity()
	flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
		return 1, workflow.All(ctx, plain.Go(ctx, 1), hotel.Go(ctx, 1))
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-begun
	eventually(t, "the hotel is asked", func() bool { return rooms.asked() == 1 })
	history, err := w.History(ctx, run.ID())
	if err != nil || len(history) != 1 || history[0].Position != 2 || history[0].Kind != "activity" || history[0].Name != "hotel" || history[0].Payload != nil {
		t.Errorf("history is %+v, %v; want the hotel, at position 2, without a payload", history, err)
	}
	rooms.answerAtLast()
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	if history, err = w.History(ctx, run.ID()); err != nil || len(history) != 2 || history[1].Name != "hotel" || history[1].Payload == nil {
		t.Errorf("history is %+v, %v; want two steps with their results", history, err)
	}
}

// Retry forgets of a step beside the workflow that has failed also that it had begun. What was begun after a failure may follow from it.
func TestRetryKnowsWhatHasBegun(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	var executed tally
	book := workflow.DefineActivity("book", func(ctx context.Context, wait bool) (int, error) {
		if wait {
			<-ctx.Done()
			return 0, ctx.Err()
		}
		if executed.add(workflow.ActivityInfo(ctx).InstanceID) == 1 {
			return 0, errors.New("no room is left")
		}
		return 1, nil
	}).WithCompensation(func(context.Context, bool, int) error { executed.add("cancel"); return nil })
	pool := pgtest.Pool(t)
	flow := workflow.Define("trip", func(ctx *workflow.Context, goesOn bool) (int, error) {
		room, err := book.Go(ctx, false).Get(ctx)
		if err != nil && goesOn {
			book.Go(ctx, true)
			for count(t, pool, "select count(*) from romancy.history where kind = 'begun' and instance_id = '"+ctx.InstanceID()+"'") < 2 {
				time.Sleep(time.Millisecond)
			}
		}
		return room, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	for _, goesOn := range []bool{false, true} {
		run, err := flow.Start(ctx, w.Engine, goesOn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); err == nil {
			t.Fatal("the run completed")
		}
		err = w.Retry(ctx, run.ID())
		if goesOn {
			if !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), "history goes on after it to position 2") {
				t.Errorf("retry of a run that went on: %v", err)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := run.Result(ctx); err != nil || got != 1 {
			t.Errorf("got %d, %v", got, err)
		}
	}
	if n := executed.of("cancel"); n != 0 {
		t.Errorf("%d steps that failed were undone", n)
	}
}
