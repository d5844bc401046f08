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
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/workflow"
)

func TestGetAndHistoryTellWhatARunDoes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	failures := 1
	flaky := workflow.DefineActivity("flaky", func(context.Context, int) (int, error) {
		if failures > 0 {
			failures--
			return 0, workflow.NewError("busy", "come back later")
		}
		return 7, nil
	}, workflow.WithRetry(workflow.RetryPolicy{InitialInterval: time.Millisecond}))
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := flaky.Execute(ctx, n); err != nil {
			return 0, err
		}
		message, err := workflow.Receive[int](ctx, "approvals")
		return message.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Label = "east" }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 5, workflow.WithID("order-1"))
	if err != nil {
		t.Fatal(err)
	}
	var info *workflow.RunInfo
	eventually(t, "the run waits for its approval", func() bool {
		if info, err = w.Get(ctx, "order-1"); err != nil {
			t.Fatal(err)
		}
		return info.Status == workflow.StatusWaiting && len(info.WaitingOn) > 0
	})
	if info.Workflow != "order" || string(info.Input) != "5" || !slices.Equal(info.WaitingOn, []string{"approvals"}) ||
		info.Worker != "east" || info.Err != nil || info.CreatedAt.IsZero() || !info.EndedAt.IsZero() {
		t.Errorf("the waiting run is described as %+v", info)
	}
	if err := w.SendTo(ctx, "order-1", "approvals", 9); err != nil {
		t.Fatal(err)
	}
	if out, err := run.Result(ctx); err != nil || out != 9 {
		t.Fatalf("result %d, %v", out, err)
	}
	if info, err = w.Get(ctx, "order-1"); err != nil || info.Status != workflow.StatusCompleted || string(info.Output) != "9" || info.EndedAt.IsZero() {
		t.Errorf("the ended run is described as %+v, %v", info, err)
	}
	history, err := w.History(ctx, "order-1")
	if err != nil || len(history) != 2 {
		t.Fatalf("history %+v, %v", history, err)
	}
	first, second := history[0], history[1]
	if first.Kind != "activity" || first.Name != "flaky" || first.Position != 1 || len(first.Attempts) != 1 || first.RecordedAt.IsZero() {
		t.Errorf("first entry %+v", first)
	} else if failed := first.Attempts[0]; failed.Number != 1 || failed.Type != "busy" || failed.Message != "come back later" || failed.NextAt.Before(failed.FailedAt.Add(-time.Second)) {
		t.Errorf("failed attempt %+v", failed)
	}
	if second.Kind != "receive" || second.Name != "approvals" || !strings.Contains(string(second.Payload), `"body"`) {
		t.Errorf("second entry %+v", second)
	}
	for what, err := range map[string]error{
		"Get":     func() error { _, err := w.Get(ctx, "nobody"); return err }(),
		"History": func() error { _, err := w.History(ctx, "nobody"); return err }(),
		"Retry":   w.Retry(ctx, "nobody"),
	} {
		if !errors.Is(err, workflow.ErrNotFound) || !strings.Contains(err.Error(), "nobody") {
			t.Errorf("%s of an unknown run: %v", what, err)
		}
	}
}

