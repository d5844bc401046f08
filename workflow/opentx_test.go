package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A caller's transaction in which runs were started and messages were published and sent stays open for long. Until its commit
// nobody hears of them, and nobody is delayed: neither runs that receive the same channels' messages from others, nor starts of
// other ids. Only a start of the same id waits.
func TestOpenTransactionDelaysOnlyItsOwnMessages(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	open := time.Duration(pgtest.Soak(30, 5)) * time.Second
	const others = 200
	work := workflow.DefineActivity("work", func(_ context.Context, n int) (int, error) { return n, nil })
	write := workflow.DefineActivity("write", func(ctx context.Context, n int) (int, error) {
		_, err := workflow.Tx(ctx).Exec(ctx, "select 1")
		return n, err
	}, workflow.WithTransaction())
	// A run that does everything there is, and competes for jobs with those of the open transaction.
	busy := workflow.Define("busy", func(ctx *workflow.Context, n int) (int, error) {
		if err := workflow.Subscribe(ctx, "jobs", workflow.Competing); err != nil {
			return 0, err
		}
		if _, err := work.Execute(ctx, n); err != nil {
			return 0, err
		}
		if err := workflow.Sleep(ctx, 5*time.Millisecond); err != nil {
			return 0, err
		}
		if _, err := write.Execute(ctx, n); err != nil {
			return 0, err
		}
		job, err := workflow.Receive[string](ctx, "jobs")
		if err != nil || job.Body != "free" {
			return 0, fmt.Errorf("job %q: %w", job.Body, err)
		}
		letter, err := workflow.Receive[int](ctx, "letters")
		return letter.Body, err
	})
	// A run that hears of everything, for ever.
	listener := workflow.Define("listener", func(ctx *workflow.Context, _ string) (int, error) {
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return 0, err
		}
		for {
			for _, channel := range []string{"news", "letters"} {
				if _, err := workflow.Receive[string](ctx, channel); err != nil {
					return 0, err
				}
			}
		}
	})
	competes := workflow.Define("competes", func(ctx *workflow.Context, _ string) (string, error) {
		if err := workflow.Subscribe(ctx, "jobs", workflow.Competing); err != nil {
			return "", err
		}
		job, err := workflow.Receive[string](ctx, "jobs")
		return job.Body, err
	})
	definitions := []workflow.Definition{busy, listener, competes}
	rarely := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	larger := func(c *pgxpool.Config) { c.MaxConns = 10 }
	one := startWorker(t, pgtest.Connect(t, pool.Config().ConnString(), larger), definitions, rarely)
	two := startWorker(t, pgtest.Connect(t, pool.Config().ConnString(), larger), definitions, rarely)
	ctx, cancel := context.WithTimeout(t.Context(), open+patience)
	defer cancel()
	if _, err := listener.Start(ctx, one.Engine, "", workflow.WithID("listener")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the listener is parked", func() bool { return one.Status().Parked == 1 })

	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }() // of no effect after the commit
	late, err := competes.StartTx(ctx, tx, one.Engine, "late", workflow.WithID("late"))
	if err := errors.Join(err,
		one.PublishTx(ctx, tx, "jobs", "late"), one.PublishTx(ctx, tx, "news", "late"), one.SendToTx(ctx, tx, "listener", "letters", "late"),
	); err != nil {
		t.Fatal(err)
	}
	heard := func(what string, times int) {
		t.Helper()
		eventually(t, fmt.Sprintf("the listener has heard %q %d times", what, times), func() bool {
			return count(t, pool, `select count(*) from romancy.history
				where instance_id = 'listener' and kind = 'receive' and payload ->> 'body' = $1`, what) == times
		})
	}
	var duplicate sync.WaitGroup
	duplicate.Go(func() {
		run, err := competes.Start(ctx, two.Engine, "late", workflow.WithID("late"))
		if err != nil || !run.Existing() {
			t.Errorf("start of the id that the transaction holds: existing %v, %v", run != nil && run.Existing(), err)
		}
	})
	began := time.Now()
	for round := 1; round == 1 || time.Since(began) < open; round++ {
		slowest := startBusy(ctx, t, busy, []*worker{one, two}, round, others)
		t.Logf("round %d of %d runs: the slowest took %s", round, others, slowest.Round(time.Millisecond))
		// The listener hears of others as before.
		if err := errors.Join(two.Publish(ctx, "news", "free"), two.SendTo(ctx, "listener", "letters", "free")); err != nil {
			t.Fatal(err)
		}
		heard("free", 2*round)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where id = 'late'"); n != 0 {
		t.Error("the run of the open transaction can be seen")
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	duplicate.Wait()
	if got, err := late.Result(ctx); err != nil || got != "late" {
		t.Errorf("the late run got %q, %v", got, err)
	}
	heard("late", 2)
}

// startBusy has so many runs live from start to end, each with its message and its job, started and told by different workers. It
// returns how long the slowest took.
func startBusy(ctx context.Context, t *testing.T, busy *workflow.Workflow[int, int], workers []*worker, round, runs int) time.Duration {
	t.Helper()
	took := make([]time.Duration, runs)
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() {
			began := time.Now()
			var options []workflow.StartOption
			if i%4 < 2 {
				options = append(options, workflow.WithID(fmt.Sprintf("busy-%d-%d", round, i)))
			}
			run, err := busy.Start(ctx, workers[i%2].Engine, i, options...)
			if err != nil {
				t.Error(err)
				return
			}
			other := workers[1-i%2]
			if err := errors.Join(other.Publish(ctx, "jobs", "free"), other.SendTo(ctx, run.ID(), "letters", i)); err != nil {
				t.Error(err)
				return
			}
			if got, err := run.Result(ctx); err != nil || got != i {
				t.Errorf("run %d got %d, %v", i, got, err)
			}
			took[i] = time.Since(began)
		})
	}
	wg.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return slices.Max(took)
}
