package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// refuse has the database refuse what is done to a table, with this SQLSTATE, so many times (-1: until it is allowed again). It returns
// what allows it.
func refuse(t *testing.T, pool *pgxpool.Pool, table, operation, code string, times int) (allow func()) {
	t.Helper()
	exec := func(statement string) {
		t.Helper()
		if _, err := pool.Exec(testContext(t), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	exec(`create sequence if not exists public.refusals minvalue 0 start 0`)
	exec(fmt.Sprintf(`create or replace function public.refuse_%s() returns trigger language plpgsql as $$
		begin
			if %d < 0 or nextval('public.refusals') < %d then
				raise exception using errcode = '%s', message = 'not now, says the test';
			end if;
			return new;
		end $$`, table, times, times, code))
	exec(fmt.Sprintf(`create trigger refuse before %s on romancy.%s for each row execute function public.refuse_%s()`, operation, table, table))
	return func() { exec(fmt.Sprintf(`drop trigger refuse on romancy.%s`, table)) }
}

// notTheValuesFault are refusals of each kind that say nothing about what was to be stored.
var notTheValuesFault = []string{
	"53100", "53200", "55P03", "57014", "40001", "40P01", "25006", "26000", "42P05", "58030", "XX000", "P0001", // not now
	"42501", "42P01", "42703", "23514", // a right or the schema
}

// What a step has done is kept whatever the database says, until it takes it: nothing is executed again, and nothing is stuck.
func TestWhatAStepHasDoneOutlastsEveryRefusal(t *testing.T) {
	t.Parallel()
	for _, code := range notTheValuesFault {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var executed tally
			charge := workflow.DefineActivity("charge", func(_ context.Context, n int) (int, error) { executed.add("charge"); return n, nil }).
				WithCompensation(func(context.Context, int, int) error { executed.add("refund"); return nil })
			note := workflow.DefineActivity("note", func(context.Context, int) (int, error) {
				executed.add("note")
				return 0, workflow.Terminal(errors.New("no note"))
			})
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
				beside := charge.Go(ctx, n)
				if _, err := charge.Execute(ctx, n); err != nil {
					return 0, err
				}
				if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
					return 0, err
				}
				if err := workflow.Publish(ctx, "charged", n); err != nil {
					return 0, err
				}
				if _, err := beside.Get(ctx); err != nil {
					return 0, err
				}
				return note.Execute(ctx, n)
			})
			w := startWorker(t, pool, []workflow.Definition{flow})
			allow := refuse(t, pool, "history", "insert", code, 12)
			defer allow()
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			failed := new(workflow.RunError)
			if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message == "" || failed.CompensationErrors != nil {
				t.Errorf("got %v, want the failure of the last step and no other", err)
			}
			if executed.of("charge") != 2 || executed.of("note") != 1 || executed.of("refund") != 2 {
				t.Errorf("executed %d charges, %d notes, %d refunds; want 2, 1, 2", executed.of("charge"), executed.of("note"), executed.of("refund"))
			}
		})
	}
}

// A transactional activity whose transaction was not committed is executed again, and each time is counted, where people look.
func TestATransactionThatIsRefusedIsExecutedAgainAndCounted(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"53100", "55P03", "42501", "40001", "58030"} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var executed atomic.Int64
			charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return int(executed.Add(1)), nil },
				workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1}))
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
			w := startWorker(t, pool, []workflow.Definition{flow})
			const times = 3
			defer refuse(t, pool, "history", "insert", code, times)()
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := run.Result(ctx); err != nil || got != times+1 {
				t.Errorf("got %d, %v, want the result of execution %d", got, err, times+1)
			}
			info, err := w.Get(ctx, run.ID())
			if err != nil || info.Interruptions != times {
				t.Errorf("Get tells of %d interruptions, %v; want %d", info.Interruptions, err, times)
			}
			history, err := w.History(ctx, run.ID())
			if err != nil || len(history) != 1 || len(history[0].Interruptions) != times || history[0].Attempts != nil {
				t.Errorf("history is %+v, %v; want %d interruptions of its one step", history, err, times)
			}
		})
	}
}

// What the body of a transactional activity meets is no more its fault than what its record meets: a full disk, a lock, a session that
// somebody has ended, a right that was revoked for a moment.
func TestARefusalThatABodyMeetsIsAnInterruption(t *testing.T) {
	t.Parallel()
	insert := func(ctx context.Context, n int) error {
		_, err := workflow.Tx(ctx).Exec(ctx, "insert into public.ledger values ($1)", n)
		return err
	}
	for name, c := range map[string]struct {
		code string // with which the first executions are refused
		body func(ctx context.Context, n int) error
	}{
		"disk full": {code: "53100"}, "lock": {code: "55P03"}, "conflict": {code: "40001"}, "read only": {code: "25006"},
		"right": {code: "42501"}, "crash": {code: "57P02"}, "internal": {code: "XX000"},
		"killed": {body: func(ctx context.Context, n int) error {
			if n < 3 {
				_, err := workflow.Tx(ctx).Exec(ctx, "select pg_terminate_backend(pg_backend_pid())")
				return err
			}
			return insert(ctx, n)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			if _, err := pool.Exec(testContext(t), "create table public.ledger (n int)"); err != nil {
				t.Fatal(err)
			}
			if c.code != "" {
				if _, err := pool.Exec(testContext(t), `create sequence public.refusals minvalue 0 start 0;
					create function public.refuse() returns trigger language plpgsql as $$ begin
						if nextval('public.refusals') < 2 then raise exception using errcode = '`+c.code+`', message = 'not now'; end if;
						return new;
					end $$;
					create trigger refuse before insert on public.ledger for each row execute function public.refuse()`); err != nil {
					t.Fatal(err)
				}
				c.body = insert
			}
			var executed atomic.Int64
			charge := workflow.DefineActivity("charge", func(ctx context.Context, _ int) (int, error) {
				n := int(executed.Add(1))
				return n, c.body(ctx, n)
			}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1}))
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
			w := startWorker(t, pool, []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := run.Result(ctx); err != nil || got != 3 {
				t.Errorf("got %d, %v, want the result of execution 3", got, err)
			}
			info, err := w.Get(ctx, run.ID())
			if err != nil || info.Interruptions != 2 {
				t.Errorf("%d interruptions, %v; want 2", info.Interruptions, err)
			}
			if n := count(t, pool, "select count(*) from public.ledger"); n != 1 {
				t.Errorf("%d entries, want 1", n)
			}
		})
	}
}

