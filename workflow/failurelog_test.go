package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// about returns the lines with a message about a run.
func (l *lines) about(t *testing.T, message, id string) (found []map[string]any) {
	t.Helper()
	for _, line := range l.all(t) {
		if line["msg"] == message && line["instance_id"] == id {
			found = append(found, line)
		}
	}
	return found
}

// A run that fails is one warning by the worker that ended it, with the step, where it is, how often it was attempted, and the stack of
// a panic. One that completes or is cancelled is none.
func TestAFailedRunIsOneLine(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	act := func(name string, fails error) *workflow.Activity[int, int] {
		return workflow.DefineActivity(name, func(_ context.Context, n int) (int, error) {
			if name == "panics" {
				panic("too hot")
			}
			return n, fails
		}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 3, InitialInterval: time.Millisecond}))
	}
	fine, refused, panics := act("fine", nil), act("refused", workflow.NewError("card_declined", "no money")), act("panics", nil)
	flow := workflow.Define("flow", func(ctx *workflow.Context, what string) (int, error) {
		if _, err := fine.Execute(ctx, 1); err != nil {
			return 0, err
		}
		switch what {
		case "step":
			_, err := refused.Execute(ctx, 1)
			return 0, fmt.Errorf("charge: %w", err)
		case "older step":
			_, first := refused.Execute(ctx, 1)
			if _, err := fine.Execute(ctx, 2); err != nil {
				return 0, err
			}
			return 0, first
		case "beside":
			a, b := fine.Go(ctx, 1), refused.Go(ctx, 1)
			return 0, workflow.All(ctx, a, b)
		case "panic in a step":
			return panics.Execute(ctx, 1)
		case "panic":
			panic("what now?")
		case "own error":
			return 0, errors.New("no")
		case "cancelled":
			_, err := workflow.Receive[int](ctx, "never")
			return 0, err
		}
		return 0, nil
	})
	var logged lines
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
	for what, want := range map[string]map[string]any{
		"step":            {"type": "card_declined", "step": "refused", "position": 2.0, "attempts": 3.0},
		"older step":      {"type": "card_declined", "step": "refused", "position": 2.0, "attempts": 3.0},
		"beside":          {"type": "card_declined", "step": "refused", "position": 3.0, "attempts": 3.0},
		"panic in a step": {"type": "panic", "step": "panics", "position": 2.0, "attempts": 3.0, "stack": "failurelog_test.go"},
		"panic":           {"type": "panic", "step": nil, "stack": "failurelog_test.go", "error": "what now?"},
		"own error":       {"type": "*errors.errorString", "step": nil, "stack": nil, "error": "no"},
		"fine":            nil,
		"cancelled":       nil,
	} {
		run, err := flow.Start(ctx, w.Engine, what, workflow.WithID(what))
		if err != nil {
			t.Fatal(err)
		}
		if what == "cancelled" {
			if err := w.Cancel(ctx, what, "enough", workflow.Compensate()); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := run.Result(ctx); (err == nil) != (what == "fine") {
			t.Fatalf("%s: %v", what, err)
		}
		if want == nil {
			continue
		}
		eventually(t, what+" is logged", func() bool { return len(logged.about(t, "run failed", what)) > 0 })
		line := logged.about(t, "run failed", what)[0]
		if line["level"] != "WARN" || line["workflow"] != "flow" {
			t.Errorf("%s: the line is %v", what, line)
		}
		for key, value := range want {
			got := line[key]
			part, isText := value.(string)
			text, _ := got.(string)
			if isText && !strings.Contains(text, part) || !isText && got != value {
				t.Errorf("%s: %s is %v, want %v", what, key, got, value)
			}
		}
	}
	w.shutdown(t)
	for _, line := range logged.all(t) {
		id, _ := line["instance_id"].(string)
		if line["msg"] == "run failed" && (id == "fine" || id == "cancelled") {
			t.Errorf("logged although it did not fail: %v", line)
		}
		if n := len(logged.about(t, "run failed", id)); n > 1 {
			t.Errorf("%q is logged %d times", id, n)
		}
	}
}

// A run whose failed step is recorded, and whose worker went before the end was, is logged by the worker that ends it, with the
// position that history says.
func TestAReplayedFailureNamesItsStep(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	if _, err := pool.Exec(ctx, `with run as (
			insert into romancy.instances (id, workflow, status, token, ready_at, input) values ('late', 'flow', 'ready', 1, now(), '1') returning id)
		insert into romancy.history (instance_id, position, token, kind, name, payload)
		select id, 1, 1, 'activity', 'charge', '{"error":{"type":"declined","message":"no money"},"attempts":4}'::json from run`); err != nil {
		t.Fatal(err)
	}
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return 0, errors.New("executed again") })
	flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	var logged lines
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
	if _, err := flow.Run(w.Engine, "late").Result(ctx); err == nil {
		t.Fatal("it did not fail")
	}
	eventually(t, "it is logged", func() bool { return len(logged.about(t, "run failed", "late")) == 1 })
	if line := logged.about(t, "run failed", "late")[0]; line["position"] != 1.0 || line["attempts"] != 4.0 || line["type"] != "declined" {
		t.Errorf("the line is %v", line)
	}
}

// Many runs that fail alike are a hundred lines and a count; another failure is not lost among them.
func TestManyFailedRunsAreCounted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	flow := workflow.Define("flow", func(_ *workflow.Context, kind string) (int, error) { return 0, workflow.NewError(kind, "no") })
	var logged lines
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
	const many = 300
	requests := make([]workflow.StartRequest[string], many)
	for i := range requests {
		requests[i].Input = "common"
	}
	requests[many-1].Input = "rare"
	runs, err := flow.StartMany(ctx, w.Engine, requests)
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range runs {
		if _, err := run.Result(ctx); err == nil {
			t.Fatal("it did not fail")
		}
	}
	w.shutdown(t)
	said, counted := map[any]int{}, 0.0
	for _, line := range logged.all(t) {
		switch line["msg"] {
		case "run failed":
			said[line["type"]]++
		case "more runs failed in the last minute than are logged":
			if line["type"] != "common" || line["workflow"] != "flow" {
				t.Errorf("the count is of %v", line)
			}
			count, _ := line["count"].(float64)
			counted += count
		}
	}
	if said["rare"] != 1 || said["common"] >= many-1 || counted == 0 || float64(said["common"])+counted != many-1 {
		t.Errorf("%v lines and a count of %v, want all %d failures once", said, counted, many)
	}
}
