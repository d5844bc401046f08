package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// unencodable is a value whose own code fails, or worse, when it is recorded.
type unencodable struct{ how string }

func (u unencodable) MarshalJSON() ([]byte, error) {
	switch u.how {
	case "fails":
		return nil, workflow.NewError("secret", "not for the record")
	case "panics":
		panic("not for the record")
	}
	runtime.Goexit()
	return nil, nil
}

// failingValues are functions for a side effect, by how they fail.
func failingValues() map[string]func(declined error) (any, error) {
	return map[string]func(declined error) (any, error){
		"typed":          func(declined error) (any, error) { return 0, declined },
		"wrapped":        func(declined error) (any, error) { return 0, fmt.Errorf("draw: %w", declined) },
		"untyped":        func(error) (any, error) { return 0, errors.New("out of paper") },
		"too large":      func(error) (any, error) { return strings.Repeat("a", workflow.MaxPayload), nil },
		"deadline":       func(error) (any, error) { return 0, context.DeadlineExceeded },
		"panic":          func(error) (any, error) { panic("no dice") },
		"goexit":         func(error) (any, error) { runtime.Goexit(); return 0, nil },
		"encoder fails":  func(error) (any, error) { return unencodable{"fails"}, nil },
		"encoder panics": func(error) (any, error) { return unencodable{"panics"}, nil },
		"encoder leaves": func(error) (any, error) { return unencodable{"leaves"}, nil },
	}
}

// A recorded value that could not be made is recorded as that: when it is replayed the workflow is told the same, asks errors.Is and
// errors.As the same, and its function is not called again.
func TestFailureOfARecordedValueIsTheSameLiveAndReplayed(t *testing.T) {
	t.Parallel()
	declined := workflow.NewError("declined", "not today").WithDetails(map[string]int{"a": 1})
	for how, fail := range failingValues() {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			var made tally
			var seen journey
			flow := workflow.Define("drawing", func(ctx *workflow.Context, _ int) (int, error) {
				seen.begin()
				_, err := workflow.SideEffect(ctx, "draw", func() (any, error) {
					made.add("draw")
					return fail(declined)
				})
				failure := new(workflow.SideEffectError)
				seen.notef("declined %v, too large %v, deadline %v, as SideEffectError %v: %+v, says %q", errors.Is(err, declined),
					errors.Is(err, workflow.ErrTooLarge), errors.Is(err, context.DeadlineExceeded), errors.As(err, &failure), *failure, fmt.Sprint(err))
				if failure.SideEffect != "draw" || failure.Type == "" {
					return 0, fmt.Errorf("got %w", err)
				}
				if _, err := workflow.Now(ctx); err != nil {
					return 0, err
				}
				_, err = workflow.Receive[int](ctx, "go")
				return 1, err
			})
			if got := passOn(testContext(t), t, flow); got != 1 {
				t.Errorf("it returned %d", got)
			}
			executions := seen.executions()
			executions = slices.DeleteFunc(executions, func(seen []string) bool { return len(seen) == 0 }) // ended by the function
			if len(executions) < 2 {
				t.Fatal("nothing was replayed, so nothing was tested")
			}
			if live, replayed := executions[0], executions[len(executions)-1]; !slices.Equal(live, replayed) {
				t.Errorf("live the workflow saw\n%q\nand replayed\n%q", live, replayed)
			}
			if n := made.of("draw"); n != 1 {
				t.Errorf("the function was called %d times", n)
			}
		})
	}
}

// A run fails by a recorded value that could not be made, and its first attempt to undo what it has done fails. Another worker goes on,
// and undoes it once.
func TestRunThatFailedByARecordedValueIsUndoneElsewhere(t *testing.T) {
	t.Parallel()
	for how, fail := range failingValues() {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			var refunded tally
			charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return 5, nil },
				workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5, InitialInterval: 10 * time.Second, MaxInterval: 10 * time.Second})).
				WithCompensation(func(context.Context, int, int) error {
					if refunded.add("attempts") == 1 {
						return errors.New("the bank is closed")
					}
					refunded.add("done")
					return nil
				})
			flow := workflow.Define("paying", func(ctx *workflow.Context, n int) (int, error) {
				if _, err := charge.Execute(ctx, n); err != nil {
					return 0, err
				}
				_, err := workflow.SideEffect(ctx, "draw", func() (any, error) { return fail(errors.New("no luck")) })
				return 0, err
			})
			one := startWorker(t, pool, []workflow.Definition{flow})
			run, err := flow.Start(ctx, one.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "the first attempt to undo has failed", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1
			})
			one.shutdown(t)
			bringForward(t, pool, run.ID())
			two := startWorker(t, pool, []workflow.Definition{flow})
			_, err = flow.Run(two.Engine, run.ID()).Result(ctx)
			failed := new(workflow.RunError)
			if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || len(failed.CompensationErrors) != 0 {
				t.Errorf("got %v, want a failed run that is undone", err)
			}
			if n := refunded.of("done"); n != 1 {
				t.Errorf("refunded %d times", n)
			}
		})
	}
}

