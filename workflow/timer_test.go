package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A sleep until a moment that has passed takes its place in history like any other, so that the sleep after it, replayed, does
// not take that place for its own.
func TestSleepUntilThePastTakesItsPlace(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("late", func(ctx *workflow.Context, _ int) (string, error) {
		if err := workflow.SleepUntil(ctx, time.Date(2001, 1, 1, 0, 0, 0, 0, time.UTC)); err != nil {
			return "", err
		}
		if err := workflow.Sleep(ctx, -time.Second); err != nil {
			return "", err
		}
		return "slept", workflow.Sleep(ctx, time.Hour)
	})
	const asleep = `select count(*) from romancy.instances where status = 'waiting' and wake_at > clock_timestamp() + interval '50 minutes'
		and (select string_agg(position || ' ' || name, ', ' order by position) from romancy.history) = '1 sleep_until, 2 sleep, 3 sleep'`
	ctx := testContext(t)
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run sleeps for an hour", func() bool { return count(t, pool, asleep) == 1 })
	one.shutdown(t)
	// Somebody makes it ready too early: it is replayed, and sleeps on.
	if _, err := pool.Exec(ctx, "update romancy.instances set status = 'ready', wake_at = null, wake_position = null"); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	eventually(t, "the run sleeps again", func() bool { return count(t, pool, asleep) == 1 && two.Status().Parked == 1 })
	if two.Status().Replayed != 1 {
		t.Error("nothing was replayed, so nothing was tested")
	}
	two.shutdown(t)
	for _, statement := range []string{
		"update romancy.instances set wake_at = clock_timestamp() - interval '1 second'",
		"update romancy.history set payload = json_build_object('fires_at_us', (extract(epoch from clock_timestamp()) * 1000000)::bigint - 1000000) where position = 3",
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	three := startWorker(t, pool, []workflow.Definition{flow})
	if got, err := flow.Run(three.Engine, run.ID()).Result(ctx); err != nil || got != "slept" {
		t.Errorf("got %q, %v", got, err)
	}
}

// A timeout fires when it is due on a cluster where nothing else happens: for a run held in memory, for one that was evicted, and
// for one whose worker has left.
func TestReceiveTimeoutFiresOnTimeOnAnIdleCluster(t *testing.T) {
	t.Parallel()
	flow := workflow.Define("patient", func(ctx *workflow.Context, _ int) (int, error) {
		_, err := workflow.Receive[int](ctx, "silence", workflow.WithTimeout(2*time.Second))
		if !errors.Is(err, workflow.ErrTimeout) {
			return 0, fmt.Errorf("receive: %w", err)
		}
		return 1, nil
	})
	// Nobody looks for a long time, unless something tells it to. The lease is how long a worker that left may go unnoticed.
	idle := func(cacheSize int) workerOption {
		return configured(func(c *workflow.Config) {
			c.FallbackInterval, c.CacheSize, c.Lease = time.Hour, cacheSize, 3*time.Second
		})
	}
	for name, test := range map[string]struct {
		cache  int
		leaves bool
	}{
		"in memory": {cache: 100}, "evicted": {cache: 1}, "its worker has left": {cache: 100, leaves: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			one := startWorker(t, pool, []workflow.Definition{flow}, idle(test.cache))
			two := startWorker(t, pool, []workflow.Definition{flow}, idle(test.cache))
			ctx := testContext(t)
			const runs = 5
			var started []*workflow.Run[int]
			for i := range runs {
				run, err := flow.Start(ctx, one.Engine, i)
				if err != nil {
					t.Fatal(err)
				}
				started = append(started, flow.Run(two.Engine, run.ID()))
			}
			if test.leaves {
				eventually(t, "all are parked", func() bool { return one.Status().Parked == runs })
				one.shutdown(t)
			}
			for _, run := range started {
				if _, err := run.Result(ctx); err != nil {
					t.Fatal(err)
				}
			}
			var late time.Duration
			if err := pool.QueryRow(ctx, `select max(r.created_at - (to_timestamp(0) + (h.payload ->> 'fires_at_us')::bigint * interval '1 microsecond'))
				from romancy.history h join romancy.history r using (instance_id)
				where h.kind = 'timer' and r.kind = 'receive'`).Scan(&late); err != nil {
				t.Fatal(err)
			}
			t.Logf("the latest was late by %s", late)
			// Far beyond any machine's delay, far below what a look from time to time would make of it.
			if late < 0 || late > 20*time.Second {
				t.Errorf("a timeout fired %s late", late)
			}
		})
	}
}

