package workflow

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// startAlone starts an engine that is told nothing: what it does, it does by itself. Its heartbeats, which now and then have
// it look at everything, are far apart.
func startAlone(t *testing.T, config Config) *Engine {
	t.Helper()
	config.Lease = time.Hour
	engine, err := NewEngine(config)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := engine.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := engine.Shutdown(ctx); err != nil {
			t.Error(err)
		}
	})
	return engine
}

// remembered is how many deadlines the engine keeps: of cold runs, and in the heap.
func (e *Engine) remembered() (cold, heap int) {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.cache.cold), e.cache.deadlines.Len()
}

// Runs that were evicted, or begin later, cost no memory for as long as they are not due: there may be millions of them, and who
// claims or cancels them may be another worker.
func TestDeadlinesFarAwayAreNotKeptInMemory(t *testing.T) {
	t.Parallel()
	const month, runs, cached = 30 * 24 * time.Hour, 2500, 10
	flow := Define("waits", func(ctx *Context, _ int) (int, error) {
		_, err := Receive[int](ctx, "silence", WithTimeout(month))
		return 0, err
	})
	engine := startAlone(t, Config{Pool: pgtest.Pool(t), Workflows: []Definition{flow}, CacheSize: cached})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var parking, later []StartRequest[int]
	for i := range runs {
		parking = append(parking, StartRequest[int]{Input: i})
		later = append(later, StartRequest[int]{Input: i, Options: []StartOption{WithDelay(month)}})
	}
	for _, requests := range [][]StartRequest[int]{parking, later} {
		if _, err := flow.StartMany(ctx, engine, requests); err != nil {
			t.Fatal(err)
		}
	}
	for engine.Status().Evicted < runs-cached {
		select {
		case <-ctx.Done():
			t.Fatalf("only %d runs were evicted", engine.Status().Evicted)
		case <-time.After(5 * time.Millisecond):
		}
	}
	cold, heap := engine.remembered()
	if cold != 0 {
		t.Errorf("%d deadlines of cold runs are kept in memory, all of them a month away", cold)
	}
	if most := 2*cached + minDeadlines + 1; heap > most {
		t.Errorf("the heap has %d entries for %d runs in memory, want %d at most", heap, cached, most)
	}
}

// startLater has runs begin in three hours, which is not soon, and then has their moments come: in a second, in two, and so on.
func startLater(ctx context.Context, t *testing.T, pool *pgxpool.Pool, engine *Engine, flow *Workflow[int, int], runs int) (started []*Run[int]) {
	t.Helper()
	for i := range runs {
		run, err := flow.Start(ctx, engine, i, WithID(fmt.Sprint("run-", i)), WithDelay(3*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, run)
	}
	if cold, _ := engine.remembered(); cold != 0 {
		t.Fatalf("%d moments in three hours are kept in memory", cold)
	}
	if _, err := pool.Exec(ctx, `update romancy.instances
		set wake_at = clock_timestamp() + (1 + substr(id, 5)::integer) * interval '1 second'`); err != nil {
		t.Fatal(err)
	}
	return started
}

// A moment that was too far away when its run was stored is armed by a look before it comes, and one that comes beyond what
// a look takes by another. The looks from time to time are an hour apart, so whatever else would find it comes too late.
func TestDeadlinesComeFromTheDatabaseInTime(t *testing.T) {
	t.Parallel()
	for name, limit := range map[string]int{"all at once": maxArmed, "a few at a time": 2} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			flow := Define("later", func(_ *Context, n int) (int, error) { return n, nil })
			pool := pgtest.Pool(t)
			engine := startAlone(t, Config{Pool: pool, Workflows: []Definition{flow}, FallbackInterval: time.Hour})
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			started := startLater(ctx, t, pool, engine, flow, 3)
			if _, err := engine.armNext(ctx, limit); err != nil {
				t.Fatal(err)
			}
			for i, run := range started {
				if got, err := run.Result(ctx); err != nil || got != i {
					t.Errorf("got %d, %v", got, err)
				}
			}
			if cold, _ := engine.remembered(); cold != 0 {
				t.Errorf("%d moments that have come are still kept", cold)
			}
		})
	}
}

// A timer of an evicted run that is due before the next look is kept: nothing else would be there in time.
func TestDeadlineOfAnEvictedRunThatIsDueSoonIsKept(t *testing.T) {
	t.Parallel()
	flow := Define("waits", func(ctx *Context, _ int) (int, error) {
		_, err := Receive[int](ctx, "silence", WithTimeout(2*time.Second))
		if !errors.Is(err, ErrTimeout) {
			return 0, fmt.Errorf("receive: %w", err)
		}
		return 1, nil
	})
	engine := startAlone(t, Config{Pool: pgtest.Pool(t), Workflows: []Definition{flow}, CacheSize: 1, FallbackInterval: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var started []*Run[int]
	for i := range 5 {
		run, err := flow.Start(ctx, engine, i)
		if err != nil {
			t.Fatal(err)
		}
		started = append(started, run)
	}
	for _, run := range started {
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if engine.Status().Evicted == 0 {
		t.Error("nothing was evicted: this test shows nothing")
	}
}
