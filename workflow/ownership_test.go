package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// tally counts by name.
type tally struct {
	mu     sync.Mutex
	counts map[string]int
}

func (c *tally) add(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.counts == nil {
		c.counts = map[string]int{}
	}
	c.counts[name]++
	return c.counts[name]
}

func (c *tally) of(name string) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.counts[name]
}

// A notification and a sweep that arrive together, in three workers at once, execute no activity twice.
func TestEveryActivityIsExecutedOnceByThreeWorkers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const runs = 300
	var executed tally
	work := workflow.DefineActivity("work", func(ctx context.Context, _ int) (string, error) {
		key := workflow.ActivityInfo(ctx).IdempotencyKey
		executed.add(key)
		return key, nil
	})
	flow := workflow.Define("three_steps", func(ctx *workflow.Context, n int) (string, error) {
		if _, err := work.Execute(ctx, n); err != nil {
			return "", err
		}
		message, err := workflow.Receive[string](ctx, "go")
		if err != nil {
			return "", err
		}
		if _, err := work.Execute(ctx, n); err != nil {
			return "", err
		}
		return message.Body, nil
	})
	workers := make([]*worker, 3)
	for i := range workers {
		workers[i] = startWorker(t, pool, []workflow.Definition{flow})
	}
	ctx := testContext(t)
	var wg sync.WaitGroup
	stopSweeping := make(chan struct{})
	for _, w := range workers {
		wg.Go(func() {
			for {
				select {
				case <-stopSweeping:
					return
				default:
				}
				if _, err := w.SweepResume(ctx); err != nil {
					t.Errorf("sweep: %v", err)
					return
				}
			}
		})
	}
	for i := range runs {
		wg.Go(func() {
			id := fmt.Sprintf("run-%d", i)
			run, err := flow.Start(ctx, workers[i%3].Engine, i, workflow.WithID(id))
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			if err := workers[(i+1)%3].SendTo(ctx, id, "go", id); err != nil {
				t.Errorf("send: %v", err)
				return
			}
			if got, err := run.Result(ctx); err != nil || got != id {
				t.Errorf("run %s: got %q, %v", id, got, err)
			}
		})
	}
	waitForRuns(t, pool, runs)
	close(stopSweeping)
	wg.Wait()
	for i := range runs {
		for _, position := range []int{1, 3} {
			if n := executed.of(fmt.Sprintf("run-%d/%d", i, position)); n != 1 {
				t.Errorf("step %d of run %d was executed %d times", position, i, n)
			}
		}
	}
}

func waitForRuns(t *testing.T, pool *pgxpool.Pool, runs int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d runs completed", runs), func() bool {
		return t.Failed() || count(t, pool, "select count(*) from romancy.instances where status = 'completed'") == runs
	})
}

// Two engines of one label are two workers: neither takes the other's lock for its own.
func TestEnginesOfOneLabelAreTwoWorkers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	entered, leave := make(chan int64, 2), make(chan struct{})
	var executed tally
	hold := workflow.DefineActivity("hold", func(ctx context.Context, _ string) (string, error) {
		executed.add(workflow.ActivityInfo(ctx).IdempotencyKey)
		entered <- 1
		<-leave
		return "done", nil
	})
	flow := workflow.Define("holding", func(ctx *workflow.Context, in string) (string, error) { return hold.Execute(ctx, in) })
	label := configured(func(c *workflow.Config) { c.Label = "twin" })
	one := startWorker(t, pool, []workflow.Definition{flow}, label)
	two := startWorker(t, pool, []workflow.Definition{flow}, label)
	if a, b := one.Status().Worker, two.Status().Worker; a == b || a == 0 || b == 0 {
		t.Fatalf("workers %d and %d: want two ids", a, b)
	}
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, "in", workflow.WithID("held"))
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	for range 10 {
		if _, err := two.SweepResume(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if again, err := flow.Start(ctx, two.Engine, "in", workflow.WithID("held")); err != nil || !again.Existing() {
		t.Fatalf("second start: existing %v, %v", again.Existing(), err)
	}
	close(leave)
	if got, err := run.Result(ctx); err != nil || got != "done" {
		t.Fatalf("got %q, %v", got, err)
	}
	if n := executed.of("held/1"); n != 1 {
		t.Fatalf("executed %d times", n)
	}
}

// An activity that takes longer than the lease is not taken over while its worker lives.
func TestActivityLongerThanTheLeaseIsNotTakenOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var executed tally
	entered := make(chan struct{}, 2)
	leave := make(chan struct{})
	slow := workflow.DefineActivity("slow", func(context.Context, int) (int, error) {
		executed.add("slow")
		entered <- struct{}{}
		<-leave
		return 1, nil
	})
	flow := workflow.Define("slow", func(ctx *workflow.Context, n int) (int, error) { return slow.Execute(ctx, n) })
	short := configured(func(c *workflow.Config) { c.Lease = time.Second })
	one := startWorker(t, pool, []workflow.Definition{flow}, short)
	startWorker(t, pool, []workflow.Definition{flow}, short)
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	// Three leases, by the database's clock.
	started := count(t, pool, "select extract(epoch from clock_timestamp())::int")
	eventually(t, "three leases have passed", func() bool {
		return count(t, pool, "select extract(epoch from clock_timestamp())::int") >= started+3
	})
	close(leave)
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	if n := executed.of("slow"); n != 1 {
		t.Fatalf("executed %d times", n)
	}
}