// bringForward makes a waiting run due.
func bringForward(t *testing.T, pool *pgxpool.Pool, id string) {
	t.Helper()
	if _, err := pool.Exec(testContext(t), `
		with due as (update romancy.instances set wake_at = clock_timestamp() where id = $1 and status = 'waiting' returning id)
		update romancy.attempts a set next_at = clock_timestamp() from due where a.instance_id = due.id`, id); err != nil {
		t.Fatal(err)
	}
}

// A history of a former version has no record of a recorded value that could not be made; that the run failed follows at once.
func TestRunThatAFormerVersionFailedByARecordedValueIsUndone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	var refunded tally
	charge := workflow.DefineActivity("charge", func(context.Context, int) (int, error) { return 5, nil }).
		WithCompensation(func(ctx context.Context, _, _ int) error {
			refunded.add(workflow.ActivityInfo(ctx).InstanceID)
			return nil
		})
	flow := workflow.Define("paying", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := charge.Execute(ctx, n); err != nil {
			return 0, err
		}
		_, err := workflow.SideEffect(ctx, "draw", func() (int, error) { return 0, errors.New("no luck") })
		return 0, err
	})
	histories := map[string]int{"after an error": 2, "after a panic": 3}
	for id, position := range histories {
		if _, err := pool.Exec(ctx, `
			with run as (
				insert into romancy.instances (id, workflow, status, token, ready_at, input, compensating)
				values ($1, 'paying', 'ready', 2, clock_timestamp(), '1', true)
			)
			insert into romancy.history (instance_id, position, token, kind, name, payload) values
				($1, 1, 1, 'activity', 'charge', '{"output":5}'),
				($1, $2, 1, 'failing', '', '{"type":"*errors.errorString","message":"no luck"}')`, id, position); err != nil {
			t.Fatal(err)
		}
	}
	w := startWorker(t, pool, []workflow.Definition{flow})
	for id := range histories {
		_, err := flow.Run(w.Engine, id).Result(ctx)
		failed := new(workflow.RunError)
		if !errors.As(err, &failed) || failed.Status != workflow.StatusFailed || failed.Message != "no luck" || refunded.of(id) != 1 {
			t.Errorf("%s: got %v, refunded %d times", id, err, refunded.of(id))
		}
	}
}

// Retry attempts again to make a recorded value that could not be made, if nothing follows from that.
func TestRetryMakesARecordedValueThatHadFailed(t *testing.T) {
	t.Parallel()
	var made tally
	flow := workflow.Define("drawing", func(ctx *workflow.Context, goesOn bool) (int, error) {
		value, err := workflow.SideEffect(ctx, "draw", func() (int, error) {
			if made.add(ctx.InstanceID()) == 1 {
				return 0, errors.New("no luck")
			}
			return 7, nil
		})
		if err != nil && goesOn {
			err = errors.Join(err, workflow.Publish(ctx, "failed", 1))
		}
		return value, err
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	ctx := testContext(t)
	for _, goesOn := range []bool{false, true} {
		run, err := flow.Start(ctx, w.Engine, goesOn)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := run.Result(ctx); err == nil {
			t.Fatal("the run completed")
		}
		err = w.Retry(ctx, run.ID())
		if goesOn {
			if said := `side effect "draw" at position 1 has failed (no luck), and history goes on after it to position 2`; !errors.Is(err, workflow.ErrNotRetryable) || !strings.Contains(err.Error(), said) {
				t.Errorf("got %v, want it to say %s", err, said)
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if got, err := run.Result(ctx); err != nil || got != 7 {
			t.Errorf("got %d, %v", got, err)
		}
	}
}

// undecodable is a result whose own code panics when it is read back.
type undecodable struct{}

func (undecodable) MarshalJSON() ([]byte, error) { return []byte("1"), nil }

func (u *undecodable) UnmarshalJSON([]byte) error { panic("cannot read it") }

// A result whose decoding panics leaves the run stuck, as one that cannot be decoded does: the step is not forgotten.
func TestResultWhoseDecodingPanicsLeavesTheRunStuck(t *testing.T) {
	t.Parallel()
	charge := workflow.DefineActivity("charge", func(context.Context, int) (undecodable, error) { return undecodable{}, nil }).
		WithCompensation(func(context.Context, int, undecodable) error { return nil })
	flow := workflow.Define("paying", func(ctx *workflow.Context, n int) (int, error) {
		_, err := charge.Execute(ctx, n)
		return 1, err
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	_, err = run.Result(ctx)
	failed := new(workflow.RunError)
	if !errors.As(err, &failed) || failed.Status != workflow.StatusStuck || !strings.Contains(err.Error(), "panic while decoding: with a string, whose text may quote it and is withheld") {
		t.Errorf("got %v, want a stuck run", err)
	}
}
