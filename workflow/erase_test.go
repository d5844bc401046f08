package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// secret stands in every value, error and message of the runs that are erased.
const secret = "Jane Doe, 4 Elm Street"

// whereIs returns the tables and rows that have text in any of their columns.
func whereIs(t *testing.T, pool *pgxpool.Pool, text string) (found []string) {
	t.Helper()
	ctx := testContext(t)
	rows, err := pool.Query(ctx, "select c.relname from pg_class c where c.relnamespace = 'romancy'::regnamespace and c.relkind = 'r'")
	if err != nil {
		t.Fatal(err)
	}
	tables, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, table := range tables {
		rows, err := pool.Query(ctx, fmt.Sprintf("select left(r::text, 200) from romancy.%s r where position($1 in r::text) > 0", table), text)
		if err != nil {
			t.Fatal(err)
		}
		lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		for _, line := range lines {
			found = append(found, table+": "+line)
		}
	}
	return found
}

// customer has the secret in all that a run can record.
func customer() workflow.Definition {
	look := workflow.DefineActivity("look", func(_ context.Context, in string) (string, error) { return "found " + in, nil }).
		WithCompensation(func(context.Context, string, string) error {
			return workflow.Terminal(errors.New("cannot undo " + secret))
		})
	fail := workflow.DefineActivity("fail", func(_ context.Context, in string) (string, error) {
		return "", workflow.NewError("refused", "no: "+in).WithDetails(in)
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond}))
	return workflow.Define("customer", func(ctx *workflow.Context, in map[string]string) (string, error) {
		if _, err := look.Execute(ctx, in["name"]); err != nil {
			return "", err
		}
		if _, err := workflow.SideEffect(ctx, "made", func() (string, error) { return "made of " + in["name"], nil }); err != nil {
			return "", err
		}
		message, err := workflow.Receive[string](ctx, "data")
		if err != nil {
			return "", err
		}
		if err := workflow.SendTo(ctx, in["to"], "reports", "about "+message.Body); err != nil {
			return "", err
		}
		if err := workflow.Publish(ctx, "news", "about "+message.Body); err != nil {
			return "", err
		}
		if in["end"] == "cancelled" {
			return "", workflow.Sleep(ctx, time.Hour)
		}
		_, err = fail.Execute(ctx, in["name"])
		if in["end"] == "failed" {
			return "", err
		}
		return "welcome " + in["name"], nil
	})
}

