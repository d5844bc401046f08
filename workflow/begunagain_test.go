package workflow_test

import (
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// bookings are what a workflow books. The car has trouble until carReady, which keeps the run from undoing anything; the hotel cannot be
// cancelled until hotelReady. The first attempt of each hangs until its worker has left.
type bookings struct {
	did                  tally
	left                 chan struct{}
	carReady, hotelReady atomic.Bool
	refusals             atomic.Int32 // of the car when it is ready
}

func (b *bookings) book(name string, ready *atomic.Bool, undoReady *atomic.Bool) *workflow.Activity[int, string] {
	return workflow.DefineActivity(name, func(context.Context, int) (string, error) {
		if b.did.add(name) == 1 {
			<-b.left
			return "", errors.New("the line is dead") // unless its worker has left, which nobody hears
		}
		if ready != nil && (!ready.Load() || b.refusals.Add(1) == 1) {
			return "", errors.New("the line is busy")
		}
		return name, nil
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 10_000, InitialInterval: 300 * time.Millisecond, MaxInterval: 300 * time.Millisecond})).
		WithCompensation(func(context.Context, int, string) error {
			if undoReady != nil && !undoReady.Load() {
				return errors.New("nobody answers")
			}
			b.did.add("cancel " + name)
			return nil
		})
}

// What was begun beside a workflow is executed to its end, and undone, once, whichever worker goes on with that, and whatever the workflow sees
// of it then that it did not see before.
func TestStepsThatHadBegunAreUndoneHoweverOftenTheirRunMoves(t *testing.T) {
	t.Parallel()
	type future = *workflow.Future[string]
	type then = func(ctx *workflow.Context, hotel, car future, pay *workflow.Activity[int, int]) error
	get := func(ctx *workflow.Context, hotel, car future) error {
		if _, err := hotel.Get(ctx); err != nil {
			return err
		}
		_, err := car.Get(ctx)
		return err
	}
	regret := workflow.NewError("regret", "changed my mind")
	for how, test := range map[string]struct {
		cancelled bool
		then      then
	}{
		"cancelled, Get": {true, func(ctx *workflow.Context, hotel, car future, pay *workflow.Activity[int, int]) error {
			if err := get(ctx, hotel, car); err != nil {
				return err
			}
			_, err := pay.Execute(ctx, 1)
			return err
		}},
		"cancelled, Get of one": {true, func(ctx *workflow.Context, hotel, _ future, pay *workflow.Activity[int, int]) error {
			if _, err := hotel.Get(ctx); err != nil {
				return err
			}
			_, err := pay.Execute(ctx, 1)
			return err
		}},
		"cancelled, errors ignored": {true, func(ctx *workflow.Context, hotel, car future, pay *workflow.Activity[int, int]) error {
			_ = get(ctx, hotel, car)
			_, _ = workflow.Now(ctx)
			_, _ = pay.Go(ctx, 1).Get(ctx)
			return nil
		}},
		"cancelled, recorded value": {true, func(ctx *workflow.Context, hotel, car future, _ *workflow.Activity[int, int]) error {
			if err := get(ctx, hotel, car); err != nil {
				return err
			}
			_, err := workflow.Now(ctx)
			return err
		}},
		"cancelled, All": {true, func(ctx *workflow.Context, hotel, car future, pay *workflow.Activity[int, int]) error {
			if err := workflow.All(ctx, hotel, car); err != nil {
				return err
			}
			_, err := pay.Go(ctx, 1).Get(ctx)
			return err
		}},
		"cancelled, Select": {true, func(ctx *workflow.Context, hotel, car future, _ *workflow.Activity[int, int]) error {
			if err := workflow.Select(ctx, workflow.OnResult(hotel, func(_ string, err error) error { return err }),
				workflow.OnTimer(time.Hour, func() error { return nil })); err != nil {
				return err
			}
			return errors.Join(get(ctx, hotel, car), workflow.Sleep(ctx, time.Hour))
		}},
		"failed, Get not reached": {false, func(ctx *workflow.Context, hotel, car future, _ *workflow.Activity[int, int]) error {
			if _, err := workflow.SideEffect(ctx, "mood", func() (int, error) { return 0, regret }); err != nil {
				return err
			}
			return get(ctx, hotel, car)
		}},
		"failed, losers of a Select": {false, func(ctx *workflow.Context, hotel, car future, _ *workflow.Activity[int, int]) error {
			if err := workflow.Select(ctx, workflow.OnResult(hotel, func(_ string, err error) error { return err }),
				workflow.OnResult(car, func(_ string, err error) error { return err }),
				workflow.OnTimer(time.Millisecond, func() error { return nil })); err != nil {
				return err
			}
			if _, err := hotel.Get(ctx); !errors.Is(err, workflow.ErrNotChosen) {
				return err
			}
			if err := workflow.All(ctx, hotel, car); !errors.Is(err, workflow.ErrNotChosen) {
				return err
			}
			return regret
		}},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			b := &bookings{left: make(chan struct{})}
			hotel, car := b.book("hotel", nil, &b.hotelReady), b.book("car", &b.carReady, nil)
			pay := workflow.DefineActivity("pay", func(context.Context, int) (int, error) { b.did.add("pay"); return 1, nil })
			flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) {
				room, wheels := hotel.Go(ctx, 1), car.Go(ctx, 1)
				if !test.cancelled {
					for b.did.of("hotel") == 0 || b.did.of("car") == 0 {
						time.Sleep(time.Millisecond)
					}
				}
				return 0, test.then(ctx, room, wheels, pay)
			})
			run := leaveBeside(ctx, t, pool, flow, func() bool {
				return b.did.of("hotel") == 1 && b.did.of("car") == 1 &&
					(test.cancelled || count(t, pool, "select count(*) from romancy.history where kind in ('select', 'side_effect_failed')") == 1)
			})
			t.Cleanup(func() { close(b.left) })
			if test.cancelled {
				client := startWorker(t, pool, nil, configured(func(c *workflow.Config) { c.ClientOnly = true }))
				if err := client.Cancel(ctx, run, "changed my mind", workflow.Compensate()); err != nil {
					t.Fatal(err)
				}
			}
			two := startWorker(t, pool, []workflow.Definition{flow})
			eventually(t, "the hotel is booked, and the car has failed", func() bool {
				return count(t, pool, "select count(*) from romancy.history where name = 'hotel' and kind = 'activity'") == 1 &&
					count(t, pool, "select count(*) from romancy.attempts where position = 2") > 0
			})
			two.shutdown(t)
			b.carReady.Store(true)
			three := startWorker(t, pool, []workflow.Definition{flow})
			eventually(t, "the car is cancelled, the hotel is not", func() bool {
				return b.did.of("cancel car") == 1 && count(t, pool, "select count(*) from romancy.attempts where error->>'kind' = 'compensation'") > 0
			})
			three.shutdown(t)
			b.hotelReady.Store(true)
			four := startWorker(t, pool, []workflow.Definition{flow})
			if test.cancelled {
				if _, err := flow.Run(four.Engine, run).Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
					t.Errorf("got %v, want a cancelled run", err)
				}
			} else {
				wantFailed(ctx, t, flow.Run(four.Engine, run), "regret")
			}
			for what, want := range map[string]int{"hotel": 2, "cancel hotel": 1, "cancel car": 1, "pay": 0} {
				if n := b.did.of(what); n != want {
					t.Errorf("%s: %d times, want %d", what, n, want)
				}
			}
		})
	}
}

