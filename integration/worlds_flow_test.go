package integration_test

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/romancy-go/romancy/workflow"
)

const (
	clockSleep   = time.Second
	clockTimeout = 500 * time.Millisecond
	clockRetry   = 500 * time.Millisecond
	// clockLate is how late a timer may be here. It is far from what a machine takes, and from the error of any clock.
	clockLate = 2 * time.Minute
)

// serverTime asks the database's clock, the one that counts.
var serverTime = workflow.DefineActivity("server_time", func(ctx context.Context, _ int) (now time.Time, err error) {
	err = workflow.Tx(ctx).QueryRow(ctx, "select clock_timestamp()").Scan(&now)
	return now, err
}, workflow.WithTransaction())

var failsOnce = workflow.DefineActivity("fails_once", func(ctx context.Context, _ int) (int, error) {
	attempt := workflow.ActivityInfo(ctx).Attempt
	if attempt == 1 {
		return 0, errors.New("the first attempt fails")
	}
	return attempt, nil
}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5, InitialInterval: clockRetry, Multiplier: 1}))

// clockFlow waits in every way there is, and measures each wait by the database's clock.
var clockFlow = workflow.Define("clock", func(ctx *workflow.Context, _ int) (time.Duration, error) {
	began, err := serverTime.Execute(ctx, 0)
	if err != nil {
		return 0, err
	}
	last := began
	// took checks the wait that has just ended, and returns the database's time.
	took := func(what string, until time.Time) error {
		now, err := serverTime.Execute(ctx, 0)
		if err != nil {
			return err
		}
		if now.Before(until) || now.After(until.Add(clockLate)) {
			return fmt.Errorf("%s ended at %s, want it at %s", what, now.UTC(), until.UTC())
		}
		last = now
		return nil
	}
	if err := workflow.Sleep(ctx, clockSleep); err != nil {
		return 0, err
	}
	if err := took("a sleep", last.Add(clockSleep)); err != nil {
		return 0, err
	}
	if _, err := workflow.Receive[int](ctx, "silence", workflow.WithTimeout(clockTimeout)); !errors.Is(err, workflow.ErrTimeout) {
		return 0, fmt.Errorf("a message that nobody sent: %w", err)
	}
	if err := took("a receive", last.Add(clockTimeout)); err != nil {
		return 0, err
	}
	if err := workflow.SleepUntil(ctx, last.Add(clockSleep)); err != nil {
		return 0, err
	}
	if err := took("a sleep until a moment", last.Add(clockSleep)); err != nil {
		return 0, err
	}
	if err := workflow.SleepUntil(ctx, began); err != nil { // long ago
		return 0, err
	}
	if err := workflow.Sleep(ctx, clockSleep); err != nil {
		return 0, err
	}
	if err := took("a sleep after one until the past", last.Add(clockSleep)); err != nil {
		return 0, err
	}
	if _, err := failsOnce.Execute(ctx, 0); err != nil {
		return 0, err
	}
	return last.Sub(began), took("a retry", last.Add(clockRetry))
})

// expectClock is what history should say of a run of clockFlow.
func expectClock(id string) expectedRun {
	return expectedRun{
		ID: id, Workflow: "clock", Status: "completed", Failures: map[int]int{12: 1},
		Steps: []string{
			"activity server_time", "timer sleep",
			"activity server_time", "timer receive:silence", "receive silence",
			"activity server_time", "timer sleep_until",
			"activity server_time", "timer sleep_until", "timer sleep",
			"activity server_time", "activity fails_once",
			"activity server_time",
		},
	}
}