// A worker that has lost its lease writes nothing any more; the run's new owner finishes it.
func TestWorkerWithoutLeaseWritesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	entered, leave := make(chan struct{}, 2), make(chan string, 2)
	whose := workflow.DefineActivity("whose", func(context.Context, int) (string, error) {
		entered <- struct{}{}
		return <-leave, nil
	})
	flow := workflow.Define("contested", func(ctx *workflow.Context, n int) (string, error) { return whose.Execute(ctx, n) })
	// With a lease this long it does not look meanwhile, find it run out and begin a new life.
	zombie := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Lease = time.Hour }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, zombie.Engine, 0, workflow.WithID("contested"))
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	eventually(t, "it has told that it listens, and has nothing more to tell", func() bool {
		return count(t, pool, "select count(*) from romancy.workers where listening") == 1
	})
	// As if the worker had been stopped for longer than its lease: its row says so.
	if _, err := pool.Exec(ctx, "update romancy.workers set lease_until = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	successor := startWorker(t, pool, []workflow.Definition{flow})
	if _, err := successor.SweepResume(ctx); err != nil {
		t.Fatal(err)
	}
	<-entered // the successor's attempt
	owner := count(t, pool, "select worker from romancy.instances where id = 'contested'")
	if int64(owner) != successor.Status().Worker {
		t.Fatalf("the run is owned by worker %d, want %d", owner, successor.Status().Worker)
	}
	leave <- "first"
	eventually(t, "the zombie's run is gone or recorded", func() bool {
		return zombie.Status().Executing == 0 || count(t, pool, "select count(*) from romancy.history") > 0
	})
	leave <- "second"
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	var payload []byte
	if err := pool.QueryRow(ctx, "select payload::text from romancy.history where instance_id = 'contested' and token = 2").Scan(&payload); err != nil {
		t.Fatalf("the step is not recorded under the successor's token: %v", err)
	}
	if n := count(t, pool, "select count(*) from romancy.history"); n != 1 {
		t.Fatalf("%d records", n)
	}
}

// A record that an earlier owner's transaction brought in late, at the position that the owner is about to write, is the
// step's result: the owner's own counts for nothing, and nothing that follows from it is stored.
func TestStepRecordedByAnEarlierOwnerCounts(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	whose := workflow.DefineActivity("whose", func(context.Context, int) (string, error) {
		close(entered)
		<-leave
		return "the owner", nil
	})
	flow := workflow.Define("late", func(ctx *workflow.Context, n int) (string, error) { return whose.Execute(ctx, n) })
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0, workflow.WithID("late"))
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	if _, err := pool.Exec(ctx, `insert into romancy.history (instance_id, position, token, kind, name, payload)
		values ('late', 1, 0, 'activity', 'whose', '{"output":"an earlier owner"}')`); err != nil {
		t.Fatal(err)
	}
	close(leave)
	if got, err := run.Result(ctx); err != nil || got != "an earlier owner" {
		t.Fatalf("got %q, %v: not what history says", got, err)
	}
}

// Shutdown hands every run over at once, waiting ones and executing ones, and waits for what is in flight.
func TestShutdownHandsRunsOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	entered, leave := make(chan struct{}), make(chan struct{})
	var executed tally
	hold := workflow.DefineActivity("hold", func(context.Context, int) (int, error) {
		executed.add("hold")
		close(entered)
		<-leave
		return 1, nil
	})
	next := workflow.DefineActivity("next", func(context.Context, int) (int, error) { return 2, nil })
	busy := workflow.Define("busy", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := hold.Execute(ctx, n); err != nil {
			return 0, err
		}
		return next.Execute(ctx, n)
	})
	idle := workflow.Define("idle", func(ctx *workflow.Context, _ int) (int, error) {
		message, err := workflow.Receive[int](ctx, "numbers")
		return message.Body, err
	})
	definitions := []workflow.Definition{busy, idle}
	// With a lease this long, only a handover lets the other worker continue in time.
	long := configured(func(c *workflow.Config) { c.Lease = time.Hour })
	one := startWorker(t, pool, definitions, long)
	ctx := testContext(t)
	busyRun, err := busy.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	idleRun, err := idle.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	eventually(t, "the idle run is parked", func() bool { return one.Status().Parked == 1 })
	two := startWorker(t, pool, definitions, long)
	stopped := make(chan error, 1)
	go func() { stopped <- one.Shutdown(ctx) }()
	eventually(t, "the engine is shutting down", func() bool {
		_, err := one.SweepTimers(ctx)
		return errors.Is(err, workflow.ErrClosed)
	})
	close(leave) // the step in flight ends, is recorded, and the run is handed over
	if err := <-stopped; err != nil {
		t.Fatal(err)
	}
	if got, err := busy.Run(two.Engine, busyRun.ID()).Result(ctx); err != nil || got != 2 {
		t.Fatalf("busy run: %d, %v", got, err)
	}
	if err := two.SendTo(ctx, idleRun.ID(), "numbers", 3); err != nil {
		t.Fatal(err)
	}
	if got, err := idle.Run(two.Engine, idleRun.ID()).Result(ctx); err != nil || got != 3 {
		t.Fatalf("idle run: %d, %v", got, err)
	}
	if n := executed.of("hold"); n != 1 {
		t.Fatalf("the step in flight was executed %d times", n)
	}
	if n := count(t, pool, "select count(*) from romancy.workers"); n != 1 {
		t.Fatalf("%d workers registered, want the one that lives", n)
	}
}

