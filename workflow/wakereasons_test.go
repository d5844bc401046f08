package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// patient is a worker that sweeps once an hour: what a reason to wake does not bring about does not happen in the time of a test.
var patient = configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })

// holdRunsRow holds the row of a run, as a caller's transaction may, until release is called.
func holdRunsRow(t *testing.T, pool *pgxpool.Pool, id string) (release func()) {
	t.Helper()
	ctx := testContext(t)
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(ctx, "select 1 from romancy.instances where id = $1 for no key update", id); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := errors.Join(tx.Rollback(ctx), conn.Close(ctx)); err != nil {
			t.Error(err)
		}
	}
}

// reason is a reason to wake a run that waits for it, in one way or another.
type reason struct {
	wait func(ctx *workflow.Context) error
	come func(ctx context.Context, w *worker, id string) error
	want error // what the run ends with
}

func reasonsToWake() map[string]reason {
	ignore := func(workflow.Message[int]) error { return nil }
	chosen := errors.New("another was chosen")
	choose := func(ctx *workflow.Context) error {
		return workflow.Select(ctx,
			workflow.OnMessage("first", func(workflow.Message[int]) error { return chosen }),
			workflow.OnMessage("second", ignore), workflow.OnMessage("third", ignore),
			workflow.OnTimer(24*time.Hour, func() error { return chosen }))
	}
	send := func(channel string) func(ctx context.Context, w *worker, id string) error {
		return func(ctx context.Context, w *worker, id string) error { return w.SendTo(ctx, id, channel, 1) }
	}
	subscribed := func(mode workflow.Mode) func(ctx *workflow.Context) error {
		return func(ctx *workflow.Context) error {
			if err := workflow.Subscribe(ctx, "news", mode); err != nil {
				return err
			}
			_, err := workflow.Receive[int](ctx, "news")
			return err
		}
	}
	publish := func(ctx context.Context, w *worker, _ string) error { return w.Publish(ctx, "news", 1) }
	return map[string]reason{
		"the second channel of a Select": {wait: choose, come: send("second")},
		"the third channel of a Select":  {wait: choose, come: send("third")},
		"a message":                      {wait: func(ctx *workflow.Context) error { _, err := workflow.Receive[int](ctx, "second"); return err }, come: send("second")},
		"published, competing":           {wait: subscribed(workflow.Competing), come: publish},
		"published, broadcast":           {wait: subscribed(workflow.Broadcast), come: publish},
		"an event": {
			wait: func(ctx *workflow.Context) error { _, err := workflow.WaitEvent[int](ctx, "paid"); return err },
			come: func(ctx context.Context, w *worker, _ string) error {
				return w.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "bank", Data: 1})
			},
		},
		"a deadline": {
			wait: func(ctx *workflow.Context) error { return workflow.Sleep(ctx, 3*time.Second) },
			come: func(context.Context, *worker, string) error { time.Sleep(3 * time.Second); return nil },
		},
		"a cancellation": {
			wait: func(ctx *workflow.Context) error { return workflow.Sleep(ctx, 24*time.Hour) },
			come: func(ctx context.Context, w *worker, id string) error {
				go func() { _ = w.Cancel(ctx, id, "no", workflow.Compensate()) }() // it waits for the row
				return nil
			},
			want: workflow.ErrCancelled,
		},
	}
}

// parkForReason starts a run that waits, and returns when its row says so.
func parkForReason(t *testing.T, pool *pgxpool.Pool, why reason, options ...workerOption) (*worker, *workflow.Run[int]) {
	t.Helper()
	step := workflow.DefineActivity("step", func(_ context.Context, n int) (int, error) { return n, nil })
	flow := workflow.Define("waiting", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := step.Execute(ctx, n); err != nil {
			return 0, err
		}
		return 0, why.wait(ctx)
	})
	other := workflow.Define("other", func(ctx *workflow.Context, _ int) (int, error) { return 0, workflow.Sleep(ctx, 24*time.Hour) })
	w := startWorker(t, pool, []workflow.Definition{flow, other}, append([]workerOption{patient}, options...)...)
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is parked", func() bool { return w.Status().Parked == 1 })
	if _, err := other.Start(ctx, w.Engine, 0); err != nil { // evicts the run where one is kept
		t.Fatal(err)
	}
	eventually(t, "both are parked", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 2 && w.Status().Executing == 0
	})
	return w, run
}

func (why reason) ends(t *testing.T, run *workflow.Run[int]) {
	t.Helper()
	if _, err := run.Result(testContext(t)); !errors.Is(err, why.want) {
		t.Errorf("got %v, want %v", err, why.want)
	}
}