// A step beside the workflow, whose attempts have all failed and whose next is not due, is not executed to be undone: there is nothing to undo. If
// the next was due, nobody knows whether it had begun: it is executed once.
func TestStepThatWaitsForItsNextAttemptDoesNotHoldUpACancellation(t *testing.T) {
	t.Parallel()
	for how, test := range map[string]struct{ due, succeeds bool }{
		"not due": {}, "due, fails": {due: true}, "due, succeeds": {due: true, succeeds: true},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			var did tally
			var up atomic.Bool
			book := workflow.DefineActivity("hotel", func(context.Context, int) (int, error) {
				if did.add("book"); up.Load() {
					return 1, nil
				}
				return 0, errors.New("no connection to the hotel")
			}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 10_000, InitialInterval: time.Hour, MaxInterval: time.Hour})).
				WithCompensation(func(context.Context, int, int) error { did.add("cancel"); return nil })
			flow := workflow.Define("trip", func(ctx *workflow.Context, _ int) (int, error) { return book.Go(ctx, 1).Get(ctx) })
			one := startWorker(t, pool, []workflow.Definition{flow})
			run, err := flow.Start(ctx, one.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "it waits for its next attempt", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
			})
			one.shutdown(t)
			wantBooked, wantCancelled := 1, 0
			if test.due {
				bringForward(t, pool, run.ID())
				wantBooked = 2
			}
			if test.succeeds {
				up.Store(true)
				wantCancelled = 1
			}
			client := startWorker(t, pool, nil, configured(func(c *workflow.Config) { c.ClientOnly = true }))
			if err := client.Cancel(ctx, run.ID(), "stop", workflow.Compensate()); err != nil {
				t.Fatal(err)
			}
			two := startWorker(t, pool, []workflow.Definition{flow})
			if _, err := flow.Run(two.Engine, run.ID()).Result(ctx); !errors.Is(err, workflow.ErrCancelled) {
				t.Errorf("got %v, want a cancelled run", err)
			}
			if booked, cancelled := did.of("book"), did.of("cancel"); booked != wantBooked || cancelled != wantCancelled {
				t.Errorf("booked %d times, cancelled %d times; want %d and %d", booked, cancelled, wantBooked, wantCancelled)
			}
		})
	}
}
