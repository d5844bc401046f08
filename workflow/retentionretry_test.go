package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// failedOrders are runs that have charged once and failed after it, longer ago than the worker's Config.Retention. They complete when
// they are executed once more.
func failedOrders(t *testing.T, ids ...string) (pool *pgxpool.Pool, w *worker, orders *workflow.Workflow[string, int], charged *tally) {
	t.Helper()
	pool, charged = pgtest.Pool(t), new(tally)
	shipped := new(tally)
	charge := workflow.DefineActivity("charge", func(_ context.Context, id string) (int, error) { return charged.add(id), nil })
	ship := workflow.DefineActivity("ship", func(_ context.Context, id string) (int, error) {
		if shipped.add(id) == 1 {
			return 0, workflow.Terminal(errors.New("no ship"))
		}
		return 1, nil
	})
	orders = workflow.Define("order", func(ctx *workflow.Context, id string) (int, error) {
		if _, err := charge.Execute(ctx, id); err != nil {
			return 0, err
		}
		return ship.Execute(ctx, id)
	})
	w = startWorker(t, pool, []workflow.Definition{orders}, calm, configured(func(c *workflow.Config) { c.Retention = time.Hour }))
	for _, id := range ids {
		run, err := orders.Start(testContext(t), w.Engine, id, workflow.WithID(id))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(testContext(t)); err == nil {
			t.Fatal("it completed")
		}
	}
	execAll(t, pool, "update romancy.instances set ended_at = now() - interval '2 hours'")
	return pool, w, orders, charged
}

// lockedBy locks rows in a transaction of its own.
func lockedBy(t *testing.T, pool *pgxpool.Pool, rows string) (tx pgx.Tx) {
	t.Helper()
	tx, err := pool.Begin(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(testContext(t), "select 1 from "+rows+" for update"); err != nil {
		t.Fatal(err)
	}
	return tx
}

const beingDeleted = "its history is being deleted, because Config.Retention has passed"

// A run of which retention has deleted only a part is not executed from its beginning: Retry refuses it, failed or cancelled, and what is
// left of it can be read.
func TestRetryRefusesARunWhoseHistoryIsBeingDeleted(t *testing.T) {
	t.Parallel()
	pool, w, _, charged := failedOrders(t, "order-1")
	ctx := testContext(t)
	execAll(t, pool, `insert into romancy.mailbox (channel, mode, receiver, payload) values ('notes', 'direct', 'order-1', '1')`)
	held := lockedBy(t, pool, "romancy.mailbox") // so the run is not deleted yet
	if _, err := w.SweepRetention(ctx); err != nil {
		t.Fatal(err)
	}
	if runs, records := count(t, pool, "select count(*) from romancy.instances"), count(t, pool, "select count(*) from romancy.history"); runs != 1 || records != 0 {
		t.Fatalf("%d runs with %d records are left: this shows nothing", runs, records)
	}
	for _, status := range []workflow.Status{workflow.StatusCancelled, workflow.StatusFailed} {
		if _, err := pool.Exec(ctx, "update romancy.instances set status = $1", string(status)); err != nil {
			t.Fatal(err)
		}
		if err := w.Retry(ctx, "order-1"); !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), beingDeleted) {
			t.Errorf("Retry of a run that is %s: %v", status, err)
		}
	}
	if info, err := w.Get(ctx, "order-1"); err != nil || info.Status != workflow.StatusFailed || info.Err == nil {
		t.Errorf("Get says %s with %v, %v", info.Status, info.Err, err)
	}
	if history, err := w.History(ctx, "order-1"); err != nil || len(history) != 0 {
		t.Errorf("History says %v, %v", history, err)
	}
	if n := charged.of("order-1"); n != 1 {
		t.Errorf("charged %d times", n)
	}
	if err := held.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := w.SweepRetention(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Retry(ctx, "order-1"); !errors.Is(err, workflow.ErrNotFound) {
		t.Errorf("Retry of a run that is deleted: %v", err)
	}
}

// Retention that begins when Retry has read the history already is noticed by Retry.
func TestRetryNoticesThatTheHistoryBeginsToBeDeleted(t *testing.T) {
	t.Parallel()
	pool, w, _, charged := failedOrders(t, "order-1")
	ctx := testContext(t)
	sweep := lockedBy(t, pool, "romancy.instances")
	retried := make(chan error, 1)
	go func() { retried <- w.Retry(ctx, "order-1") }()
	eventually(t, "Retry waits for the run's row", func() bool {
		return count(t, pool, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% engine' and wait_event_type = 'Lock'") > 0
	})
	for _, statement := range []string{"update romancy.instances set drained_at = now()", "delete from romancy.history"} {
		if _, err := sweep.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	if err := sweep.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-retried; !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), beingDeleted) {
		t.Errorf("Retry: %v", err)
	}
	if n := charged.of("order-1"); n != 1 {
		t.Errorf("charged %d times", n)
	}
}

// Whatever an interrupted sweep has come to: a run is either retried with its whole history, or refused, or gone.
func TestRetryAfterAnInterruptedRetentionSweepRepeatsNoStep(t *testing.T) {
	t.Parallel()
	var ids []string
	for n := range 20 {
		ids = append(ids, fmt.Sprint("order-", n))
	}
	pool, w, orders, charged := failedOrders(t, ids...)
	ctx := testContext(t)
	execAll(t, pool, `insert into romancy.attempts (instance_id, position, attempt, error)
		select i.id, 2, 100 + n, '{}' from romancy.instances i, generate_series(1, 3000) n`)
	sweep, interrupt := context.WithCancel(ctx)
	defer interrupt()
	swept := make(chan error, 1)
	go func() {
		_, err := w.SweepRetention(sweep)
		swept <- err
	}()
	eventually(t, "the histories are gone", func() bool { return count(t, pool, "select count(*) from romancy.history") == 0 })
	interrupt()
	if err := <-swept; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	for _, id := range ids {
		err := w.Retry(ctx, id)
		if err == nil {
			_, err = orders.Run(w.Engine, id).Result(ctx)
		}
		if err != nil && !errors.Is(err, workflow.ErrNotFound) && (!errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), beingDeleted)) {
			t.Errorf("Retry of %s: %v", id, err)
		}
		if n := charged.of(id); n != 1 {
			t.Errorf("%s was charged %d times", id, n)
		}
	}
}
