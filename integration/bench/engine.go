package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/workflow"
)

const stepsPerRun = 5

var step = workflow.DefineActivity("step", func(_ context.Context, n int) (int, error) { return n + 1, nil })

var fiveSteps = workflow.Define("five_steps", func(ctx *workflow.Context, n int) (int, error) {
	for range stepsPerRun {
		var err error
		if n, err = step.Execute(ctx, n); err != nil {
			return n, err
		}
	}
	return n, nil
})

// resumed tells the bench when a waiting run went on.
var resumed = make(chan time.Time, 1)

var waiter = workflow.Define("waiter", func(ctx *workflow.Context, rounds int) (int, error) {
	for range rounds {
		if _, err := workflow.Receive[int](ctx, "go"); err != nil {
			return 0, err
		}
		resumed <- time.Now()
	}
	return rounds, nil
})

// runEngine measures throughput and wake-up against plain statements on the same server: the least that any engine with
// one durable write a step could do one run at a time.
func runEngine(ctx context.Context, b *bench) (err error) {
	url, drop, err := b.server.CreateDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	pool, err := pgxpool.New(ctx, url)
	if err != nil {
		return err
	}
	defer pool.Close()
	worker, err := startApp(ctx, pool)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, worker.Shutdown(context.WithoutCancel(ctx))) }()
	client, err := startApp(ctx, pool, romancy.WithClientOnly())
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, client.Shutdown(context.WithoutCancel(ctx))) }()

	bare, err := bareInserts(ctx, pool, b.span(5*time.Second))
	if err != nil {
		return err
	}
	b.report("engine_bare_1_per_second", bare, "runs/s", "plain inserts, 7 commits a run, 1 in flight")
	for _, inFlight := range []int{1, 50, 500} {
		rate, commits, err := throughput(ctx, worker.Engine(), inFlight, b.span(10*time.Second))
		if err != nil {
			return err
		}
		name := fmt.Sprintf("engine_w1_%d", inFlight)
		b.report(name+"_per_second", rate, "runs/s", fmt.Sprintf("5-step runs, %d in flight", inFlight))
		b.report(name+"_ratio_bare", rate/bare, "x", "  against plain inserts one at a time")
		b.report(name+"_commits_per_workflow", commits, "commits", "  commits of the engine a run")
	}
	return wakeUp(ctx, b, worker.Engine(), client.Engine())
}

func startApp(ctx context.Context, pool *pgxpool.Pool, options ...romancy.Option) (*romancy.App, error) {
	app := romancy.NewApp(append(options,
		romancy.WithPool(pool), romancy.WithWorkflows(fiveSteps, waiter), romancy.WithAutoMigrate(),
		romancy.WithLogger(slog.New(slog.DiscardHandler)))...)
	if err := app.Start(ctx); err != nil {
		return nil, err
	}
	return app, nil
}

// bareInserts is a run as seven commits on one connection: start, five steps, end.
func bareInserts(ctx context.Context, pool *pgxpool.Pool, span time.Duration) (perSecond float64, err error) {
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return 0, err
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "create table bare (id bigint generated always as identity primary key, payload json)"); err != nil {
		return 0, err
	}
	runs, begun := 0, time.Now()
	for time.Since(begun) < span {
		for range stepsPerRun + 2 {
			if _, err := conn.Exec(ctx, "insert into bare (payload) values ($1)", `{"output":1}`); err != nil {
				return 0, err
			}
		}
		runs++
	}
	return float64(runs) / time.Since(begun).Seconds(), nil
}

// throughput keeps inFlight runs going for span.
func throughput(ctx context.Context, engine *workflow.Engine, inFlight int, span time.Duration) (perSecond, commits float64, err error) {
	var done atomic.Int64
	var failed atomic.Pointer[error]
	before := engine.Status().Commits
	begun := time.Now()
	var wg sync.WaitGroup
	for range inFlight {
		wg.Go(func() {
			for time.Since(begun) < span && failed.Load() == nil {
				run, err := fiveSteps.Start(ctx, engine, 0)
				if err == nil {
					_, err = run.Result(ctx)
				}
				if err != nil {
					failed.Store(&err)
					return
				}
				done.Add(1)
			}
		})
	}
	wg.Wait()
	if failure := failed.Load(); failure != nil {
		return 0, 0, *failure
	}
	runs := float64(done.Load())
	return runs / time.Since(begun).Seconds(), float64(engine.Status().Commits-before) / runs, nil
}

// wakeUp measures from the return of a send in one engine to the next line of the run in another.
func wakeUp(ctx context.Context, b *bench, worker, client *workflow.Engine) error {
	rounds := 500
	if b.quick {
		rounds = 100
	}
	run, err := waiter.Start(ctx, worker, rounds)
	if err != nil {
		return err
	}
	samples := make([]time.Duration, 0, rounds)
	for range rounds {
		for worker.Status().Parked == 0 { // the run is on its way back to its wait
			time.Sleep(time.Millisecond)
		}
		time.Sleep(5 * time.Millisecond) // and the look after parking is over
		if err := client.SendTo(ctx, run.ID(), "go", 1); err != nil {
			return err
		}
		committed := time.Now()
		select {
		case at := <-resumed:
			samples = append(samples, max(at.Sub(committed), 0))
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if _, err := run.Result(ctx); err != nil {
		return err
	}
	b.report("engine_w2_p50", percentile(samples, 0.50), "ms", "send committed to the receiver's next line, p50")
	b.report("engine_w2_p99", percentile(samples, 0.99), "ms", "  p99")
	return nil
}
