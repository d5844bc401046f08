package workflow_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A run goes on with a message before the disk has it, but to no side effect: here the commit of the first delivery is refused,
// and what follows the message happens once, for the delivery that was committed.
func TestNothingFollowsFromAMessageWhoseDeliveryIsNotCommitted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	if _, err := pool.Exec(ctx, `
		create sequence public.commits;
		create function refuse_first() returns trigger language plpgsql as $$
			begin
				if nextval('public.commits') = 1 then raise exception 'refused'; end if;
				return null;
			end $$;
		create constraint trigger refuse_first after insert on romancy.history deferrable initially deferred
			for each row when (new.kind = 'receive') execute function refuse_first()`); err != nil {
		t.Fatal(err)
	}
	var paid atomic.Int64
	pay := workflow.DefineActivity("pay", func(_ context.Context, amount int) (int, error) {
		paid.Add(1)
		return amount, nil
	})
	flow := workflow.Define("order", func(ctx *workflow.Context, _ int) (int, error) {
		order, err := workflow.Receive[int](ctx, "go")
		if err != nil {
			return 0, err
		}
		return pay.Execute(ctx, order.Body)
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.FallbackInterval = time.Second }))
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is parked", func() bool { return w.Status().Parked == 1 })
	if err := w.SendTo(ctx, run.ID(), "go", 7); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 7 {
		t.Errorf("got %d, %v; want 7", got, err)
	}
	if got := paid.Load(); got != 1 {
		t.Errorf("paid %d times, want once", got)
	}
	if refusals := count(t, pool, "select last_value from commits"); refusals < 2 {
		t.Errorf("%d commits of a delivery, want the refused one and another", refusals)
	}
}
