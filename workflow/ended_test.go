package workflow_test

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// asStored is every column of these runs and every row of their histories, as text.
func asStored(t *testing.T, pool *pgxpool.Pool, ids []string) string {
	t.Helper()
	var text string
	if err := pool.QueryRow(testContext(t), `select coalesce(string_agg(line, E'\n' order by line), '') from (
			select i::text as line from romancy.instances i where id = any ($1)
			union all
			select h::text from romancy.history h where instance_id = any ($1)) rows`, ids).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// sweepAll has a worker make every look it knows.
func sweepAll(ctx context.Context, t *testing.T, w *worker) {
	t.Helper()
	for name, sweep := range map[string]func(context.Context) (int, error){
		"resume": w.SweepResume, "timers": w.SweepTimers, "channel timeouts": w.SweepChannelTimeouts, "retention": w.SweepRetention,
	} {
		if _, err := sweep(ctx); err != nil {
			t.Errorf("sweep %s: %v", name, err)
		}
	}
}

// A notification, a timer or a message that comes late finds the run ended, and leaves it alone: whether it completed, failed or
// was cancelled, also one that a worker still holds in memory, with a deadline that is about to pass.
func TestNothingRevivesAnEndedRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	after := workflow.DefineActivity("after", func(context.Context, int) (int, error) { return executed.add("after"), nil })
	flow := workflow.Define("ends", func(ctx *workflow.Context, how string) (string, error) {
		switch how {
		case "completed":
			return how, nil
		case "failed":
			return "", errors.New("no more")
		}
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return "", err
		}
		_, err := workflow.Receive[string](ctx, "news", workflow.WithTimeout(2*time.Second))
		if err != nil && !errors.Is(err, workflow.ErrTimeout) {
			return "", err
		}
		_, err = after.Execute(ctx, 0)
		return "revived", err
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	two := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	ids := []string{"completed", "failed", "cancelled", "continued"}
	for _, id := range ids {
		if _, err := flow.Start(ctx, one.Engine, id, workflow.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "two have ended and two are parked", func() bool {
		return one.Status().Parked == 2 && count(t, pool, "select count(*) from romancy.instances where ended_at is not null") == 2
	})
	// The other two end from outside; what they waited for stays behind, as if it had been on its way.
	if _, err := pool.Exec(ctx, `update romancy.instances set status = id, ended_at = clock_timestamp() where id in ('cancelled', 'continued')`); err != nil {
		t.Fatal(err)
	}
	before := asStored(t, pool, ids)
	for _, id := range ids {
		if err := two.SendTo(ctx, id, "news", "late"); !errors.Is(err, workflow.ErrUndeliverable) {
			t.Errorf("send to a %s run: %v, want ErrUndeliverable", id, err)
		}
	}
	if err := two.Publish(ctx, "news", "to those who are still subscribed"); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, `insert into romancy.mailbox (channel, mode, receiver, payload) select 'news', 'direct', unnest($1::text[]), '"late"'`, ids); err != nil {
		t.Fatal(err)
	}
	tell := func() {
		if _, err := pool.Exec(ctx, `select pg_notify('romancy_channel_message', json_build_object('channel_name', 'news', 'message_id', 1, 'target_instance_id', id)::text),
				pg_notify('romancy_workflow_resumable', json_build_object('instance_id', id, 'workflow_name', 'ends')::text),
				pg_notify('romancy_timer_expired', json_build_object('instance_id', id, 'timer_id', 'timer:1', 'expires_at', now())::text)
			from unnest($1::text[]) id`, ids); err != nil {
			t.Fatal(err)
		}
	}
	tell()
	sweepAll(ctx, t, one)
	eventually(t, "the deadline has passed in memory too", func() bool {
		return one.Status().Parked == 0 && count(t, pool, "select count(*) from romancy.instances where wake_at > clock_timestamp()") == 0
	})
	tell()
	// What the workers do because of all that, they have done when others have come and gone.
	for _, w := range []*worker{one, two} {
		sweepAll(ctx, t, w)
		bystander, err := flow.Start(ctx, w.Engine, "completed")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := bystander.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if now := asStored(t, pool, ids); now != before {
		t.Errorf("before:\n%s\nafter:\n%s", before, now)
	}
	if n := executed.of("after"); n != 0 {
		t.Errorf("a step was executed %d times", n)
	}
	// Mail that reached an ended run is removed by the sweep for that, unless the run may be retried.
	if n := count(t, pool, "select count(*) from romancy.mailbox where receiver = any ($1) and receiver <> 'failed'", ids); n != 0 {
		t.Errorf("%d messages for ended runs left", n)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox where receiver = 'failed'"); n != 1 {
		t.Errorf("%d messages for the failed run are left, want 1", n)
	}
}

// Runs, timers and mail of workflows that this process does not know never fill its batches. They stay as they are, can be
// seen, and go on when somebody comes who knows them.
func TestUnknownWorkflowsBlockNobodyAndStayIntact(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const foreign, own = 200, 4
	var executed tally
	define := func(name string) *workflow.Workflow[string, string] {
		return workflow.Define(name, func(ctx *workflow.Context, how string) (string, error) {
			executed.add(name)
			switch how {
			case "sleeping":
				return how, workflow.Sleep(ctx, time.Hour) // the deadline stored below counts
			case "receiving":
				message, err := workflow.Receive[string](ctx, "words")
				return message.Body, err
			case "timing out":
				_, err := workflow.Receive[string](ctx, "words", workflow.WithTimeout(time.Hour))
				if !errors.Is(err, workflow.ErrTimeout) {
					return "", err
				}
			}
			return how, nil
		})
	}
	known, unknown := define("known"), define("unknown")
	ctx := testContext(t)
	exec := func(statement string, arguments ...any) {
		t.Helper()
		if _, err := pool.Exec(ctx, statement, arguments...); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	exec("insert into romancy.workers (label, lease_until) values ('dead', clock_timestamp() - interval '1 minute')")
	plant := func(name string, n int, age string) {
		exec(`insert into romancy.instances (id, workflow, status, worker, token, ready_at, wake_at, wake_position, wake_channels, input)
			select $1::text || ' ' || k.how || ' ' || i, $1::text, k.status, case when k.status <> 'ready' then (select id from romancy.workers) end, 1,
			       clock_timestamp() - $3::interval, case when k.timed then clock_timestamp() - $3::interval end, 1,
			       case when k.receives then array['words'] end, to_json(k.how)
			from generate_series(1, $2::integer) i, (values ('ready', 'ready', false, false), ('owned', 'running', false, false),
			       ('sleeping', 'waiting', true, false), ('receiving', 'waiting', false, true), ('timing out', 'waiting', true, true)) as k (how, status, timed, receives)`,
			name, n, age)
		exec(`insert into romancy.history (instance_id, position, token, kind, name, payload)
			select id, 1, 1, 'timer', case when wake_channels is null then 'sleep' else 'receive:words' end,
			       json_build_object('fires_at_us', (extract(epoch from wake_at) * 1000000)::bigint)
			from romancy.instances where wake_at is not null and workflow = $1`, name)
		exec(`insert into romancy.mailbox (channel, mode, receiver, payload)
			select 'words', 'direct', id, '"receiving"' from romancy.instances
			where input #>> '{}' = 'receiving' and workflow = $1 order by id`, name)
	}
	// The unknown ones are older in every respect.
	plant("unknown", foreign, "2 minutes")
	plant("known", own, "1 minute")
	small := configured(func(c *workflow.Config) {
		c.MaxWorkflowsPerBatch, c.MaxTimersPerBatch, c.MaxMessagesPerBatch, c.FallbackInterval = 3, 3, 3, time.Hour
	})
	one := startWorker(t, pool, []workflow.Definition{known}, small)
	eventually(t, "the known ones have completed", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where workflow = 'known' and status = 'completed'") == 5*own
	})
	if n := count(t, pool, `select count(*) from romancy.instances
		where workflow = 'unknown' and (status not in ('ready', 'waiting') or token <> 1 or ended_at is not null or error is not null)`); n != 0 {
		t.Errorf("%d runs of a workflow nobody knows were touched", n)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != foreign {
		t.Errorf("%d messages for them are left, want %d", n, foreign)
	}
	page, err := one.List(ctx, workflow.Filter{Workflows: []string{"unknown"}, Statuses: []workflow.Status{workflow.StatusReady}, Limit: 10})
	if err != nil || len(page.Runs) != 10 {
		t.Errorf("%d runs are listed, %v; want them visible", len(page.Runs), err)
	}
	if n := executed.of("unknown"); n != 0 {
		t.Errorf("they were executed %d times", n)
	}
	startWorker(t, pool, []workflow.Definition{unknown}, small)
	eventually(t, "the others have completed too", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'completed'") == 5*(own+foreign)
	})
	if n := count(t, pool, "select count(*) from romancy.instances where output #>> '{}' is distinct from input #>> '{}'"); n != 0 {
		t.Errorf("%d runs ended with another output", n)
	}
}

// Retention removes what has ended. What was sent and not received yet is kept, however old it is, for whoever waits for it, will
// ask for it later, or subscribes later.
func TestUndeliveredMessagesSurviveRetention(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	reader := workflow.Define("reader", func(ctx *workflow.Context, _ int) ([]string, error) {
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return nil, err
		}
		if _, err := workflow.Receive[int](ctx, "go"); err != nil {
			return nil, err
		}
		var got []string
		for _, channel := range []string{"news", "letters"} {
			message, err := workflow.Receive[string](ctx, channel)
			if err != nil {
				return nil, err
			}
			got = append(got, message.Body)
		}
		if err := workflow.Subscribe(ctx, "jobs", workflow.Competing); err != nil {
			return nil, err
		}
		message, err := workflow.Receive[string](ctx, "jobs")
		return append(got, message.Body), err
	})
	w := startWorker(t, pool, []workflow.Definition{reader, steps}, configured(func(c *workflow.Config) { c.Retention = time.Hour }))
	ctx := testContext(t)
	ended, err := steps.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := ended.Result(ctx); err != nil {
		t.Fatal(err)
	}
	run, err := reader.Start(ctx, w.Engine, 0, workflow.WithID("reader"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the reader is parked", func() bool { return w.Status().Parked == 1 })
	if err := errors.Join(w.Publish(ctx, "news", "broadcast"), w.SendTo(ctx, "reader", "letters", "direct"), w.Publish(ctx, "jobs", "competing")); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"update romancy.mailbox set created_at = created_at - interval '1 year'",
		"update romancy.instances set created_at = created_at - interval '1 year', ended_at = ended_at - interval '1 year', ready_at = ready_at - interval '1 year'",
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	if removed, err := w.SweepRetention(ctx); err != nil || removed != 1 {
		t.Fatalf("removed %d, %v; want the run that had ended", removed, err)
	}
	sweepAll(ctx, t, w)
	if err := w.SendTo(ctx, "reader", "go", 0); err != nil {
		t.Fatal(err)
	}
	got, err := run.Result(ctx)
	if want := []string{"broadcast", "direct", "competing"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("received %q, %v; want %q", got, err, want)
	}
}
