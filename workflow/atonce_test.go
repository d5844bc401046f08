package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// waitsForNothing is every wait with an end that has passed when it begins: what is there is taken, else it ends at
// once.
func waitsForNothing(ctx *workflow.Context, timeout time.Duration, note func(format string, args ...any)) error {
	say := func(what string, got any, err error) {
		note("%s %v %v", what, got, errors.Is(err, workflow.ErrTimeout))
	}
	end := workflow.WithTimeout(timeout)
	one, err := workflow.Receive[int](ctx, "full", end)
	say("receive", one.Body, err)
	many, err := workflow.ReceiveMany[int](ctx, "full", 10, end)
	say("many", len(many), err)
	_, err = workflow.Receive[int](ctx, "empty", end)
	say("receive", nil, err)
	_, err = workflow.ReceiveMany[int](ctx, "empty", 10, end)
	say("many", nil, err)
	shared, err := workflow.Receive[int](ctx, "shared", end)
	say("competing", shared.Body, err)
	event, err := workflow.WaitEvent[int](ctx, "paid", end)
	say("event", event.Data, err)
	_, err = workflow.WaitEvent[int](ctx, "paid", end)
	say("event", nil, err)
	err = workflow.Select(ctx,
		workflow.OnTimer(timeout, func() error { note("timer"); return nil }),
		workflow.OnMessage("other", func(message workflow.Message[int]) error { note("message %d", message.Body); return nil }))
	if err != nil {
		return err
	}
	if err := workflow.Select(ctx,
		workflow.OnMessage("other", func(workflow.Message[int]) error { note("message"); return nil }),
		workflow.OnTimer(timeout, func() error { note("timer"); return nil })); err != nil {
		return err
	}
	return errors.Join(workflow.Sleep(ctx, timeout), workflow.SleepUntil(ctx, time.Now().Add(timeout)))
}

// A wait whose end is not after its beginning takes what is there, or ends at once, whatever kind of wait it is; and a
// replay says the same.
func TestAWaitWithoutTimeTakesWhatIsThereOrEndsAtOnce(t *testing.T) {
	t.Parallel()
	for name, timeout := range map[string]time.Duration{"zero": 0, "negative": -time.Second, "shortest": math.MinInt64} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			pool := pgtest.Pool(t)
			var seen journey
			flow := workflow.Define("hasty", func(ctx *workflow.Context, _ int) (int, error) {
				seen.begin()
				if err := workflow.Subscribe(ctx, "shared", workflow.Competing); err != nil {
					return 0, err
				}
				if _, err := workflow.Receive[int](ctx, "begin"); err != nil {
					return 0, err
				}
				if err := waitsForNothing(ctx, timeout, seen.notef); err != nil {
					return 0, err
				}
				_, err := workflow.Receive[int](ctx, "end")
				return 7, err
			})
			one := startWorker(t, pool, []workflow.Definition{flow})
			run, err := flow.Start(ctx, one.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			waitsOn := func(channel string) {
				eventually(t, "it waits on "+channel, func() bool {
					return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_channels = array[$1]", channel) == 1
				})
			}
			waitsOn("begin")
			send := func(channel string, value int) {
				if err := one.SendTo(ctx, run.ID(), channel, value); err != nil {
					t.Fatal(err)
				}
			}
			for n := range 3 {
				send("full", n+1)
			}
			send("other", 5)
			if err := one.Publish(ctx, "shared", 6); err != nil {
				t.Fatal(err)
			}
			if err := one.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "test", Data: 8}); err != nil {
				t.Fatal(err)
			}
			send("begin", 0)
			waitsOn("end")
			if far := count(t, pool, `select count(*) from romancy.history where kind = 'timer' and name <> 'sleep_until'
					and abs((payload->>'fires_at_us')::numeric / 1000000 - extract(epoch from now())) > 600`); far > 0 {
				t.Errorf("%d deadlines are recorded that are far from now", far)
			}
			one.shutdown(t)
			two := startWorker(t, pool, []workflow.Definition{flow})
			if err := two.SendTo(ctx, run.ID(), "end", 0); err != nil {
				t.Fatal(err)
			}
			if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
				t.Fatalf("got %d, %v", got, err)
			}
			const want = "[receive 1 false many 2 false receive <nil> true many <nil> true competing 6 false event 8 false event <nil> true message 5 timer]"
			for _, execution := range seen.executions() {
				if got := fmt.Sprint(execution); got != want {
					t.Errorf("an execution saw\n%s\nwant\n%s", got, want)
				}
			}
		})
	}
}

// What a former build has recorded of a wait with a timeout of zero, which it took for none, is a message without a
// deadline before it.
func TestAWaitWithoutTimeReplaysWhatWasRecordedWhenThatMeantNoTimeout(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	pool := pgtest.Pool(t)
	former := true
	wait := func(ctx *workflow.Context) (int, error) {
		var options []workflow.ReceiveOption
		var events []workflow.EventOption
		if !former {
			options, events = []workflow.ReceiveOption{workflow.WithTimeout(0)}, []workflow.EventOption{workflow.WithTimeout(-1)}
		}
		one, err := workflow.Receive[int](ctx, "numbers", options...)
		if err != nil {
			return 0, err
		}
		event, err := workflow.WaitEvent[int](ctx, "paid", events...)
		return one.Body + event.Data, err
	}
	flow := workflow.Define("former", func(ctx *workflow.Context, _ int) (int, error) {
		got, err := wait(ctx)
		if err != nil {
			return 0, err
		}
		_, err = workflow.Receive[int](ctx, "end")
		return got, err
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := one.SendTo(ctx, run.ID(), "numbers", 3); err != nil {
		t.Fatal(err)
	}
	if err := one.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "test", Data: 4}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits for its end", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_channels = array['end']") == 1
	})
	one.shutdown(t)
	former = false
	two := startWorker(t, pool, []workflow.Definition{flow})
	if err := two.SendTo(ctx, run.ID(), "end", 0); err != nil {
		t.Fatal(err)
	}
	if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
		t.Fatalf("got %d, %v, want the 7 that was recorded", got, err)
	}
}