func TestListPagesThroughWhatMatches(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	// 12,000 runs, so that a filtered list takes several looks; one in a thousand has failed.
	if _, err := pool.Exec(ctx, `
		insert into romancy.instances (id, workflow, status, token, ready_at, input, created_at, ended_at)
		select 'run-' || to_char(n, 'FM00000'), case when n % 2 = 0 then 'order' else 'refund' end,
		       case when n % 1000 = 0 then 'failed' else 'completed' end, 1, now(),
		       case when n % 10 = 0 then '{"note":"\u0000"}' else json_build_object('customer', 'c-' || n % 7)::text end::json,
		       timestamptz '2026-01-01 00:00:00Z' + n * interval '1 minute', timestamptz '2026-02-01 00:00:00Z' + n * interval '1 minute'
		from generate_series(1, 12000) n`); err != nil {
		t.Fatal(err)
	}
	w := startWorker(t, pool, nil)
	all := func(filter workflow.Filter) (ids []string, pages int) {
		t.Helper()
		for {
			page, err := w.List(ctx, filter)
			if err != nil {
				t.Fatal(err)
			}
			pages++
			for _, run := range page.Runs {
				ids = append(ids, run.ID)
			}
			if page.Next == "" {
				return ids, pages
			}
			if limit := max(filter.Limit, 1); filter.Limit > 0 && len(page.Runs) != limit {
				t.Errorf("%+v: a page of %d that is not the last", filter, len(page.Runs))
			}
			filter.Cursor = page.Next
		}
	}
	at := func(minute int) time.Time {
		return time.Date(2026, 1, 1, 0, minute, 0, 0, time.UTC)
	}
	numbers := func(keep func(n int) bool) (ids []string) {
		for n := 12000; n >= 1; n-- {
			if keep(n) {
				ids = append(ids, fmt.Sprintf("run-%05d", n))
			}
		}
		return ids
	}
	for name, test := range map[string]struct {
		filter workflow.Filter
		want   []string
		pages  int
	}{
		"everything": {workflow.Filter{Limit: 1000}, numbers(func(int) bool { return true }), 12},
		"by status": {
			workflow.Filter{Statuses: []workflow.Status{workflow.StatusFailed, workflow.StatusStuck}, Limit: 5},
			numbers(func(n int) bool { return n%1000 == 0 }), 3,
		},
		"by workflow, exactly one page": {
			workflow.Filter{Workflows: []string{"order"}, CreatedFrom: at(100), CreatedBefore: at(300)},
			numbers(func(n int) bool { return n%2 == 0 && n >= 100 && n < 300 }), 1,
		},
		"by input": {
			workflow.Filter{InputPath: `$.customer ? (@ == "c-3")`, CreatedFrom: at(11000)},
			numbers(func(n int) bool { return n >= 11000 && n%7 == 3 && n%10 != 0 }), 2,
		},
		"by end":  {workflow.Filter{EndedFrom: time.Date(2026, 2, 1, 0, 11999, 0, 0, time.UTC)}, []string{"run-12000", "run-11999"}, 1},
		"nothing": {workflow.Filter{Workflows: []string{"unknown"}}, nil, 1},
	} {
		got, pages := all(test.filter)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got %d runs (%.40q...), want %d", name, len(got), got, len(test.want))
		}
		if pages != test.pages {
			t.Errorf("%s: %d pages, want %d", name, pages, test.pages)
		}
	}
}

// What jsonb refuses matches no path and spoils no list, on a database of another encoding as well; what only looks like it matches.
func TestListPassesOverWhatJsonbRefuses(t *testing.T) {
	t.Parallel()
	for encoding, pool := range map[string]*pgxpool.Pool{"UTF8": pgtest.Pool(t), "LATIN1": pgtest.Latin1(t)} {
		t.Run(encoding, func(t *testing.T) {
			t.Parallel()
			if err := schema.Migrate(testContext(t), pool, schema.Default); err != nil {
				t.Fatal(err)
			}
			w := startWorker(t, pool, nil)
			for id, input := range map[string]string{
				"nul": `{"n":1,"x":"\u0000"}`, "surrogate": `{"n":1,"x":"\ud800"}`, "large": `{"n":1,"x":1e200000}`,
				"looks like nul": `{"n":1,"x":"\\u0000"}`, "euro": `{"n":1,"x":"\u20ac"}`, "plain": `{"n":1}`, "other": `{"n":2}`,
			} {
				_, err := pool.Exec(testContext(t), "insert into romancy.instances (id, workflow, status, token, ready_at, input) values ($1::text, 'w', 'waiting', 1, now(), $2::text::json)", id, input)
				if err != nil {
					t.Fatal(err)
				}
			}
			page, err := w.List(testContext(t), workflow.Filter{InputPath: "$.n ? (@ == 1)"})
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for _, run := range page.Runs {
				got = append(got, run.ID)
			}
			want := []string{"plain", "looks like nul", "euro"}
			if encoding == "LATIN1" {
				want = want[:2]
			}
			if !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
			if page, err = w.List(testContext(t), workflow.Filter{}); err != nil || len(page.Runs) != 7 {
				t.Errorf("all: %d, %v", len(page.Runs), err)
			}
		})
	}
}