// Whatever an ended run had of the application's data is gone from all tables, and what is another's is not; what is left says that it was
// and that it was erased, and every question about the rest is answered with that.
func TestAnErasedRunLeavesNothingOfTheApplicationsData(t *testing.T) {
	t.Parallel()
	for _, end := range []workflow.Status{workflow.StatusCompleted, workflow.StatusFailed, workflow.StatusCancelled} {
		t.Run(string(end), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			waits := workflow.Define("waits", func(ctx *workflow.Context, _ string) (string, error) {
				message, err := workflow.Receive[string](ctx, "go")
				return message.Body, err
			})
			flow, ok := customer().(*workflow.Workflow[map[string]string, string])
			if !ok {
				t.Fatal("not the type it is defined with")
			}
			w := startWorker(t, pool, []workflow.Definition{flow, waits})
			ctx := testContext(t)
			other, err := waits.Start(ctx, w.Engine, "input of another", workflow.WithID("other"))
			if err != nil {
				t.Fatal(err)
			}
			in := map[string]string{"name": secret, "to": "other", "end": string(end)}
			run, err := flow.Start(ctx, w.Engine, in, workflow.WithID("customer-1"))
			if err != nil {
				t.Fatal(err)
			}
			must := func(err error) {
				t.Helper()
				if err != nil {
					t.Fatal(err)
				}
			}
			must(w.SendTo(ctx, "customer-1", "unread", "unread of "+secret))
			must(w.SendTo(ctx, "other", "unread", "unread of another"))
			must(w.SendTo(ctx, "customer-1", "data", secret))
			if end == workflow.StatusCancelled {
				eventually(t, "it sleeps", func() bool {
					return count(t, pool, "select count(*) from romancy.instances where id = 'customer-1' and status = 'waiting' and wake_at is not null") == 1
				})
				must(w.Cancel(ctx, "customer-1", "asked by "+secret, workflow.Compensate()))
			}
			if _, err := run.Result(ctx); end == workflow.StatusCompleted != (err == nil) {
				t.Fatalf("result: %v", err)
			}
			if found := strings.Join(whereIs(t, pool, secret), "\n"); !strings.Contains(found, "history: ") || !strings.Contains(found, "mailbox: ") || !strings.Contains(found, "instances: ") {
				t.Fatalf("before it is erased it is only in\n%s", found)
			}
			before, err := w.Get(ctx, "customer-1")
			must(err)
			// Whoever deletes the mail of an ended run in the background comes later: this stands for what it has not come to.
			_, err = pool.Exec(ctx, `insert into romancy.mailbox (channel, mode, receiver, payload) values ('news', 'broadcast', 'customer-1', to_json($1::text))`, secret)
			must(err)
			_, err = pool.Exec(ctx, `insert into romancy.event_waits (instance_id, type, names, attributes, seen) values ('customer-1', 'paid', '{by}', jsonb_build_object('by', $1::text), '{}')`, secret)
			must(err)

			must(w.Erase(ctx, "customer-1"))

			if found := whereIs(t, pool, secret); len(found) > 0 {
				t.Errorf("it is still in\n%s", strings.Join(found, "\n"))
			}
			after, err := w.Get(ctx, "customer-1")
			must(err)
			if after.ErasedAt.IsZero() || after.Input != nil || after.Output != nil || after.Err != nil {
				t.Errorf("Get tells %+v", after)
			}
			if after.Status != end || after.Workflow != "customer" || !after.CreatedAt.Equal(before.CreatedAt) || !after.EndedAt.Equal(before.EndedAt) {
				t.Errorf("Get tells %+v, and before %+v", after, before)
			}
			page, err := w.List(ctx, workflow.Filter{Workflows: []string{"customer"}})
			must(err)
			if len(page.Runs) != 1 || !page.Runs[0].ErasedAt.Equal(after.ErasedAt) {
				t.Errorf("List tells %+v", page.Runs)
			}
			if history, err := w.History(ctx, "customer-1"); err != nil || len(history) != 0 {
				t.Errorf("history: %+v, %v", history, err)
			}
			if out, err := run.Result(ctx); !errors.Is(err, workflow.ErrErased) || out != "" {
				t.Errorf("result: %q, %v; want ErrErased", out, err)
			}
			if err := w.Retry(ctx, "customer-1"); !errors.Is(err, workflow.ErrNotRetryable) || !errors.Is(err, workflow.ErrErased) {
				t.Errorf("retry: %v", err)
			}
			if _, err := flow.Start(ctx, w.Engine, in, workflow.WithID("customer-1")); !errors.Is(err, workflow.ErrIDConflict) || !errors.Is(err, workflow.ErrErased) {
				t.Errorf("start with its id: %v", err)
			}
			err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
				_, err := flow.StartTx(ctx, tx, w.Engine, in, workflow.WithID("customer-1"))
				return err
			})
			if !errors.Is(err, workflow.ErrErased) {
				t.Errorf("start with its id in a transaction: %v", err)
			}
			// Once more: what has come since goes, and the record stays.
			_, err = pool.Exec(ctx, `insert into romancy.mailbox (channel, mode, receiver, payload) values ('late', 'direct', 'customer-1', to_json($1::text))`, secret)
			must(err)
			must(w.Erase(ctx, "customer-1"))
			if found := whereIs(t, pool, secret); len(found) > 0 {
				t.Errorf("it is still in\n%s", strings.Join(found, "\n"))
			}
			if again, err := w.Get(ctx, "customer-1"); err != nil || !again.ErasedAt.Equal(after.ErasedAt) {
				t.Errorf("erased once more: %+v, %v", again, err)
			}
			// The other run has what is its own.
			if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 1 {
				t.Errorf("%d messages are left, want the other run's", n)
			}
			must(w.SendTo(ctx, "other", "go", "on"))
			if out, err := other.Result(ctx); err != nil || out != "on" {
				t.Errorf("the other run: %q, %v", out, err)
			}
		})
	}
}

