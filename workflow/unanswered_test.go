package workflow_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A caller whose context ends while the database has not answered learns that what it asked for may happen, and one whose context had ended
// before learns nothing of the kind, because nothing happens.
func TestACallWhoseContextEndsHasAnUnknownOutcome(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	parking := workflow.Define("parking", func(ctx *workflow.Context, _ int) (int, error) { return 0, workflow.Sleep(ctx, time.Hour) })
	w := startWorker(t, pool, []workflow.Definition{steps, parking})
	ctx := testContext(t)
	parked, err := parking.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	calls := map[string]func(ctx context.Context, id string) error{
		"start": func(ctx context.Context, id string) error {
			_, err := steps.Start(ctx, w.Engine, 1, workflow.WithID(id))
			return err
		},
		"start later": func(ctx context.Context, id string) error {
			_, err := steps.Start(ctx, w.Engine, 1, workflow.WithID(id+" later"), workflow.WithDelay(time.Hour))
			return err
		},
		"start many": func(ctx context.Context, id string) error {
			_, err := steps.StartMany(ctx, w.Engine, []workflow.StartRequest[int]{{Input: 1, Options: []workflow.StartOption{workflow.WithID(id + " many")}}})
			return err
		},
		"send":    func(ctx context.Context, id string) error { return w.SendTo(ctx, parked.ID(), "letters", id) },
		"publish": func(ctx context.Context, id string) error { return w.Publish(ctx, "letters", id) },
		"send event": func(ctx context.Context, id string) error {
			return w.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "shop", ID: id, Data: 1})
		},
	}
	lock, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(context.WithoutCancel(ctx)) }()
	if _, err := lock.Exec(ctx, "lock table romancy.instances, romancy.mailbox, romancy.events in exclusive mode"); err != nil {
		t.Fatal(err)
	}
	ended, end := context.WithCancel(ctx)
	end()
	for name, call := range calls {
		if err := call(ended, "ended"); !errors.Is(err, context.Canceled) || errors.Is(err, workflow.ErrOutcomeUnknown) {
			t.Errorf("%s with an ended context: %v", name, err)
		}
		short, done := context.WithTimeout(ctx, 30*time.Millisecond)
		if err := call(short, "short"); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, workflow.ErrOutcomeUnknown) {
			t.Errorf("%s whose context ends: %v", name, err)
		}
		done()
	}
	if err := lock.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	for name, call := range calls { // asked again, with an id where there is one
		if err := call(ctx, "short"); err != nil {
			t.Errorf("%s once more: %v", name, err)
		}
	}
	if n := count(t, pool, "select (select count(*) from romancy.instances where id like 'ended%') + (select count(*) from romancy.events where event_id = 'ended') + (select count(*) from romancy.mailbox where payload::text like '%ended%')"); n != 0 {
		t.Errorf("%d things were done for ended contexts", n)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where id like 'short%'"); n != 3 {
		t.Errorf("%d runs, want 3", n)
	}
}
