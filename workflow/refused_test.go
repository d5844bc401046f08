package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
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
				if _, err := run.Result(ctx); !errors.As(err, &stuck) || stuck.Status != workflow.StatusStuck || !contains(stuck.Message, "not now, says the test") {
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

// A lock on the whole table, as CREATE INDEX takes it, costs time and nothing else.
func TestALockOnHistoryCostsTimeOnly(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	charge := workflow.DefineActivity("charge", func(_ context.Context, n int) (int, error) {
		executed.add(fmt.Sprint("charge ", n))
		time.Sleep(10 * time.Millisecond)
		return n, nil
	}).WithCompensation(func(_ context.Context, n, _ int) error { executed.add(fmt.Sprint("refund ", n)); return nil })
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		beside := charge.Go(ctx, 2*n)
		if _, err := charge.Execute(ctx, 2*n+1); err != nil {
			return 0, err
		}
		if _, err := beside.Get(ctx); err != nil {
			return 0, err
		}
		return 0, errors.New("undo it")
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Lease = 2 * time.Second }))
	ctx := testContext(t)
	lock, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = lock.Rollback(ctx) }()
	if _, err := lock.Exec(ctx, "lock table romancy.history in share mode"); err != nil {
		t.Fatal(err)
	}
	const runs = 50
	var started []*workflow.Run[int]
	for n := range runs {
		run, err := flow.Start(ctx, w.Engine, n)
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, run)
	}
	// Longer than the lease, and than a flush waits for a lock.
	time.Sleep(4 * time.Second)
	if err := lock.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	for _, run := range started {
		failed := new(workflow.RunError)
		if _, err := run.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message != "undo it" {
			t.Fatalf("got %v", err)
		}
	}
	for n := range 2 * runs {
		if c, r := executed.of(fmt.Sprint("charge ", n)), executed.of(fmt.Sprint("refund ", n)); c != 1 || r != 1 {
			t.Errorf("charged %d times and refunded %d times", c, r)
		}
	}
	if n := count(t, pool, "select count(*) from romancy.workers"); n != 1 {
		t.Errorf("%d workers were registered, want the one: its lease was free", n)
	}
}

// The engine's sessions are ended by force while a run's row is held, at what follows a step: nothing that has returned is executed again.
func TestAKilledSessionThrowsNothingAway(t *testing.T) {
	t.Parallel()
	for name, next := range map[string]func(ctx *workflow.Context) error{
		"the end": func(*workflow.Context) error { return nil },
		"receive": func(ctx *workflow.Context) error { _, err := workflow.Receive[int](ctx, "go"); return err },
		"sleep":   func(ctx *workflow.Context) error { return workflow.Sleep(ctx, time.Millisecond) },
		"publish": func(ctx *workflow.Context) error { return workflow.Publish(ctx, "news", 1) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			var executed atomic.Int64
			returned, entered := make(chan struct{}), make(chan struct{})
			charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) {
				if executed.Add(1) == 1 {
					close(entered)
					<-returned
				}
				return 1, nil
			})
			flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
				got, err := charge.Execute(ctx, n)
				if err != nil {
					return 0, err
				}
				return got, next(ctx)
			})
			w := startWorker(t, pool, []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			<-entered
			held := holdRow(t, pool, run.ID())
			close(returned)
			eventually(t, "the flush waits for the row", func() bool {
				return count(t, pool, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% engine' and wait_event_type = 'Lock'") > 0
			})
			if n := pgtest.KillBackends(t, pool, "% engine"); n == 0 {
				t.Error("the engine had no session to kill")
			}
			if err := held.Rollback(ctx); err != nil {
				t.Fatal(err)
			}
			if name == "receive" {
				if err := w.SendTo(ctx, run.ID(), "go", 1); err != nil {
					t.Fatal(err)
				}
			}
			if got, err := run.Result(ctx); err != nil || got != 1 {
				t.Errorf("got %d, %v", got, err)
			}
			if n := executed.Load(); n != 1 {
				t.Errorf("executed %d times, want once", n)
			}
		})
	}
}

// contains reports whether text has all the parts.
func contains(text string, parts ...string) bool {
	return !slices.ContainsFunc(parts, func(part string) bool { return !strings.Contains(text, part) })
}