// A run that may still go on is not touched, whatever keeps it.
func TestOnlyARunThatHasEndedIsErased(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, nil, calm, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	for _, insert := range []string{
		`insert into romancy.instances (id, workflow, status, token, ready_at, input, worker)
		 select s, 'order', s, 1, now(), '"kept"', case when s = 'running' then 77 end from unnest(array['ready', 'running', 'waiting', 'stuck']) s`,
		`insert into romancy.workers (id, label, lease_until) values (77, 'another', now() + interval '1 hour')`,
		`insert into romancy.history (instance_id, position, token, kind, name) select id, n, 1, 'activity', 'charge' from romancy.instances, generate_series(1, 3) n`,
		`insert into romancy.mailbox (receiver, channel, mode, sender, payload) select id, 'letters', 'direct', id, '1' from romancy.instances`,
	} {
		if _, err := pool.Exec(ctx, insert); err != nil {
			t.Fatal(err)
		}
	}
	for _, id := range []string{"ready", "running", "waiting", "stuck"} {
		if err := w.Erase(ctx, id, workflow.WithFormerRuns()); !errors.Is(err, workflow.ErrNotEnded) || !strings.Contains(err.Error(), "it is "+id) {
			t.Errorf("erase a run that is %s: %v", id, err)
		}
	}
	if err := w.Erase(ctx, "unknown"); !errors.Is(err, workflow.ErrNotFound) {
		t.Errorf("erase a run that is unknown: %v", err)
	}
	if n := count(t, pool, `select (select count(*) from romancy.instances where input is not null and erased_at is null and drained_at is null)
		+ (select count(*) from romancy.history) + (select count(*) from romancy.mailbox)`); n != 4+12+4 {
		t.Errorf("%d rows are as they were, want 20", n)
	}
}

// insertLine makes a line of runs, of which the last one has this status, with history, and messages for the line and for its runs.
func insertLine(t *testing.T, pool *pgxpool.Pool, length int, last workflow.Status) {
	t.Helper()
	for _, insert := range []string{
		`insert into romancy.instances (id, workflow, status, token, ready_at, input, output, continued_from, line, ended_at)
		 select 'run-' || n, 'rounds', case when n < $1::integer then 'continued' else $2::text end, 1, now(), to_json('Jane Doe'::text),
		        case when n < $1 then json_build_object('continued_as', 'run-' || n + 1) else '"Jane Doe"' end,
		        case when n > 1 then 'run-' || n - 1 end, case when n > 1 then 'run-1' end, case when n < $1 or $2 <> 'waiting' then now() end
		 from generate_series(1, $1) n`,
		`insert into romancy.history (instance_id, position, token, kind, name, payload)
		 select 'run-' || n, p, 1, 'activity', 'charge', to_json('Jane Doe'::text) from generate_series(1, $1::integer) n, generate_series(1, 3) p where $2::text <> ''`,
		`insert into romancy.mailbox (channel, mode, receiver, payload)
		 select 'letters', m, 'run-' || n, to_json(m || ' Jane Doe') from generate_series(1, $1::integer) n, unnest(array['direct', 'broadcast']) m
		 where (m = 'broadcast' or n = 1) and $2::text <> ''`,
	} {
		if _, err := pool.Exec(testContext(t), insert, length, string(last)); err != nil {
			t.Fatalf("%s: %v", insert, err)
		}
	}
}

