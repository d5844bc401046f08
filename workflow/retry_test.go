package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A step ends with the attempt that its policy does not follow up: by its number, its error, or the time that has passed since the
// first failed.
func TestRetryPolicyDecidesWhichAttemptIsTheLast(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	declined := workflow.NewError("declined", "no")
	broken := errors.New("broken")
	for name, test := range map[string]struct {
		policy workflow.RetryPolicy
		fail   error
		want   int
	}{
		"attempts":      {workflow.RetryPolicy{MaxAttempts: 3, InitialInterval: time.Millisecond}, broken, 3},
		"non-retryable": {workflow.RetryPolicy{NonRetryable: []error{declined}, InitialInterval: time.Millisecond}, fmt.Errorf("card: %w", workflow.NewError("declined", "sorry")), 1},
		"terminal":      {workflow.RetryPolicy{InitialInterval: time.Millisecond}, workflow.Terminal(broken), 1},
		"elapsed":       {workflow.RetryPolicy{MaxAttempts: 1000, InitialInterval: 20 * time.Millisecond, Multiplier: 1, MaxElapsed: time.Millisecond}, broken, 2},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			activity := workflow.DefineActivity("try", func(context.Context, int) (int, error) { return 0, test.fail }, workflow.WithRetry(test.policy))
			flow := workflow.Define("trying "+name, func(ctx *workflow.Context, _ int) (int, error) {
				_, err := activity.Execute(ctx, 0)
				failed := new(workflow.ActivityError)
				if !errors.As(err, &failed) {
					return 0, err
				}
				return failed.Attempts, nil
			})
			w := startWorker(t, pool, []workflow.Definition{flow})
			run, err := flow.Start(ctx, w.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := run.Result(ctx); err != nil || got != test.want {
				t.Fatalf("%d attempts, %v; want %d", got, err, test.want)
			}
		})
	}
}

// What an activity says of its failure reaches the workflow, every replay of it, and whoever asks for the run's result.
func TestDetailsOfAFailureSurvive(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	type limit struct {
		Cents int `json:"cents"`
	}
	declined := workflow.NewError("declined", "over the limit").WithDetails(limit{Cents: 1 << 60})
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return 0, fmt.Errorf("charge: %w", declined) })
	slow := workflow.DefineActivity("slow", func(ctx context.Context, _ int) (int, error) { <-ctx.Done(); return 0, ctx.Err() },
		workflow.WithTimeout(time.Millisecond))
	var seen journey
	flow := workflow.Define("charging", func(ctx *workflow.Context, _ int) (string, error) {
		seen.begin()
		_, err := charge.Execute(ctx, 0)
		typed := new(workflow.Error)
		var details limit
		if errors.As(err, &typed) {
			seen.notef("%v %s %s", json.Unmarshal(typed.Details, &details), typed.Type, typed.Message)
		}
		seen.notef("%d %v", details.Cents, errors.Is(err, declined))
		_, err = slow.Execute(ctx, 0)
		seen.notef("%v", errors.Is(err, context.DeadlineExceeded))
		_, err = workflow.Receive[int](ctx, "go")
		return fmt.Sprint(seen.executions()), err
	})
	passOn(ctx, t, flow)
	want := fmt.Sprintf("[<nil> declined charge: over the limit %d true true]", 1<<60)
	for i, execution := range seen.executions() {
		if fmt.Sprint(execution) != want {
			t.Errorf("execution %d saw %v, want %s", i, execution, want)
		}
	}
	pool := pgtest.Pool(t)
	failing := workflow.Define("failing", func(ctx *workflow.Context, _ int) (int, error) { return charge.Execute(ctx, 0) })
	w := startWorker(t, pool, []workflow.Definition{failing})
	run, err := failing.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	typed := new(workflow.Error)
	if !errors.As(err, &typed) || string(typed.Details) != fmt.Sprintf(`{"cents":%d}`, 1<<60) {
		t.Errorf("got %v with details %s", err, typed.Details)
	}
}
