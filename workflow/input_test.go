package workflow_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

func TestStartRefusesBadInput(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	known := workflow.Define("known", func(_ *workflow.Context, _ any) (int, error) { return 0, nil })
	unknown := workflow.Define("unknown", func(_ *workflow.Context, _ any) (int, error) { return 0, nil })
	w := startWorker(t, pool, []workflow.Definition{known})
	ctx := testContext(t)
	for name, test := range map[string]struct {
		flow  *workflow.Workflow[any, int]
		input any
		id    []workflow.StartOption
		says  []string
	}{
		"unregistered workflow": {flow: unknown, says: []string{`"unknown"`, "not registered", "WithWorkflows"}},
		"empty id":              {flow: known, id: []workflow.StartOption{workflow.WithID("")}, says: []string{"id is empty", "1 to 255"}},
		"id of 300 bytes":       {flow: known, id: []workflow.StartOption{workflow.WithID(strings.Repeat("x", 300))}, says: []string{"300 bytes", "at most 255"}},
		"id with NUL":           {flow: known, id: []workflow.StartOption{workflow.WithID("a\x00b")}, says: []string{"NUL"}},
		"id not UTF-8":          {flow: known, id: []workflow.StartOption{workflow.WithID("a\xff")}, says: []string{"UTF-8"}},
		"input not encodable":   {flow: known, input: func() {}, says: []string{"encode the input", "func()"}},
	} {
		_, err := test.flow.Start(ctx, w.Engine, test.input, test.id...)
		if err == nil {
			t.Errorf("%s: accepted", name)
			continue
		}
		for _, said := range test.says {
			if !strings.Contains(err.Error(), said) {
				t.Errorf("%s: error %q does not say %q", name, err, said)
			}
		}
	}
	if n := count(t, pool, "select count(*) from romancy.instances"); n != 0 {
		t.Errorf("%d runs stored", n)
	}
}

func TestEngineReportsAllConfigurationMistakesAtOnce(t *testing.T) {
	t.Parallel()
	flow := workflow.Define("twice", func(_ *workflow.Context, _ int) (int, error) { return 0, nil })
	nameless := workflow.Define("", func(_ *workflow.Context, _ int) (int, error) { return 0, nil })
	empty := workflow.Define[int, int]("empty", nil)
	_, err := workflow.NewEngine(workflow.Config{
		Schema: "Not Plain", Workflows: []workflow.Definition{flow, flow, nameless, empty, nil},
		Lease: time.Millisecond, CacheSize: -1, FallbackInterval: -time.Second,
	})
	if err == nil {
		t.Fatal("accepted")
	}
	for _, said := range []string{
		"Config.Pool is nil", "Config.Lease is 1ms", "Config.CacheSize is -1", "Config.FallbackInterval is -1s", `"Not Plain"`,
		`two workflows are named "twice"`, "workflow name is empty", `workflow "empty" has no function`, "Config.Workflows[4] is nil",
	} {
		if !strings.Contains(err.Error(), said) {
			t.Errorf("the error does not say %q:\n%v", said, err)
		}
	}
}

func TestCallsOutsideTheEnginesLifeAreRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("flow", func(_ *workflow.Context, _ int) (int, error) { return 0, nil })
	ctx := testContext(t)
	calls := func(e *workflow.Engine) []error {
		_, start := flow.Start(ctx, e, 0)
		_, result := flow.Run(e, "any").Result(ctx)
		_, sweep := e.SweepTimers(ctx)
		return []error{start, result, sweep, e.SendTo(ctx, "any", "channel", 0), e.Publish(ctx, "channel", 0)}
	}
	check := func(when string, e *workflow.Engine, want error) {
		for i, err := range calls(e) {
			if !errors.Is(err, want) {
				t.Errorf("%s: call %d returned %v, want %v", when, i, err, want)
			}
		}
	}
	check("nil engine", nil, workflow.ErrNotStarted)
	engine, err := workflow.NewEngine(workflow.Config{Pool: pool, Workflows: []workflow.Definition{flow}})
	if err != nil {
		t.Fatal(err)
	}
	check("new engine", engine, workflow.ErrNotStarted)
	if err := engine.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := engine.Start(ctx); err == nil {
		t.Error("a second Start is accepted")
	}
	if err := engine.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	check("closed engine", engine, workflow.ErrClosed)
	if err := engine.Start(ctx); !errors.Is(err, workflow.ErrClosed) {
		t.Errorf("Start after Shutdown: %v, want ErrClosed", err)
	}
	if err := engine.Shutdown(ctx); err != nil {
		t.Errorf("a second Shutdown: %v", err)
	}
}

// An id belongs to one workflow and one input.
func TestStartIsIdempotentByID(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	type order struct{ Number int }
	flow := workflow.Define("order", func(_ *workflow.Context, o order) (int, error) { return o.Number, nil })
	other := workflow.Define("other", func(_ *workflow.Context, o order) (int, error) { return o.Number, nil })
	w := startWorker(t, pool, []workflow.Definition{flow, other})
	ctx := testContext(t)
	for i := range 3 {
		run, err := flow.Start(ctx, w.Engine, order{Number: 7}, workflow.WithID("seven"))
		if err != nil || run.Existing() != (i > 0) {
			t.Fatalf("start %d: existing %v, %v", i, run.Existing(), err)
		}
		if got, err := run.Result(ctx); err != nil || got != 7 {
			t.Fatalf("got %d, %v", got, err)
		}
	}
	if _, err := flow.Start(ctx, w.Engine, order{Number: 8}, workflow.WithID("seven")); !errors.Is(err, workflow.ErrIDConflict) {
		t.Errorf("another input: %v, want ErrIDConflict", err)
	}
	if _, err := other.Start(ctx, w.Engine, order{Number: 7}, workflow.WithID("seven")); !errors.Is(err, workflow.ErrIDConflict) {
		t.Errorf("another workflow: %v, want ErrIDConflict", err)
	}
}

// A start whose id another transaction holds waits for that transaction alone, and holds nobody else up.
func TestStartWaitsOnlyForItsOwnID(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("flow", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flow.StartTx(ctx, tx, w.Engine, 1, workflow.WithID("held")); err != nil {
		t.Fatal(err)
	}
	brief, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
	defer cancel()
	if _, err := flow.Start(brief, w.Engine, 1, workflow.WithID("held")); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("start of an id that is held: %v, want the context's error", err)
	}
	for _, id := range []string{"free", "also free"} {
		run, err := flow.Start(ctx, w.Engine, 2, workflow.WithID(id))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	run, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("held"))
	if err != nil || !run.Existing() {
		t.Fatalf("existing %v, %v", run.Existing(), err)
	}
}
