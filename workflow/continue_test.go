package workflow_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

type counter struct{ Left, Sum int }

// A run that continues as new carries the new input, leaves subscriptions and compensations behind, and takes along what was sent to
// it; whoever asks for its result, or sends to its first id, reaches the run that it has become.
func TestContinueAsNewCarriesInputAndMail(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var undone tally
	reserve := workflow.DefineActivity("reserve", func(_ context.Context, n int) (int, error) { return n, nil }).
		WithCompensation(func(context.Context, int, int) error { undone.add("reserve"); return nil })
	flow := workflow.Define("rounds", func(ctx *workflow.Context, in counter) (int, error) {
		if in.Left == 3 {
			if err := workflow.Subscribe(ctx, "rates", workflow.Broadcast); err != nil {
				return 0, err
			}
		}
		if _, err := reserve.Execute(ctx, in.Left); err != nil {
			return 0, err
		}
		message, err := workflow.Receive[int](ctx, "numbers")
		if err != nil {
			return 0, err
		}
		if in = (counter{Left: in.Left - 1, Sum: in.Sum + message.Body}); in.Left > 0 {
			return 0, workflow.ContinueAsNew(ctx, in)
		}
		return in.Sum, errors.New("only to see what is undone")
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, counter{Left: 3}, workflow.WithID("rounds"))
	if err != nil {
		t.Fatal(err)
	}
	for n := range 2 {
		if err := w.SendTo(ctx, run.ID(), "numbers", n); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the third run waits", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1 &&
			count(t, pool, "select count(*) from romancy.instances where status = 'continued'") == 2
	})
	if err := w.SendTo(ctx, run.ID(), "numbers", 2); err != nil {
		t.Fatalf("sent to the first id: %v", err)
	}
	_, err = run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.ID == run.ID() {
		t.Fatalf("got %v; want the failure of the third run", err)
	}
	if n := undone.of("reserve"); n != 1 {
		t.Errorf("%d steps undone, want those of the last run: 1", n)
	}
	if n := count(t, pool, "select count(*) from romancy.subscriptions"); n != 0 {
		t.Errorf("%d subscriptions left behind", n)
	}
	info, err := w.Get(ctx, failed.ID)
	if err != nil || info.ContinuedFrom == "" || string(info.Input) != `{"Left":1,"Sum":1}` {
		t.Fatalf("%+v, %v", info, err)
	}
	first, err := w.Get(ctx, run.ID())
	if err != nil || first.Status != workflow.StatusContinued || first.ContinuedAs != info.ContinuedFrom {
		t.Fatalf("%+v, %v: want it continued as %s", first, err, info.ContinuedFrom)
	}
}

// A message of a transaction that was open while its receiver continued as new follows it as well, told of or not, wherever the run is
// that it has become, parked or waiting beside a step. What is told names the run that was.
func TestMailOfAnOpenTransactionFollowsWhoContinuesAsNew(t *testing.T) {
	t.Parallel()
	// Neither a fallback nor a heartbeat helps out.
	hourly := configured(func(c *workflow.Config) { c.FallbackInterval, c.Lease = time.Hour, time.Hour })
	for name, with := range map[string]traveller{
		"told":                {workers: 1, options: []workerOption{hourly}},
		"told, among workers": {workers: 3, options: []workerOption{hourly}},
		"told, beside a step": {workers: 2, options: []workerOption{hourly}, beside: true},
		"not told": {workers: 1, options: []workerOption{
			withoutNotify, configured(func(c *workflow.Config) { c.FallbackInterval = time.Second }),
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			with.receivesLateMail(t)
		})
	}
}

// traveller is how a run waits that has continued as new while a message for it was not committed.
type traveller struct {
	workers int
	options []workerOption
	beside  bool // a step of it executes meanwhile
}

func (with traveller) receivesLateMail(t *testing.T) {
	t.Helper()
	pool, ctx := pgtest.Pool(t), testContext(t)
	var executing atomic.Bool
	release := make(chan struct{})
	step := workflow.DefineActivity("step", func(context.Context, int) (int, error) {
		executing.Store(true)
		<-release
		return 1, nil
	})
	flow := workflow.Define("moving", func(ctx *workflow.Context, moves int) (string, error) {
		if moves > 0 {
			if _, err := workflow.Receive[string](ctx, "move"); err != nil {
				return "", err
			}
			return "", workflow.ContinueAsNew(ctx, moves-1)
		}
		if with.beside {
			step.Go(ctx, 1)
		}
		message, err := workflow.Receive[string](ctx, "letters")
		return message.Body, err
	})
	var w *worker
	for range with.workers {
		w = startWorker(t, pool, []workflow.Definition{flow}, with.options...)
	}
	t.Cleanup(func() { close(release) }) // before the workers are shut down
	run, err := flow.Start(ctx, w.Engine, 2, workflow.WithID("traveller"))
	if err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if err := w.SendToTx(ctx, tx, run.ID(), "letters", "hello"); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := w.SendTo(ctx, run.ID(), "move", "on"); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "it has moved twice and waits", func() bool {
		return executing.Load() ||
			count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and 'letters' = any (wake_channels)") == 1
	})
	time.Sleep(time.Second) // what followed from its moves is done everywhere, and does not happen to find the message
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if with.beside {
		eventually(t, "it receives the message while its step executes", func() bool {
			return count(t, pool, "select count(*) from romancy.history where kind = 'receive' and payload ->> 'body' = 'hello'") == 1
		})
		return
	}
	if body, err := run.Result(ctx); err != nil || body != "hello" {
		t.Errorf("got %q, %v", body, err)
	}
}

func TestRunContinuesOnlyWithAnInputOfItsWorkflow(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("strict", func(ctx *workflow.Context, in int) (int, error) {
		if in == 0 {
			return 0, workflow.ContinueAsNew(ctx, "a text")
		}
		return 0, workflow.ContinueAsNew(ctx, make(chan int))
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	for in, said := range []string{"decode the input into int", "(chan int)"} {
		run, err := flow.Start(ctx, w.Engine, in)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("got %v, want it to say %q", err, said)
		}
	}
}