// A run that somebody holds for good, by hand, waits, and spoils neither lists nor sweeps.
func TestAWaitUntilInfinityByHandSpoilsNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{steps})
	ctx := testContext(t)
	run, err := steps.Start(ctx, w.Engine, 1, workflow.WithDelay(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "update romancy.instances set wake_at = 'infinity'"); err != nil {
		t.Fatal(err)
	}
	info, err := w.Get(ctx, run.ID())
	if err != nil || info.Status != workflow.StatusWaiting || !info.WakeAt.IsZero() {
		t.Errorf("%+v, %v", info, err)
	}
	if page, err := w.List(ctx, workflow.Filter{}); err != nil || len(page.Runs) != 1 {
		t.Errorf("%+v, %v", page, err)
	}
	if _, ok, err := w.NextDeadline(ctx); ok || err != nil {
		t.Errorf("there is a next deadline: %t, %v", ok, err)
	}
	for _, sweep := range []func(context.Context) (int, error){w.SweepTimers, w.SweepResume} {
		if n, err := sweep(ctx); n != 0 || err != nil {
			t.Errorf("a sweep finds %d, %v", n, err)
		}
	}
}

// A path that takes too long ends with an error that names it, and keeps no connection; on few runs at a time it may get through.
func TestListGivesUpAPathThatTakesTooLong(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, nil)
	if _, err := pool.Exec(testContext(t), `insert into romancy.instances (id, workflow, status, token, ready_at, input)
		select n::text, 'w', 'waiting', 1, now(), (repeat('[', 300) || '1' || repeat(']', 300))::json from generate_series(1, 60) n`); err != nil {
		t.Fatal(err)
	}
	path := "$.**.**.**.**.** ? (@ == 77)"
	_, err := w.List(testContext(t), workflow.Filter{InputPath: path})
	if err == nil || !strings.Contains(err.Error(), "Filter.InputPath, of 28 bytes") || !strings.Contains(err.Error(), "step by step") {
		t.Errorf("got %v", err)
	}
	if n := count(t, pool, "select count(*) from pg_stat_activity where datname = current_database() and state = 'active' and query like '%ListRuns%' and pid <> pg_backend_pid()"); n != 0 {
		t.Errorf("%d statements go on", n)
	}
}

func TestListNamesEveryMistake(t *testing.T) {
	t.Parallel()
	w := startWorker(t, pgtest.Pool(t), nil)
	_, err := w.List(testContext(t), workflow.Filter{Statuses: []workflow.Status{"asleep"}, Limit: 5000, Cursor: "???"})
	for _, said := range []string{`"asleep"`, "Filter.Limit is 5000", "1 to 1000", "Filter.Cursor, of 3 bytes, is not the Next"} {
		if err == nil || !strings.Contains(err.Error(), said) {
			t.Errorf("error %v does not say %s", err, said)
		}
	}
	_, err = w.List(testContext(t), workflow.Filter{InputPath: "$.["})
	if err == nil || !strings.Contains(err.Error(), "Filter.InputPath, of 3 bytes, is not an SQL/JSON path") {
		t.Errorf("a mistaken path: %v", err)
	}
}

// What is tried again has no record yet, and is what an operator looks for.
func TestHistoryNamesTheStepThatIsTriedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flaky := workflow.DefineActivity("charge", func(context.Context, int) (int, error) {
		return 0, workflow.NewError("busy", "come back later")
	}, workflow.WithRetry(workflow.RetryPolicy{InitialInterval: time.Hour, MaxInterval: time.Hour}))
	flow := workflow.Define("patient", func(ctx *workflow.Context, beside bool) (int, error) {
		if beside {
			return flaky.Go(ctx, 1).Get(ctx)
		}
		return flaky.Execute(ctx, 1)
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	for id, beside := range map[string]bool{"execute": false, "go": true} {
		if _, err := flow.Start(ctx, w.Engine, beside, workflow.WithID(id)); err != nil {
			t.Fatal(err)
		}
		var history []workflow.HistoryEntry
		eventually(t, "an attempt has failed", func() bool {
			var err error
			if history, err = w.History(ctx, id); err != nil {
				t.Fatal(err)
			}
			return len(history) > 0
		})
		if step := history[0]; step.Kind != "activity" || step.Name != "charge" || step.Position != 1 || !step.RecordedAt.IsZero() ||
			len(step.Attempts) != 1 || step.Attempts[0].Type != "busy" || step.Attempts[0].NextAt.IsZero() {
			t.Errorf("%s: the step is described as %+v", id, step)
		}
	}
}