// However many activities hang, in transactions or not, other runs' timers fire: those of parked runs, evicted ones, and others'.
func TestHangingActivitiesDelayNoTimer(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const hanging, sleepers = 40, 60
	leave := make(chan struct{})
	var begun sync.WaitGroup
	begun.Add(hanging)
	body := func(context.Context, int) (int, error) {
		begun.Done()
		<-leave
		return 0, nil
	}
	hang := workflow.DefineActivity("hang", body)
	hangInTransaction := workflow.DefineActivity("hang_in_transaction", func(context.Context, int) (int, error) {
		<-leave
		return 0, nil
	}, workflow.WithTransaction())
	hangs := workflow.Define("hangs", func(ctx *workflow.Context, n int) (int, error) { return hang.Execute(ctx, n) })
	hangsInTransaction := workflow.Define("hangs_in_transaction", func(ctx *workflow.Context, n int) (int, error) {
		return hangInTransaction.Execute(ctx, n)
	})
	sleeps := workflow.Define("sleeps", func(ctx *workflow.Context, n int) (int, error) {
		for range 3 {
			if err := workflow.Sleep(ctx, 50*time.Millisecond); err != nil {
				return 0, err
			}
			_, err := workflow.Receive[int](ctx, "silence", workflow.WithTimeout(50*time.Millisecond))
			if !errors.Is(err, workflow.ErrTimeout) {
				return 0, fmt.Errorf("receive: %w", err)
			}
		}
		return n, nil
	})
	definitions := []workflow.Definition{hangs, hangsInTransaction, sleeps}
	few := configured(func(c *workflow.Config) { c.CacheSize, c.FallbackInterval = 5, time.Hour })
	var workers []*worker
	for range 2 { // each with a pool of its own, as processes have
		workers = append(workers, startWorker(t, pgtest.Connect(t, pool.Config().ConnString()), definitions, few))
	}
	ctx := testContext(t)
	release := sync.OnceFunc(func() { close(leave) })
	t.Cleanup(release) // before the workers are shut down
	for i := range hanging {
		if _, err := hangs.Start(ctx, workers[i%2].Engine, i); err != nil {
			t.Fatal(err)
		}
		if _, err := hangsInTransaction.Start(ctx, workers[i%2].Engine, i); err != nil {
			t.Fatal(err)
		}
	}
	begun.Wait()
	for i := range sleepers {
		if _, err := sleeps.Start(ctx, workers[i%2].Engine, i); err != nil {
			t.Fatal(err)
		}
	}
	waitForRuns(t, pool, sleepers)
	if n := workers[0].Status().Evicted + workers[1].Status().Evicted; n == 0 {
		t.Error("nothing was evicted, so less was tested than should be")
	}
	release()
	waitForRuns(t, pool, sleepers+2*hanging)
}

// A deadline that is further away than the 292 years of a time.Duration, or than PostgreSQL's timestamps go, is
// waited for in silence, in memory and, after a change of workers, out of it.
func TestSleepUntilTheDistantFutureIsQuiet(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("patient", func(ctx *workflow.Context, year int) (int, error) {
		return year, workflow.SleepUntil(ctx, time.Date(year, 1, 1, 0, 0, 0, 0, time.UTC))
	})
	ctx := testContext(t)
	years := []int{2262, 2263, 2400, 9999, 10_000, 289_000, 1_000_000, 1_000_000_000}
	const waiting = "select count(*) from romancy.instances where status = 'waiting' and wake_at > clock_timestamp() + interval '200 years'"
	begin := func() (*worker, meter) {
		m := newMeter()
		return startWorker(t, pool, []workflow.Definition{flow}, m.option(), configured(func(c *workflow.Config) { c.FallbackInterval = 50 * time.Millisecond })), m
	}
	flushes := func(m meter) uint64 {
		return m.read(t)["romancy.workflow.commit.duration{committer=runs}"].count
	}
	one, m := begin()
	for _, year := range years {
		if _, err := flow.Start(ctx, one.Engine, year); err != nil {
			t.Fatal(err)
		}
		if _, err := flow.Start(ctx, one.Engine, year, workflow.WithStartAt(time.Date(min(year, 9999), 1, 1, 0, 0, 0, 0, time.UTC))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all wait", func() bool { return count(t, pool, waiting) == 2*len(years) && one.Status().Parked == len(years) })
	before := flushes(m)
	time.Sleep(500 * time.Millisecond)
	if after := flushes(m); before == 0 || after-before > 250 {
		t.Errorf("%d flushes in half a second in which nothing was to be done, and %d before", after-before, before)
	}
	for _, sweep := range []func(context.Context) (int, error){one.SweepTimers, one.SweepResume} {
		if woken, err := sweep(ctx); err != nil || woken != 0 {
			t.Errorf("a sweep finds %d, %v", woken, err)
		}
	}
	if at, ok, err := one.NextDeadline(ctx); err != nil || !ok || time.Until(at) < 200*365*24*time.Hour {
		t.Errorf("the next deadline is %s, %t, %v", at, ok, err)
	}
	one.shutdown(t)
	two, _ := begin()
	if _, err := pool.Exec(ctx, "update romancy.instances set status = 'ready', ready_at = now(), wake_at = null where wake_position is not null"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "all are replayed and wait again", func() bool {
		return two.Status().Replayed == int64(len(years)) && count(t, pool, waiting) == 2*len(years)
	})
}
