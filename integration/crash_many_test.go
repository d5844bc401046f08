package integration_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

var parcelStep = workflow.DefineActivity("parcel", func(ctx context.Context, what string) (string, error) {
	return what, booked(ctx, what)
}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 50, InitialInterval: 10 * time.Millisecond, MaxInterval: 100 * time.Millisecond}))

// parcelFlow is a short run: two steps with a sleep between them.
var parcelFlow = workflow.Define("parcel", func(ctx *workflow.Context, number int) (int, error) {
	if _, err := parcelStep.Execute(ctx, "packed"); err != nil {
		return 0, err
	}
	if err := workflow.Sleep(ctx, time.Duration(number%50)*time.Millisecond); err != nil {
		return 0, err
	}
	_, err := parcelStep.Execute(ctx, "sent")
	return number, err
})

// Thousands of runs, started in few calls, all come to their end once, while one of three workers after the other is killed.
func TestThousandsOfStartsSurviveKilledWorkers(t *testing.T) {
	t.Parallel()
	runs := pgtest.Soak(10_000, 500)
	w := newCrashWorld(t, pgtest.URL(t), func(w *crashWorld) { w.workers = make([]*crashProcess, 3) })
	calls := pgtest.Soak(20, 5)
	ended := func(at int) func() (bool, error) {
		return func() (bool, error) {
			return w.holds("select count(*) >= $1::integer from romancy.instances where workflow = 'parcel' and ended_at is not null", at)
		}
	}
	for call := range calls {
		starts := make([]workflow.StartRequest[int], runs/calls)
		for i := range starts {
			number := call*len(starts) + i
			starts[i] = workflow.StartRequest[int]{Input: number, Options: []workflow.StartOption{workflow.WithID(fmt.Sprintf("parcel-%05d", number))}}
		}
		started, err := parcelFlow.StartMany(w.ctx, w.app.Engine(), starts)
		w.must(err)
		if len(started) != len(starts) {
			t.Fatalf("%d runs were started, want %d", len(started), len(starts))
		}
		w.pause(50*time.Millisecond, 400*time.Millisecond)
		victim, _ := w.victim()
		w.workers[victim].kill()
		w.replace(victim)
		w.must(w.workers[victim].awaitReady(w.ctx))
		w.must(w.until("the workers get on", ended(call*len(starts)/2)))
	}
	if w.hit == 0 {
		t.Error("no kill hit a run: the test shows nothing")
	}
	w.must(w.until("all runs have ended", ended(runs)))
	for _, worker := range w.workers {
		w.must(worker.stop(w.ctx))
	}
	for what, question := range map[string]string{
		"runs that did not complete": "select count(*) from romancy.instances where workflow = 'parcel' and status <> 'completed'",
		"outputs that are not the input": `select count(*) from romancy.instances
			where workflow = 'parcel' and (output::text is distinct from input::text or id <> 'parcel-' || lpad(input::text, 5, '0'))`,
		"runs without each step once": `select count(*) from romancy.instances i where i.workflow = 'parcel'
			and (select array_agg(t.what order by t.what) from shop.trips t where t.run = i.id) is distinct from array['packed', 'sent']`,
		"runs with another history": `select count(*) from romancy.instances i where i.workflow = 'parcel'
			and (select string_agg(h.position || ' ' || h.kind, ', ' order by h.position) from romancy.history h where h.instance_id = i.id)
				is distinct from '1 activity, 2 timer, 3 activity'`,
		"writes of former owners": "select count(*) from shop.intrusions",
	} {
		var n int
		w.must(w.pool.QueryRow(w.ctx, question).Scan(&n))
		if n != 0 {
			t.Errorf("%d %s", n, what)
		}
	}
	w.must(w.until("every run exists", func() (bool, error) {
		return w.holds("select count(*) = $1::integer from romancy.instances where workflow = 'parcel'", runs)
	}))
}
