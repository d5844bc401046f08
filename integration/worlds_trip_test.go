package integration_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/romancy-go/romancy/workflow"
)

// trip is a leg of a journey.
type trip struct {
	Number, Leg int
}

// booked writes what a step of a trip did, in its transaction.
func booked(ctx context.Context, what string) error {
	_, err := workflow.Tx(ctx).Exec(ctx, "insert into shop.trips (run, what) values ($1::text, $2::text)", workflow.ActivityInfo(ctx).InstanceID, what)
	return err
}

func bookable(name string, failures int) *workflow.Activity[trip, string] {
	retry := workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 50, InitialInterval: 50 * time.Millisecond, MaxInterval: 100 * time.Millisecond})
	return workflow.DefineActivity(name, func(ctx context.Context, t trip) (string, error) {
		if err := booked(ctx, name); err != nil {
			return "", err
		}
		if attempt := workflow.ActivityInfo(ctx).Attempt; attempt <= failures {
			return "", fmt.Errorf("attempt %d fails after it has written", attempt)
		}
		return fmt.Sprintf("%s %d.%d", name, t.Number, t.Leg), nil
	}, workflow.WithTransaction(), retry).WithCompensation(func(ctx context.Context, _ trip, _ string) error { return booked(ctx, "no "+name) })
}

var (
	bookSeat = bookable("seat", 1)
	bookMeal = bookable("meal", 0)
	// waitForUpgrade never succeeds.
	waitForUpgrade = workflow.DefineActivity("upgrade", func(ctx context.Context, _ trip) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	})
)

// tripFlow does two things at a time, chooses a message before a step that does not end and a timer, goes on as a new run, which
// gets mail of the first, and waits there to be cancelled.
var tripFlow = workflow.Define("trip", func(ctx *workflow.Context, t trip) (string, error) {
	seat, meal := bookSeat.Go(ctx, t), bookMeal.Go(ctx, t)
	if t.Leg == 0 {
		upgrade := waitForUpgrade.Go(ctx, t)
		route := ""
		if err := workflow.Select(ctx,
			workflow.OnResult(upgrade, func(string, error) error { return errors.New("an upgrade") }),
			workflow.OnMessage("route", func(m workflow.Message[crashMessage]) error { route = m.Body.Key; return nil }),
			workflow.OnTimer(time.Hour, func() error { return errors.New("no route") }),
		); err != nil {
			return "", err
		}
		if want := fmt.Sprintf("route-%d", t.Number); route != want {
			return "", fmt.Errorf("the route is %q, want %q", route, want)
		}
	}
	if err := workflow.All(ctx, seat, meal); err != nil {
		return "", err
	}
	for what, future := range map[string]*workflow.Future[string]{"seat": seat, "meal": meal} {
		if got, err := future.Get(ctx); err != nil || got != fmt.Sprintf("%s %d.%d", what, t.Number, t.Leg) {
			return "", fmt.Errorf("got %q: %w", got, err)
		}
	}
	if t.Leg == 0 {
		t.Leg++
		return "", workflow.ContinueAsNew(ctx, t)
	}
	if _, err := workflow.Receive[crashMessage](ctx, "baggage"); err != nil {
		return "", err
	}
	return "", workflow.Select(ctx,
		workflow.OnMessage("arrival", func(workflow.Message[crashMessage]) error { return nil }),
		workflow.OnTimer(time.Hour, func() error { return nil }))
})

func tripID(number int) string { return fmt.Sprintf("trip-%d", number) }

// depart starts a trip and sends its baggage, long before anybody asks for it.
func (w *crashWorld) depart(number int) {
	w.must(w.retry(func() error {
		_, err := tripFlow.Start(w.ctx, w.app.Engine(), trip{Number: number}, workflow.WithID(tripID(number)))
		return err
	}))
	w.must(w.send(tripID(number), "baggage", "baggage-"+tripID(number)))
}

// arriveNot cancels a trip when it waits for its arrival, and checks what is left of it.
func (w *crashWorld) arriveNot(number int) {
	w.t.Helper()
	var leg string
	w.must(w.until(tripID(number)+" waits for its arrival", func() (bool, error) {
		err := w.pool.QueryRow(w.ctx, `select coalesce(max(id), '') from romancy.instances
			where continued_from = $1::text and status = 'waiting' and 'arrival' = any (wake_channels)`, tripID(number)).Scan(&leg)
		return leg != "", err
	}))
	w.must(w.app.Engine().Cancel(w.ctx, leg, "strike", workflow.Compensate()))
	_, err := tripFlow.Run(w.app.Engine(), tripID(number)).Result(w.ctx)
	if failed := new(workflow.RunError); !errors.Is(err, workflow.ErrCancelled) || !errors.As(err, &failed) || failed.Message != "strike" || failed.CompensationErrors != nil {
		w.t.Errorf("%s ended with %v, want it cancelled", tripID(number), err)
	}
	w.others = append(w.others, expectedRun{
		ID: tripID(number), Workflow: "trip", Status: "continued", Failures: map[int]int{1: 1}, Beside: 3,
		Steps: []string{"activity seat", "activity meal", "?activity upgrade", "timer select", "select "},
	}, expectedRun{
		ID: leg, Workflow: "trip", Status: "cancelled", Failures: map[int]int{1: 1}, Beside: 2,
		Steps: []string{
			"activity seat", "activity meal", "receive baggage", "timer select", "cancelled ",
			"failing ", "compensation meal", "compensation seat",
		},
	})
	w.mail = append(w.mail, expectedMail{Key: "baggage-" + tripID(number), All: []string{leg}})
	type row struct {
		Run, What string
		Times     int
	}
	found := map[row]bool{}
	w.must(eachWith(&checker{ctx: w.ctx, db: w.pool}, "select run, what, count(*)::int from shop.trips where run = any ($1::text[]) group by 1, 2",
		func(r row) { found[r] = true }, []string{tripID(number), leg}))
	wanted := []row{{tripID(number), "seat", 1}, {tripID(number), "meal", 1}, {leg, "seat", 1}, {leg, "meal", 1}, {leg, "no seat", 1}, {leg, "no meal", 1}}
	for _, want := range wanted {
		if !found[want] {
			w.t.Errorf("%s: %+v is not among %v", tripID(number), want, found)
		}
	}
	if len(found) != len(wanted) {
		w.t.Errorf("%s has done %v, want %v", tripID(number), found, wanted)
	}
}
