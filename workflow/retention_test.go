package workflow_test

import (
	"context"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// rounds adds up what it is sent, a run each, as long as more is to come.
var rounds = workflow.Define("rounds", func(ctx *workflow.Context, in counter) (int, error) {
	message, err := workflow.Receive[int](ctx, "numbers")
	if err != nil {
		return 0, err
	}
	if in = (counter{Left: in.Left - 1, Sum: in.Sum + message.Body}); in.Left > 0 {
		return 0, workflow.ContinueAsNew(ctx, in)
	}
	return in.Sum, nil
})

// Who knows a run by its first id reaches the run that it has become, however long ago it became that; and when that one has
// ended and its time is over, nothing is left.
func TestRetentionKeepsTheWayToARunThatIsThere(t *testing.T) {
	t.Parallel()
	for name, batch := range map[string]int{"all in one batch": 100, "batches of one": 1} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			w := startWorker(t, pool, []workflow.Definition{rounds}, calm, configured(func(c *workflow.Config) {
				c.Retention, c.MaxWorkflowsPerBatch = time.Hour, batch
			}))
			ctx := testContext(t)
			age := func() {
				t.Helper()
				if _, err := pool.Exec(ctx, "update romancy.instances set ended_at = now() - interval '1 day' where ended_at is not null"); err != nil {
					t.Fatal(err)
				}
			}
			run, err := rounds.Start(ctx, w.Engine, counter{Left: 4}, workflow.WithID("meter"))
			if err != nil {
				t.Fatal(err)
			}
			for n := range 3 {
				if err := w.SendTo(ctx, "meter", "numbers", n+1); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the last run waits", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and continued_from is not null and input ->> 'Left' = '1'") == 1
			})
			age()
			for range 2 {
				if deleted, err := w.SweepRetention(ctx); err != nil || deleted != 0 {
					t.Fatalf("deleted %d, %v; want nothing", deleted, err)
				}
			}
			if n := count(t, pool, "select count(*) from romancy.history where instance_id in (select id from romancy.instances where status = 'continued')"); n != 0 {
				t.Errorf("%d rows of history are kept of runs that only lead to another", n)
			}
			if again, err := rounds.Start(ctx, w.Engine, counter{Left: 4}, workflow.WithID("meter")); err != nil || !again.Existing() {
				t.Errorf("started again: %v, want the run that exists", err)
			}
			if err := w.SendTo(ctx, "meter", "numbers", 4); err != nil {
				t.Fatalf("sent to the first id: %v", err)
			}
			if sum, err := run.Result(ctx); err != nil || sum != 10 {
				t.Errorf("got %d, %v; want 10", sum, err)
			}

			if deleted, err := w.SweepRetention(ctx); err != nil || deleted != 0 {
				t.Fatalf("deleted %d, %v; want nothing: the last run has only just ended", deleted, err)
			}
			age()
			if deleted, err := w.SweepRetention(ctx); err != nil || deleted != 4 {
				t.Errorf("deleted %d, %v; want 4", deleted, err)
			}
			if n := count(t, pool, "select (select count(*) from romancy.instances) + (select count(*) from romancy.history)"); n != 0 {
				t.Errorf("%d rows are left", n)
			}
		})
	}
}

// A run that has continued thousands of times is stepped over once, not by each sweep, and not in the way of what ends after
// it. When its last run goes, the sweep that deletes that goes back from there.
func TestRetentionStepsOverALongLineOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, nil, calm, configured(func(c *workflow.Config) { c.Retention, c.ClientOnly = time.Hour, true }))
	ctx := testContext(t)
	const line = 5000
	insert := func(query string) {
		t.Helper()
		if _, err := pool.Exec(ctx, query, line); err != nil {
			t.Fatal(err)
		}
	}
	insert(`insert into romancy.instances (id, workflow, status, token, ready_at, output, continued_from, ended_at)
		select 'run-' || n, 'rounds', 'continued', 1, now(), json_build_object('continued_as', 'run-' || n + 1),
		       case when n > 1 then 'run-' || n - 1 end, now() - interval '2 days' + n * interval '1 second'
		from generate_series(1, $1::integer) n
		union all
		select 'run-' || $1 + 1, 'rounds', 'waiting', 1, now(), null, 'run-' || $1, null`)
	ended := func() {
		t.Helper()
		insert(`insert into romancy.instances (id, workflow, status, token, ready_at, ended_at)
			select 'other-' || clock_timestamp(), 'other', 'completed', 1, now(), now() - interval '1 day' where $1 > 0`)
	}
	sweep := func(want int) (operations int64) {
		t.Helper()
		before := w.Status().Operations
		if deleted, err := w.SweepRetention(ctx); err != nil || deleted != want {
			t.Fatalf("deleted %d, %v; want %d", deleted, err, want)
		}
		return w.Status().Operations - before
	}
	ended()
	first := sweep(1)
	ended()
	if again := sweep(1); first < line/100 || again > first/2 {
		t.Errorf("%d operations, then %d: every sweep steps over all that is kept", first, again)
	}
	insert("update romancy.instances set status = 'completed', ended_at = now() - interval '2 hours' where status = 'waiting' and $1 > 0")
	sweep(line + 1)
	if n := count(t, pool, "select count(*) from romancy.instances"); n != 0 {
		t.Errorf("%d runs are left", n)
	}
}

// A message that is committed when retention has deleted its receiver goes with the next sweep, and nothing else does.
func TestMailOfARunThatIsGoneIsDiscarded(t *testing.T) {
	t.Parallel()
	ctx := testContext(t)
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{echoing}, configured(func(c *workflow.Config) { c.Retention = time.Microsecond }))
	run, err := echoing.Start(ctx, w.Engine, 1, workflow.WithDelay(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if err := w.SendToTx(ctx, tx, run.ID(), "letters", "too late"); err != nil {
		t.Fatal(err)
	}
	if err := w.Cancel(ctx, run.ID(), "not needed"); err != nil {
		t.Fatal(err)
	}
	if deleted, err := w.SweepRetention(ctx); err != nil || deleted != 1 {
		t.Fatalf("%d deleted, %v; want the run", deleted, err)
	}
	other, err := echoing.StartTx(ctx, tx, w.Engine, 1, workflow.WithDelay(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SendToTx(ctx, tx, other.ID(), "letters", "early"); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := w.Publish(ctx, "letters", "to whoever comes"); err != nil {
		t.Fatal(err)
	}
	if deleted, err := w.SweepRetention(ctx); err != nil || deleted != 1 {
		t.Errorf("%d deleted, %v; want the message that came too late", deleted, err)
	}
	if left := count(t, pool, "select count(*) from romancy.mailbox where payload::text in ('\"early\"', '\"to whoever comes\"')"); left != 2 {
		t.Errorf("%d of 2 messages are left", left)
	}
}