func holdRow(t *testing.T, pool *pgxpool.Pool, id string) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(testContext(t), "select from romancy.instances where id = $1 for update", id); err != nil {
		t.Fatal(err)
	}
	return tx
}

// Twenty kills of the engine's sessions under load execute nothing twice that has returned, and send and receive nothing twice.
func TestKillsUnderLoadExecuteNothingTwice(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	runs, kills := pgtest.Soak(4000, 400), pgtest.Soak(20, 10)
	var mu sync.Mutex
	executed := map[int]int{}
	charge := workflow.DefineActivity("charge", func(_ context.Context, n int) (int, error) {
		mu.Lock()
		defer mu.Unlock()
		executed[n]++
		return n, nil
	})
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		beside := charge.Go(ctx, 5*n)
		for i := 1; i < 4; i++ {
			if _, err := charge.Execute(ctx, 5*n+i); err != nil {
				return 0, err
			}
		}
		if err := workflow.SendTo(ctx, ctx.InstanceID(), "self", n); err != nil {
			return 0, err
		}
		if _, err := workflow.Receive[int](ctx, "self"); err != nil {
			return 0, err
		}
		if err := workflow.Sleep(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
		if _, err := beside.Get(ctx); err != nil {
			return 0, err
		}
		_, err := charge.Execute(ctx, 5*n+4)
		return n, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxConcurrentRuns = 100 }))
	ctx := testContext(t)
	var done atomic.Int64
	var all sync.WaitGroup
	for n := range runs {
		all.Go(func() {
			run, err := startAnyhow(ctx, flow, w.Engine, n)
			if err == nil {
				_, err = run.Result(ctx)
			}
			if err != nil {
				t.Errorf("run %d: %v", n, err)
			}
			done.Add(1)
		})
	}
	for kill := range kills {
		eventually(t, "a part of the runs has ended", func() bool { return int(done.Load()) >= kill*runs/(kills+1) })
		pgtest.KillBackends(t, pool, "% engine")
	}
	all.Wait()
	twice := 0
	for n, times := range executed {
		if times != 1 {
			twice++
			t.Logf("charge %d was executed %d times", n, times)
		}
	}
	if twice > 0 || len(executed) != 5*runs {
		t.Errorf("%d of %d charges were executed more than once, want %d charges once each", twice, len(executed), 5*runs)
	}
}

// startAnyhow starts a run under an id, again for as long as an answer is lost.
func startAnyhow(ctx context.Context, flow *workflow.Workflow[int, int], e *workflow.Engine, n int) (*workflow.Run[int], error) {
	for {
		run, err := flow.Start(ctx, e, n, workflow.WithID(fmt.Sprint("order-", n)))
		if err == nil || ctx.Err() != nil || !errors.Is(err, workflow.ErrOutcomeUnknown) {
			return run, err
		}
	}
}

// Ids that another transaction holds delay nobody but those who ask for them.
func TestHeldIDsDelayNobodyElse(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	holder, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holder.Rollback(ctx) }()
	const held = 100
	var waiting sync.WaitGroup
	for n := range held {
		if _, err := flow.StartTx(ctx, holder, w.Engine, n, workflow.WithID(fmt.Sprint("held-", n))); err != nil {
			t.Fatal(err)
		}
	}
	for n := range held {
		waiting.Go(func() {
			if run, err := flow.Start(ctx, w.Engine, n, workflow.WithID(fmt.Sprint("held-", n))); err != nil || !run.Existing() {
				t.Errorf("start of a held id: %v, want the run that was started meanwhile", err)
			}
		})
	}
	eventually(t, "somebody waits for a held id", func() bool {
		return count(t, pool, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% engine' and wait_event_type = 'Lock'") > 0
	})
	// More than they, one after the other, may wait in a minute if each had to be waited for.
	for n := range 20 {
		began := time.Now()
		run, err := flow.Start(ctx, w.Engine, n, workflow.WithID(fmt.Sprint("free-", n)))
		if err != nil {
			t.Fatal(err)
		}
		t.Logf("a free id took %s", time.Since(began))
		if err := w.Cancel(ctx, run.ID(), "no more"); err != nil && !errors.Is(err, workflow.ErrEnded) {
			t.Fatal(err)
		}
	}
	if err := holder.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	waiting.Wait()
}