// distantFuture and distantPast are, but for the first two of the past, beyond what PostgreSQL, JSON or microseconds
// in 64 bits can express.
var distantFuture = []time.Time{
	time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(292_278, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(300_000, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(1<<60, 0),
}

var distantPast = []time.Time{{}, time.Unix(0, math.MinInt64), time.Date(-1, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(-300_000, 1, 1, 0, 0, 0, 0, time.UTC), time.Unix(-1<<60, 0)}

// A run can wait for any instant: one that is too far counts as the end of the year 9999, and is waited for, also
// elsewhere.
func TestAWaitUntilAnyInstantNeitherFailsNorEndsEarly(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	pool := pgtest.Pool(t)
	passed := make(chan int, len(distantFuture)+len(distantPast)+1)
	flow := workflow.Define("distant", func(ctx *workflow.Context, which int) (int, error) {
		var instant time.Time
		switch {
		case which < len(distantFuture):
			instant = distantFuture[which]
		case which < len(distantFuture)+len(distantPast):
			instant = distantPast[which-len(distantFuture)]
		default:
			err := workflow.Sleep(ctx, math.MaxInt64)
			passed <- which
			return 0, err
		}
		err := workflow.SleepUntil(ctx, instant)
		passed <- which
		return which, err
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	var past []*workflow.Run[int]
	for which := range len(distantFuture) + len(distantPast) + 1 {
		run, err := flow.Start(ctx, one.Engine, which, workflow.WithID(fmt.Sprint(which)))
		if err != nil {
			t.Fatal(err)
		}
		if which >= len(distantFuture) && which < len(distantFuture)+len(distantPast) {
			past = append(past, run)
		}
	}
	waiting := len(distantFuture) + 1
	parked := func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_at > '2300-01-01' and wake_at < '10000-01-01'") == waiting
	}
	for _, run := range past {
		if _, err := run.Result(ctx); err != nil {
			t.Errorf("a wait for the past: %v", err)
		}
	}
	eventually(t, "all the others wait", parked)
	one.shutdown(t)
	two := startWorker(t, pool, []workflow.Definition{flow}, configured(func(config *workflow.Config) { config.CacheSize = 1 }))
	if _, err := two.SweepTimers(ctx); err != nil {
		t.Error(err)
	}
	if _, err := two.SweepResume(ctx); err != nil {
		t.Error(err)
	}
	at, ok, err := two.NextDeadline(ctx)
	if err != nil || !ok || at.Before(time.Now().Add(200*365*24*time.Hour)) {
		t.Errorf("the next deadline is %s, %v, %v", at, ok, err)
	}
	if !parked() {
		t.Error("a wait for the distant future has ended")
	}
	close(passed)
	for which := range passed {
		if which < len(distantFuture) || which >= len(distantFuture)+len(distantPast) {
			t.Errorf("the wait %d has ended", which)
		}
	}
}

// A start at an instant that cannot be stored is refused, and names it.
func TestAStartAtAnImpossibleInstantIsRefused(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	pool := pgtest.Pool(t)
	flow := workflow.Define("later", func(*workflow.Context, int) (int, error) { return 1, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	for _, instant := range slices.Concat(distantFuture, distantPast[2:]) {
		_, err := flow.Start(ctx, w.Engine, 0, workflow.WithStartAt(instant))
		wantErrorSays(t, err, fmt.Sprintf("WithStartAt is in the year %d", instant.UTC().Year()), "use an instant from 0001-01-01T00:00:00Z to 9999-12-31T23:59:59Z")
	}
	for _, instant := range distantPast[:2] {
		run, err := flow.Start(ctx, w.Engine, 0, workflow.WithStartAt(instant))
		if err != nil {
			t.Errorf("at %s: %v", instant, err)
			continue
		}
		if _, err := run.Result(ctx); err != nil {
			t.Errorf("at %s: %v", instant, err)
		}
	}
	for _, option := range []workflow.StartOption{workflow.WithDelay(math.MaxInt64), workflow.WithStartAt(time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC))} {
		if _, err := flow.Start(ctx, w.Engine, 0, option); err != nil {
			t.Error(err)
		}
	}
	if later := count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_at > '2300-01-01'"); later != 2 {
		t.Errorf("%d runs wait for their beginning, want 2", later)
	}
}

// Delays between attempts that grow beyond all durations are as long as the longest, and never in the past.
func TestARetryDelayThatOverflowsIsTheLongest(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	pool := pgtest.Pool(t)
	broken := workflow.DefineActivity("broken", func(context.Context, int) (int, error) { return 0, errors.New("no") }, workflow.WithRetry(workflow.RetryPolicy{
		MaxAttempts: math.MaxInt32, InitialInterval: math.MaxInt64, MaxInterval: math.MaxInt64, Multiplier: 1_000_000, MaxElapsed: math.MaxInt64,
	}))
	flow := workflow.Define("patient", func(ctx *workflow.Context, _ int) (int, error) { return broken.Execute(ctx, 0) })
	w := startWorker(t, pool, []workflow.Definition{flow})
	if _, err := flow.Start(ctx, w.Engine, 0); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it waits for its second attempt", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_at > '2300-01-01'") == 1
	})
}

func wantErrorSays(t *testing.T, err error, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want it to say %q", err, want)
		}
	}
}
