package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

func execAll(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := pool.Exec(testContext(t), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// collecting adds what it is sent to its input, a run for each message, until it is told to stop.
var collecting = workflow.Define("collecting", func(ctx *workflow.Context, in []string) ([]string, error) {
	message, err := workflow.Receive[string](ctx, "letters")
	if err != nil || message.Body == "stop" {
		return in, err
	}
	return in, workflow.ContinueAsNew(ctx, append(in, message.Body))
})

// A run that continues as new with a mailbox full of what it never reads receives the rest in order, once each, over as many
// continuations as there are: what was sent to its first id and to later ones, and what a transaction commits late that was open
// meanwhile. It ends although the mailbox is full, and the sweep removes what is left.
func TestMessagesFollowALineInOrderWhateverIsUnread(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{collecting})
	ctx := testContext(t)
	run, err := collecting.Start(ctx, w.Engine, nil, workflow.WithID("first"))
	if err != nil {
		t.Fatal(err)
	}
	const unread = 100_000
	execAll(t, pool, fmt.Sprintf(`insert into romancy.mailbox (channel, mode, receiver, payload) select 'unread', 'direct', 'first', '{}' from generate_series(1, %d)`, unread))
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if err := w.SendToTx(ctx, tx, "first", "letters", "late"); err != nil {
		t.Fatal(err)
	}
	var want []string
	id := "first"
	for n := range 30 {
		if n == 20 {
			eventually(t, "those before are received", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'continued'") == n
			})
			if err := tx.Commit(ctx); err != nil {
				t.Fatal(err)
			}
		}
		body := fmt.Sprint("letter ", n)
		if err := w.SendTo(ctx, id, "letters", body); err != nil {
			t.Fatal(err)
		}
		if want = append(want, body); n%5 == 4 { // the next goes to whichever lives now
			if err := pool.QueryRow(ctx, "select id from romancy.instances where ended_at is null").Scan(&id); err != nil {
				t.Fatal(err)
			}
		}
	}
	eventually(t, "all are received", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'continued'") == len(want)+1
	})
	if err := w.SendTo(ctx, "first", "letters", "stop"); err != nil {
		t.Fatal(err)
	}
	got, err := run.Result(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if late := slices.Index(got, "late"); late < 20 {
		t.Errorf("the late letter was received as number %d: %q", late, got)
	} else {
		got = slices.Delete(got, late, late+1)
	}
	if !slices.Equal(got, want) {
		t.Errorf("received %q, want %q", got, want)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n < unread-1000 {
		t.Errorf("%d messages are left: the end of the run has deleted the others", n)
	}
	if removed, err := w.SweepRetention(ctx); err != nil || removed < unread-1000 {
		t.Errorf("%d removed, %v", removed, err)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Errorf("%d messages are left", n)
	}
}

// What was published to a run, and to the run before it in its line, is never received by the next one, although it is still there.
func TestWhatWasPublishedToAFormerRunIsNotReceived(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("subscriber", func(ctx *workflow.Context, rounds int) (string, error) {
		if err := workflow.Subscribe(ctx, "prices", workflow.Broadcast); err != nil {
			return "", err
		}
		if rounds > 0 {
			if _, err := workflow.Receive[string](ctx, "move"); err != nil {
				return "", err
			}
			return "", workflow.ContinueAsNew(ctx, rounds-1)
		}
		message, err := workflow.Receive[string](ctx, "prices")
		return message.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("first"))
	if err != nil {
		t.Fatal(err)
	}
	subscribed := func(id string) func() bool {
		return func() bool {
			return count(t, pool, "select count(*) from romancy.subscriptions s join romancy.instances i on i.id = s.instance_id where i.status = 'waiting' and (i.id = 'first') = $1", id == "first") == 1
		}
	}
	eventually(t, "it is subscribed", subscribed("first"))
	if err := w.Publish(ctx, "prices", "old"); err != nil {
		t.Fatal(err)
	}
	execAll(t, pool, `insert into romancy.mailbox (channel, mode, receiver, payload) select channel, mode, receiver, payload from romancy.mailbox, generate_series(1, 300) where channel = 'prices'`)
	if err := w.SendTo(ctx, "first", "move", "on"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the next run is subscribed", subscribed("next"))
	if n := count(t, pool, "select count(*) from romancy.mailbox where receiver = 'first'"); n != 301 {
		t.Fatalf("%d of what was published to the first run are there, want all, or this shows nothing", n)
	}
	if err := w.Publish(ctx, "prices", "new"); err != nil {
		t.Fatal(err)
	}
	if body, err := run.Result(ctx); err != nil || body != "new" {
		t.Errorf("got %q, %v", body, err)
	}
}

// A run that failed with more published to it than its end could delete receives nothing of that when it is retried, but all that was
// sent to it alone.
func TestARetriedRunReceivesNothingThatWasPublished(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	broken := make(chan bool, 2)
	step := workflow.DefineActivity("step", func(context.Context, int) (int, error) {
		if <-broken {
			return 0, errors.New("broken")
		}
		return 1, nil
	})
	flow := workflow.Define("listener", func(ctx *workflow.Context, _ int) (string, error) {
		if err := workflow.Subscribe(ctx, "prices", workflow.Broadcast); err != nil {
			return "", err
		}
		if _, err := step.Execute(ctx, 1); err != nil {
			return "", err
		}
		message, err := workflow.Receive[string](ctx, "prices")
		return message.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("listener"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is subscribed", func() bool { return count(t, pool, "select count(*) from romancy.subscriptions") == 1 })
	execAll(t, pool, `insert into romancy.mailbox (channel, mode, receiver, payload) select 'prices', 'broadcast', 'listener', '"published"' from generate_series(1, 2500)`)
	if err := w.SendTo(ctx, "listener", "prices", "sent"); err != nil {
		t.Fatal(err)
	}
	broken <- true
	if _, err := run.Result(ctx); err == nil {
		t.Fatal("it completed")
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n < 2000 {
		t.Fatalf("%d messages are left: this shows nothing", n)
	}
	broken <- false
	if err := w.Retry(ctx, "listener"); err != nil {
		t.Fatal(err)
	}
	if body, err := run.Result(ctx); err != nil || body != "sent" {
		t.Errorf("got %q, %v", body, err)
	}
}

// endedRuns are ended runs with many records each, lines of some, runs that failed with messages, and messages of runs that are gone.
func endedRuns(t *testing.T, pool *pgxpool.Pool, runs, records int) {
	t.Helper()
	execAll(t, pool,
		fmt.Sprintf(`insert into romancy.instances (id, workflow, status, token, ready_at, ended_at, output, continued_from, line)
			select 'run-' || n, 'flow', case when n %% 10 <> 0 then 'continued' when n %% 20 = 0 then 'failed' else 'completed' end, 1, now(), now() - interval '1 day',
			       case when n %% 10 <> 0 then json_build_object('continued_as', 'run-' || n + 1) end,
			       case when n %% 10 <> 1 then 'run-' || n - 1 end, case when n %% 10 <> 1 then 'run-' || (n - 1) / 10 * 10 + 1 end
			from generate_series(1, %d) n`, runs),
		fmt.Sprintf(`insert into romancy.history (instance_id, position, token, kind, name, payload)
			select 'run-' || n, p, 1, 'activity', 'step', '{}' from generate_series(1, %d) n, generate_series(1, %d) p`, runs, records),
		fmt.Sprintf(`insert into romancy.mailbox (channel, mode, receiver, payload)
			select 'letters', m, 'run-' || n, '{}' from generate_series(1, %d) n, generate_series(1, 30), unnest(array['direct', 'broadcast']) m order by random()`, runs+10))
}

// Several sweeps at a time remove everything, without waiting for each other and without an error.
func TestRetentionSweepsOfSeveralWorkersGetAlong(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	endedRuns(t, pool, 100, 500)
	sweepers := configured(func(c *workflow.Config) { c.Retention, c.ClientOnly, c.MaxWorkflowsPerBatch = time.Hour, true, 30 })
	failures := make(chan error, 3)
	for range cap(failures) {
		w := startWorker(t, pool, nil, calm, sweepers)
		go func() {
			var failed error
			for range 3 {
				_, err := w.SweepRetention(ctx)
				failed = errors.Join(failed, err)
			}
			failures <- failed
		}()
	}
	for range cap(failures) {
		if err := <-failures; err != nil {
			t.Error(err)
		}
	}
	if _, err := startWorker(t, pool, nil, calm, sweepers).SweepRetention(ctx); err != nil { // what they have left to each other
		t.Error(err)
	}
	for _, table := range []string{"instances", "history", "mailbox"} {
		if n := count(t, pool, "select count(*) from romancy."+table); n != 0 {
			t.Errorf("%d rows of %s are left", n, table)
		}
	}
}

// What another sweep has locked is left to it: a sweep waits for no row, so two of them cannot wait for each other.
func TestRetentionWaitsForNobody(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	endedRuns(t, pool, 30, 10)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	for _, locked := range []string{
		"romancy.mailbox where receiver in ('run-1', 'run-10', 'run-20', 'run-35')", "romancy.instances where id = 'run-30'",
	} {
		if _, err := tx.Exec(ctx, "select 1 from "+locked+" for update"); err != nil {
			t.Fatal(err)
		}
	}
	w := startWorker(t, pool, nil, calm, configured(func(c *workflow.Config) { c.Retention, c.ClientOnly = time.Hour, true }))
	for range 2 {
		if _, err := w.SweepRetention(ctx); err != nil {
			t.Errorf("with rows locked by another sweep: %v", err)
		}
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if _, err := w.SweepRetention(ctx); err != nil {
			t.Error(err)
		}
	}
	if n := count(t, pool, "select (select count(*) from romancy.instances) + (select count(*) from romancy.mailbox) + (select count(*) from romancy.history)"); n != 0 {
		t.Errorf("%d rows are left", n)
	}
}

// A sweep that is interrupted has deleted what it came to, and another goes on: no run is deleted before its records.
func TestAnInterruptedRetentionSweepIsContinued(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	endedRuns(t, pool, 20, 10_000)
	w := startWorker(t, pool, nil, calm, configured(func(c *workflow.Config) { c.Retention, c.ClientOnly = time.Hour, true }))
	interrupted, interrupt := context.WithCancel(ctx)
	swept := make(chan error)
	go func() {
		_, err := w.SweepRetention(interrupted)
		swept <- err
	}()
	eventually(t, "some records are gone", func() bool { return count(t, pool, "select count(*) from romancy.history") < 190_000 })
	interrupt()
	if err := <-swept; !errors.Is(err, context.Canceled) {
		t.Fatalf("the sweep was not interrupted: %v", err)
	}
	if n := count(t, pool, "select count(*) from romancy.history"); n == 0 {
		t.Fatal("all records are gone: this shows nothing")
	}
	if n := count(t, pool, "select count(*) from romancy.history h where not exists (select from romancy.instances i where i.id = h.instance_id)"); n != 0 {
		t.Errorf("%d records of runs that are deleted", n)
	}
	if _, err := w.SweepRetention(ctx); err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, table := range []string{"instances", "history"} {
		if n := count(t, pool, "select count(*) from romancy."+table); n != 0 {
			left = append(left, fmt.Sprint(n, " of ", table))
		}
	}
	if len(left) > 0 {
		t.Errorf("left: %s", strings.Join(left, ", "))
	}
}

// A history is read in pages, and is whole: records, also large ones, and failed attempts.
func TestALongHistoryIsReadWhole(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	execAll(t, pool,
		`insert into romancy.instances (id, workflow, status, token, ready_at) values ('long', 'flow', 'waiting', 1, now())`,
		`insert into romancy.history (instance_id, position, token, kind, name, payload)
		 select 'long', n, 1, 'activity', 'step', case when n % 100 <> 0 then '{}' else to_json((select string_agg(md5(random()::text), '') from generate_series(1, 32768 + n))) end
		 from generate_series(1, 2500) n`,
		`insert into romancy.attempts (instance_id, position, attempt, error) select 'long', p, n, '{}' from generate_series(1, 1500) n, unnest(array[7, 2501]) p`)
	w := startWorker(t, pool, nil, calm, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	history, err := w.History(testContext(t), "long")
	if err != nil || len(history) != 2501 {
		t.Fatalf("%d entries, %v; want 2,501", len(history), err)
	}
	for i, entry := range history {
		attempts := map[int]int{7: 1500, 2501: 1500}[i+1]
		if entry.Position != i+1 || len(entry.Attempts) != attempts || attempts > 0 && entry.Attempts[attempts-1].Number != attempts {
			t.Fatalf("entry %d has position %d and %d attempts", i, entry.Position, len(entry.Attempts))
		}
	}
}