// A run of a line is erased alone, or with those before it. While a run of the line lives it keeps what was sent to the line, and the way
// to it from those that are erased.
func TestErasingLines(t *testing.T) {
	t.Parallel()
	left := func(t *testing.T, pool *pgxpool.Pool) (runs, records, direct, published int) {
		t.Helper()
		return count(t, pool, "select count(*) from romancy.instances where erased_at is null"), count(t, pool, "select count(*) from romancy.history"),
			count(t, pool, "select count(*) from romancy.mailbox where mode = 'direct'"), count(t, pool, "select count(*) from romancy.mailbox where mode <> 'direct'")
	}
	const length = 1203 // more than two pages
	for name, c := range map[string]struct {
		last                             workflow.Status
		erase                            string
		options                          []workflow.EraseOption
		runs, records, direct, published int
	}{
		"the last run alone":             {workflow.StatusCompleted, "run-1203", nil, length - 1, 3 * (length - 1), 0, length - 1},
		"the whole line":                 {workflow.StatusFailed, "run-1203", []workflow.EraseOption{workflow.WithFormerRuns()}, 0, 0, 0, 0},
		"one that led to a live run":     {workflow.StatusWaiting, "run-1202", nil, length - 1, 3 * (length - 1), 1, length - 1},
		"all that led to a live run":     {workflow.StatusWaiting, "run-1202", []workflow.EraseOption{workflow.WithFormerRuns()}, 1, 3, 1, 1},
		"the first one, which has ended": {workflow.StatusWaiting, "run-1", []workflow.EraseOption{workflow.WithFormerRuns()}, length - 1, 3 * (length - 1), 1, length - 1},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			w := startWorker(t, pool, nil, calm, configured(func(c *workflow.Config) { c.ClientOnly = true }))
			ctx := testContext(t)
			insertLine(t, pool, length, c.last)
			if err := w.Erase(ctx, c.erase, c.options...); err != nil {
				t.Fatal(err)
			}
			if runs, records, direct, published := left(t, pool); runs != c.runs || records != c.records || direct != c.direct || published != c.published {
				t.Errorf("left are %d runs, %d records, %d messages to the line and %d published ones; want %d, %d, %d and %d",
					runs, records, direct, published, c.runs, c.records, c.direct, c.published)
			}
			former, err := w.Get(ctx, "run-1202")
			if err != nil || former.ContinuedAs != "run-1203" {
				t.Errorf("the last but one: %+v, %v", former, err)
			}
			if c.last == workflow.StatusWaiting {
				if err := w.SendTo(ctx, "run-1", "letters", 1); err != nil {
					t.Errorf("sent to the first run of the line: %v", err)
				}
			}
		})
	}
}

// Erase waits for a transaction that holds the run's row, as Cancel does, and carries on when that has ended.
func TestEraseWaitsForWhoHoldsTheRow(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, nil, calm, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	insertLine(t, pool, 1, workflow.StatusCompleted)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(ctx, "select 1 from romancy.instances where id = 'run-1' for update"); err != nil {
		t.Fatal(err)
	}
	erased := make(chan error, 1)
	go func() { erased <- w.Erase(ctx, "run-1") }()
	eventually(t, "it has waited", func() bool {
		return count(t, pool, "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%EraseRecords%'") > 0
	})
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-erased; err != nil {
		t.Error(err)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where erased_at is not null and input is null"); n != 1 {
		t.Error("it is not erased")
	}
}

// docs/security.md says how to find who has received messages of a run. It does, whatever else is in history.
func TestTheDocumentsFindWhoHasReceivedMessages(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	_, query, found := strings.Cut(string(text), "`select instance_id, position from romancy.history")
	query, _, closed := strings.Cut(query, "ID`")
	if !found || !closed {
		t.Fatal("the query is not there")
	}
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	if _, err := pool.Exec(ctx, `insert into romancy.history (instance_id, position, token, kind, name, payload) values
		('a', 1, 1, 'receive', 'letters', '{"sender": "sought", "body": 1}'), ('b', 1, 1, 'receive', 'letters', '{"sender": "other", "body": "\u0000"}'),
		('c', 1, 1, 'receive_more', 'letters', '[{"sender": "sought"}]'), ('d', 1, 1, 'activity', 'charge', null)`); err != nil {
		t.Fatal(err)
	}
	if got := count(t, pool, "select count(*) from (select instance_id, position from romancy.history"+query+"$1) q where instance_id = 'a'", "sought"); got != 1 {
		t.Errorf("it finds %d, want the one", got)
	}
}