// A parked run whose row another transaction holds for a moment, when a reason to wake it comes, is woken when that has ended,
// whatever the reason, and whether it is in memory or not.
func TestReasonToWakeOutlivesAHeldRow(t *testing.T) {
	t.Parallel()
	for name, why := range reasonsToWake() {
		for world, options := range map[string][]workerOption{"in memory": nil, "evicted": {evicting}} {
			t.Run(name+", "+world, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				w, run := parkForReason(t, pool, why, options...)
				release := holdRunsRow(t, pool, run.ID())
				if err := why.come(testContext(t), w, run.ID()); err != nil {
					t.Error(err)
				}
				time.Sleep(300 * time.Millisecond) // for the first polls to find the row held
				release()
				why.ends(t, run)
			})
		}
	}
}

// troubled makes the database refuse, or break off, the first few changes of a parked run's status.
func troubled(t *testing.T, pool *pgxpool.Pool, trouble string) {
	t.Helper()
	_, err := pool.Exec(testContext(t), fmt.Sprintf(`
		create sequence troubles;
		create function trouble() returns trigger language plpgsql as $$
			begin
				if nextval('public.troubles') <= 4 then %s; end if;
				return new;
			end $$;
		create trigger trouble before update on romancy.instances
			for each row when (old.status = 'waiting' and new.status <> 'waiting') execute function trouble()`, trouble))
	if err != nil {
		t.Fatal(err)
	}
}

// A poll for a parked run that the database refuses, or with which the connection is lost, is repeated until it is answered,
// whatever the reason was, and whether the run is in memory or not.
func TestReasonToWakeOutlivesATroubledDatabase(t *testing.T) {
	t.Parallel()
	for kind, trouble := range map[string]string{
		"disk full":       "raise exception 'no space left' using errcode = '53100'",
		"lock timeout":    "raise exception 'locked' using errcode = '55P03'",
		"connection lost": "perform pg_terminate_backend(pg_backend_pid())",
	} {
		for name, why := range reasonsToWake() {
			for world, options := range map[string][]workerOption{"in memory": nil, "evicted": {evicting}} {
				if name == "a cancellation" || world == "evicted" && kind != "disk full" {
					continue // Cancel itself is refused, and says so
				}
				t.Run(kind+", "+name+", "+world, func(t *testing.T) {
					t.Parallel()
					pool := pgtest.Pool(t)
					w, run := parkForReason(t, pool, why, options...)
					troubled(t, pool, trouble)
					if err := why.come(testContext(t), w, run.ID()); err != nil {
						t.Error(err)
					}
					why.ends(t, run)
				})
			}
		}
	}
}

// A wake is told before the disk has it. When its commit is refused, or its connection lost then, the run is woken again.
func TestReasonToWakeOutlivesACommitThatFails(t *testing.T) {
	t.Parallel()
	for kind, trouble := range map[string]string{
		"refused":         "raise exception 'refused'",
		"connection lost": "perform pg_terminate_backend(pg_backend_pid())",
	} {
		for name, why := range reasonsToWake() {
			if name == "a cancellation" {
				continue
			}
			t.Run(kind+", "+name, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				w, run := parkForReason(t, pool, why)
				if _, err := pool.Exec(testContext(t), fmt.Sprintf(`
					create sequence troubles;
					create function trouble() returns trigger language plpgsql as $$
						begin
							if nextval('public.troubles') <= 2 then %s; end if;
							return null;
						end $$;
					create constraint trigger trouble after update on romancy.instances deferrable initially deferred
						for each row when (old.status = 'waiting' and new.status = 'running') execute function trouble()`, trouble)); err != nil {
					t.Fatal(err)
				}
				if err := why.come(testContext(t), w, run.ID()); err != nil {
					t.Error(err)
				}
				why.ends(t, run)
			})
		}
	}
}

// Of two messages for whoever competes each has its receiver, although a row is held when they come and one of the two competitors
// gets a message of its own instead.
func TestPublishedMessageFindsAnotherCompetitor(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("competitor", func(ctx *workflow.Context, _ int) (int, error) {
		if err := workflow.Subscribe(ctx, "jobs", workflow.Competing); err != nil {
			return 0, err
		}
		message, err := workflow.Receive[int](ctx, "jobs")
		return message.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, patient)
	ctx := testContext(t)
	for range 20 {
		var runs []*workflow.Run[int]
		for range 2 {
			run, err := flow.Start(ctx, w.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			runs = append(runs, run)
		}
		eventually(t, "both are parked", func() bool { return w.Status().Parked == 2 })
		release := holdRunsRow(t, pool, runs[0].ID())
		for i, send := range []func() error{
			func() error { return w.Publish(ctx, "jobs", 1) },
			func() error { return w.SendTo(ctx, runs[0].ID(), "jobs", 2) },
		} {
			if err := send(); err != nil {
				t.Fatalf("message %d: %v", i, err)
			}
		}
		time.Sleep(50 * time.Millisecond) // a poll that has begun before the second message was there finds the row held
		release()
		first, err := runs[0].Result(ctx)
		if err != nil {
			t.Fatal(err)
		}
		second, err := runs[1].Result(ctx)
		if err != nil {
			t.Fatalf("the published message has nobody: %v", err)
		}
		if first+second != 3 {
			t.Fatalf("they have received %d and %d", first, second)
		}
	}
}
