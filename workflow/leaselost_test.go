package workflow_test

import (
	"context"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A worker that is cut off from the database stops what it executes while its lease still holds: its activities and those of the
// worker that takes its runs over are not under way at the same time.
func TestWorkerThatCannotRenewItsLeaseStopsBeforeOthersMayTakeItsRuns(t *testing.T) {
	t.Parallel()
	const lease = 10 * time.Second
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	clock, err := pool.Acquire(ctx) // at hand, because how long asking takes counts
	if err != nil {
		t.Fatal(err)
	}
	defer clock.Release()
	type stop struct {
		leftMicros int64 // until the lease of the worker that was cut off ends, by the database's clock
		entered    int64 // bodies entered by then
		err        error
	}
	var entered atomic.Int64
	begun, stopped := make(chan struct{}), make(chan stop, 1)
	charge := workflow.DefineActivity("charge", func(ctx context.Context, n int) (int, error) {
		if entered.Add(1) > 1 {
			return n, nil
		}
		close(begun)
		select {
		case <-ctx.Done():
		case <-t.Context().Done(): // this test has failed
			return 0, t.Context().Err()
		}
		var seen stop
		seen.err = clock.QueryRow(t.Context(), `select (extract(epoch from lease_until - clock_timestamp()) * 1000000)::bigint
			from romancy.workers where label = 'cut off'`).Scan(&seen.leftMicros)
		seen.entered = entered.Load()
		stopped <- seen
		return 0, ctx.Err()
	})
	flow := workflow.Define("pays", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	labelled := func(label string) workerOption {
		return configured(func(c *workflow.Config) { c.Label, c.Lease = label, lease })
	}
	proxy := pgtest.NewProxy(t, pool.Config().ConnString())
	cutOff := startWorker(t, pgtest.Connect(t, proxy.URL()), []workflow.Definition{flow}, labelled("cut off"))
	t.Cleanup(proxy.Resume) // or it could not shut down
	run, err := flow.Start(ctx, cutOff.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	select {
	case <-begun:
	case <-ctx.Done():
		t.Fatal("the activity has not begun")
	}
	heir := startWorker(t, pool, []workflow.Definition{flow}, labelled("heir"))
	proxy.Stall()
	var seen stop
	select {
	case seen = <-stopped:
	case <-ctx.Done():
		t.Fatal("the activity was not stopped")
	}
	if seen.err != nil {
		t.Fatal(seen.err)
	}
	if seen.entered != 1 {
		t.Errorf("%d bodies had been entered when the first was stopped, want that one only", seen.entered)
	}
	// It stops with a tenth of its lease to spare, half of which is for the delays of this test.
	if left := time.Duration(seen.leftMicros) * time.Microsecond; left < lease/20 {
		t.Errorf("the activity was stopped when %s of the lease were left, want about %s", left, lease/10)
	}
	if got, err := flow.Run(heir.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
		t.Errorf("got %d, %v", got, err)
	}
	if n := entered.Load(); n != 2 {
		t.Errorf("%d bodies were entered, want 2", n)
	}
}