// What can never be recorded makes the run stuck, with the database's words, when its budget is spent; Retry begins anew.
func TestInterruptionsHaveABudget(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed atomic.Int64
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return int(executed.Add(1)), nil }, workflow.WithTransaction())
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
	const budget = 2
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxInterruptions = budget }))
	allow := refuse(t, pool, "history", "insert", "53100", -1)
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	stuck := new(workflow.RunError)
	if !errors.As(err, &stuck) || stuck.Status != workflow.StatusStuck || !errors.Is(err, workflow.ErrInterrupted) ||
		!contains(stuck.Message, "not now, says the test", "charge", "Engine.Retry") {
		t.Fatalf("got %v, want it stuck with the database's words", err)
	}
	if n := executed.Load(); n != budget+1 {
		t.Errorf("executed %d times, want %d", n, budget+1)
	}
	allow()
	if err := w.Retry(ctx, run.ID()); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != budget+2 {
		t.Errorf("got %d, %v after Retry, want %d", got, err, budget+2)
	}
}

// A value that can never be stored is not tried again: the run is stuck at once.
func TestAValueThatCannotBeStoredMakesTheRunStuckAtOnce(t *testing.T) {
	t.Parallel()
	for _, code := range []string{"22001", "22P05", "54000"} {
		for _, transactional := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s transactional %t", code, transactional), func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				var executed atomic.Int64
				var options []workflow.ActivityOption
				if transactional {
					options = append(options, workflow.WithTransaction())
				}
				charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return int(executed.Add(1)), nil }, options...)
				flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
				w := startWorker(t, pool, []workflow.Definition{flow})
				defer refuse(t, pool, "history", "insert", code, -1)()
				ctx := testContext(t)
				run, err := flow.Start(ctx, w.Engine, 1)
				if err != nil {
					t.Fatal(err)
				}
				stuck := new(workflow.RunError)
				if _, err := run.Result(ctx); !errors.As(err, &stuck) || stuck.Status != workflow.StatusStuck || !contains(stuck.Message, code) ||
					contains(stuck.Message, "not now, says the test") == (code[:2] == "22") {
					t.Errorf("got %v, want it stuck", err)
				}
				if n := executed.Load(); n != 1 {
					t.Errorf("executed %d times, want once", n)
				}
			})
		}
	}
}

// What the body of a transactional activity has cost is a failed attempt of its policy: a session that the server has ended because
// the body left it idle, a statement of its own that timed out or failed and whose error it does not return, a deferred constraint.
func TestWhatABodyHasCostIsAFailedAttempt(t *testing.T) {
	t.Parallel()
	exec := func(statement string) func(ctx context.Context) error {
		return func(ctx context.Context) error {
			tx := workflow.Tx(ctx)
			_, _ = tx.Exec(ctx, statement) // what it returns is lost, which is the mistake
			return nil
		}
	}
	for name, body := range map[string]func(ctx context.Context) error{
		"it idles":                    func(context.Context) error { time.Sleep(900 * time.Millisecond); return nil },
		"its statement has failed":    exec("select 1 / 0"),
		"its statement has timed out": exec("set local statement_timeout = '50ms'; select pg_sleep(10)"),
		"its statement's context has ended": func(ctx context.Context) error {
			tx := workflow.Tx(ctx)
			ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			_, _ = tx.Exec(ctx, "select pg_sleep(10)")
			return nil
		},
		"a deferred constraint": func(ctx context.Context) error {
			tx := workflow.Tx(ctx)
			_, err := tx.Exec(ctx, "insert into public.once (id) values (1), (1)")
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, func(c *pgxpool.Config) {
				c.ConnConfig.RuntimeParams["idle_in_transaction_session_timeout"] = "500ms"
			})
			if _, err := pool.Exec(testContext(t), "create table public.once (id int unique deferrable initially deferred)"); err != nil {
				t.Fatal(err)
			}
			var executed atomic.Int64
			charge := workflow.DefineActivity("charge", func(ctx context.Context, _ int) (int, error) {
				executed.Add(1)
				return 0, body(ctx)
			}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 3, InitialInterval: time.Millisecond}))
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) { return charge.Execute(ctx, n) })
			w := startWorker(t, pool, []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			failed := new(workflow.RunError)
			if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusFailed {
				t.Errorf("got %v, want it failed", err)
			}
			if n := executed.Load(); n != 3 {
				t.Errorf("executed %d times, want the 3 of its policy", n)
			}
			if info, err := w.Get(ctx, run.ID()); err != nil || info.Interruptions != 0 {
				t.Errorf("%d interruptions, %v; want none", info.Interruptions, err)
			}
		})
	}
}

// contains reports whether text has all the parts.
func contains(text string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
}