// A result is decoded into its declared type when it is replayed, never by way of any: 2^53 + 1 stays what it is.
func TestResultsSurviveReplayInTheirType(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	type receipt struct {
		Number int64
		Lines  []json.Number
	}
	const number = 1<<53 + 1
	var executed tally
	charge := workflow.DefineActivity("charge", func(context.Context, int) (receipt, error) {
		executed.add("charge")
		return receipt{Number: number, Lines: []json.Number{"9007199254740993"}}, nil
	})
	flow := workflow.Define("typed", func(ctx *workflow.Context, n int) (receipt, error) {
		got, err := charge.Execute(ctx, n)
		if err != nil {
			return receipt{}, err
		}
		if _, err := workflow.Receive[string](ctx, "go"); err != nil {
			return receipt{}, err
		}
		return got, nil
	})
	one := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is parked", func() bool { return one.Status().Parked == 1 })
	if err := one.Shutdown(ctx); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{flow})
	if err := two.SendTo(ctx, run.ID(), "go", ""); err != nil {
		t.Fatal(err)
	}
	got, err := flow.Run(two.Engine, run.ID()).Result(ctx)
	if err != nil || got.Number != number || len(got.Lines) != 1 || got.Lines[0] != "9007199254740993" {
		t.Fatalf("got %+v, %v", got, err)
	}
	if n := executed.of("charge"); n != 1 || two.Status().Replayed != 1 {
		t.Fatalf("executed %d times, replayed %d: want one of each", n, two.Status().Replayed)
	}
}

// What a dead worker held parked is not forgotten: mail and deadlines that were due when its lease ended, and deadlines that
// come later, without waiting for a fallback interval or for River's leader.
func TestParkedRunsOfADeadWorkerGoOn(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("orphaned", func(ctx *workflow.Context, n int) (int, error) {
		if n == 0 {
			message, err := workflow.Receive[int](ctx, "numbers")
			return message.Body, err
		}
		return n, workflow.Sleep(ctx, time.Hour) // the deadline stored below counts
	})
	ctx := testContext(t)
	for _, statement := range []string{
		`insert into romancy.workers (label, lease_until) values ('dead', clock_timestamp() + interval '1 second')`,
		`insert into romancy.instances (id, workflow, status, worker, token, ready_at, wake_at, wake_position, wake_channels, input)
		 select v.id, 'orphaned', 'waiting', (select id from romancy.workers), 1, now(), clock_timestamp() + v.due, 1, v.channels, v.input::json
		 from (values ('mailed', null::interval, array['numbers'], '0'), ('due', '0', null, '1'), ('later', '3 seconds', null, '2')) as v (id, due, channels, input)`,
		`insert into romancy.history (instance_id, position, token, kind, name, payload)
		 select id, 1, 1, 'timer', 'sleep', json_build_object('fires_at_us', (extract(epoch from wake_at) * 1000000)::bigint)
		 from romancy.instances where wake_at is not null`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) values ('numbers', 'direct', 'mailed', '3')`,
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) {
		c.Lease, c.FallbackInterval = 3*time.Second, time.Hour
	}))
	for id, want := range map[string]int{"mailed": 3, "due": 1, "later": 2} {
		if got, err := flow.Run(w.Engine, id).Result(ctx); err != nil || got != want {
			t.Errorf("%s: got %d, %v; want %d", id, got, err, want)
		}
	}
}

// While no notifications arrive a worker looks every second for the mail of the runs it holds, whoever else sweeps or not.
func TestMailIsFoundWithinSecondsWithoutNotifications(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("waiting", func(ctx *workflow.Context, _ int) (int, error) {
		message, err := workflow.Receive[int](ctx, "numbers")
		return message.Body, err
	})
	rarely := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	one := startWorker(t, pool, []workflow.Definition{flow}, withoutNotify, rarely)
	two := startWorker(t, pool, []workflow.Definition{flow}, withoutNotify, rarely)
	ctx := testContext(t)
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is parked", func() bool { return one.Status().Parked == 1 })
	if err := two.SendTo(ctx, run.ID(), "numbers", 4); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 4 {
		t.Fatalf("got %d, %v", got, err)
	}
}
