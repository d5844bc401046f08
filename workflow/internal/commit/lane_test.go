package commit_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// openTwo returns a committer with two lanes that waits for locks as long as a test has patience.
func openTwo(t *testing.T, pool *pgxpool.Pool) *commit.Committer {
	t.Helper()
	return opened(t, committer(t, pool, func(c *commit.Config) { c.Lanes, c.LockTimeout, c.FlushTimeout = 2, patience, patience }))
}

// While a flush waits for the database, many operations of other runs are carried out beside it; those of its own run wait
// for its end.
func TestASecondLaneOvertakesASlowFlushExceptForItsOwnRun(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := openTwo(t, pool)
	ctx := within(t)
	start(t, c, "slow")
	tx := holdSlow(t, pool)
	released, finished := make(chan error, 1), make(chan error, 1)
	c.Release(store.Fence{ID: "slow", Token: 1, Worker: 1}, func(_ store.Named, err error) { released <- err })
	awaitBlocked(t, pool)
	c.Finish(nil, store.Finish{Fence: store.Fence{ID: "slow", Token: 1, Worker: 1}, Status: "completed"}, func(_ struct{}, err error) { finished <- err })
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Add(1)
		c.Start(store.Start{ID: fmt.Sprint("quick-", i), Workflow: "flow", Input: []byte("1")}, func(started commit.Started, err error) {
			if err != nil || !started.Created {
				t.Errorf("start %d: %+v, %v", i, started, err)
			}
			wg.Done()
		})
	}
	wg.Wait() // although the first flush is still waiting
	select {
	case err := <-released:
		t.Fatalf("the first flush did not wait: %v", err)
	case err := <-finished:
		t.Fatalf("what was asked for later overtook it: %v", err)
	default:
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-released; err != nil {
		t.Errorf("release: %v", err)
	}
	if err := <-finished; !errors.Is(err, commit.ErrFenced) {
		t.Errorf("finish of a run that was released before: %v, want ErrFenced", err)
	}
}

// A run is woken while a flush of other runs waits for the database, and the few that ask for something else wait with it.
func TestAWakeOvertakesASlowFlush(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := openTwo(t, pool)
	ctx := within(t)
	start(t, c, "slow")
	start(t, c, "asleep")
	if _, err := pool.Exec(ctx, "update romancy.instances set status = 'waiting', wake_at = now() where id = 'asleep'"); err != nil {
		t.Fatal(err)
	}
	tx := holdSlow(t, pool)
	released, started := make(chan error, 1), make(chan error, 1)
	c.Release(store.Fence{ID: "slow", Token: 1, Worker: 1}, func(_ store.Named, err error) { released <- err })
	awaitBlocked(t, pool)
	c.Start(store.Start{ID: "later", Workflow: "flow", Input: []byte("1")}, func(_ commit.Started, err error) { started <- err })
	durable := make(chan error, 1)
	register(t, pool, time.Hour)
	waited, err := commit.Await(ctx, func(then func(store.Waited, error)) {
		ask := store.Wake{Fence: store.Fence{ID: "asleep", Token: 1, Worker: 1}}
		c.Wake(ask, then, func(err error) { durable <- err })
	})
	if err == nil {
		err = <-durable
	}
	if err != nil || waited.Outcome != store.Due {
		t.Errorf("wake: %+v, %v, want it due", waited, err)
	}
	select {
	case err := <-released:
		t.Fatalf("the first flush did not wait: %v", err)
	case err := <-started:
		t.Fatalf("one start alone took the lane that is for wakes: %v", err)
	default:
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-released, <-started); err != nil {
		t.Error(err)
	}
}

// holdSlow returns a transaction that holds the row of the run "slow"; it ends with the test, if not before.
func holdSlow(t *testing.T, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	if _, err := tx.Exec(within(t), "select 1 from romancy.instances where id = 'slow' for update"); err != nil {
		t.Fatal(err)
	}
	return tx
}

// awaitBlocked waits until a transaction of the database waits for a lock.
func awaitBlocked(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	for waiting := 0; waiting == 0; {
		if err := pool.QueryRow(within(t), `select count(*) from pg_locks l join pg_database d on d.oid = l.database or l.database is null
			where not l.granted and d.datname = current_database()`).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
	}
}

// Runs that ask for everything at once, without waiting for an answer, are recorded in their order, on whichever lane, and
// through breaking connections.
func TestOperationsOfARunKeepTheirOrderOnTwoLanes(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	proxy := pgtest.NewProxy(t, direct.Config().ConnString())
	c := openTwo(t, pgtest.Connect(t, proxy.URL()))
	const runs, steps = 400, 5
	finished := make([]error, runs)
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() {
			if i%100 == 50 {
				proxy.Cut()
			}
			id := fmt.Sprint("run-", i)
			// Created by an attempt whose answer was lost is created, too.
			if started, err := commit.Await(within(t), func(then func(commit.Started, error)) {
				c.Start(store.Start{ID: id, Workflow: "flow", Input: []byte("1"), Worker: 1}, then)
			}); err != nil || !started.Created && started.Run.Token != 1 {
				t.Errorf("start %s: %+v, %v", id, started, err)
			}
			stream := &commit.Stream{}
			for position := range int32(steps) {
				c.Append(stream, step(id, position+1, "{}"), func(_ struct{}, err error) {
					if err != nil {
						t.Errorf("%s: step %d: %v", id, position+1, err)
					}
				})
			}
			_, finished[i] = commit.Await(within(t), func(then func(struct{}, error)) {
				c.Finish(stream, store.Finish{Fence: store.Fence{ID: id, Token: 1, Worker: 1}, Status: "completed"}, then)
			})
		})
	}
	wg.Wait()
	for i, err := range finished {
		if err != nil && !errors.Is(err, commit.ErrOutcomeUnknown) {
			t.Errorf("run %d: %v", i, err)
		}
	}
	var complete int
	if err := direct.QueryRow(within(t), `select count(*) from (select from romancy.history group by instance_id
		having count(*) = $1 and max(position) = $1) as run`, steps).Scan(&complete); err != nil || complete != runs {
		t.Errorf("%d runs have all their steps, %v; want %d", complete, err, runs)
	}
}

// While a committer closes, with much to write still, a second lane that has no connection yet does not try for one again and again.
func TestALaneWithoutAConnectionLeavesTheRestToTheFirst(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var attempts atomic.Int32
	tried, gaveUp := make(chan struct{}), make(chan struct{})
	c := opened(t, committer(t, pool, func(c *commit.Config) {
		connect := c.Connect
		c.Lanes, c.LockTimeout = 2, patience
		c.Connect = func(ctx context.Context) (*pgx.Conn, error) {
			switch attempts.Add(1) {
			case 1:
				return connect(ctx)
			case 2:
				close(tried)
				defer close(gaveUp)
			}
			<-ctx.Done() // a database that does not answer
			return nil, ctx.Err()
		}
	}))
	start(t, c, "slow")
	tx := holdSlow(t, pool)
	var wg sync.WaitGroup
	wg.Add(1)
	c.Release(store.Fence{ID: "slow", Token: 1, Worker: 1}, func(_ store.Named, err error) {
		if err != nil {
			t.Errorf("release: %v", err)
		}
		wg.Done()
	})
	awaitBlocked(t, pool)
	for i := range 200 {
		wg.Add(1)
		c.Start(store.Start{ID: fmt.Sprint("run-", i), Workflow: "flow", Input: []byte("1")}, func(_ commit.Started, err error) {
			if err != nil {
				t.Errorf("start %d: %v", i, err)
			}
			wg.Done()
		})
	}
	<-tried
	closed := make(chan struct{})
	go func() { c.Close(context.Background()); close(closed) }()
	<-gaveUp
	awaitBlocked(t, pool) // still: by the answer it used to try many times
	if err := tx.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	<-closed
	if got := attempts.Load(); got != 2 {
		t.Errorf("%d attempts to connect, want 2", got)
	}
}

// What a second lane had under way when its connection broke is carried out by the first, although the committer is closing and there was
// nothing left for that to do.
func TestTheFirstLaneTakesOverFromOneThatLosesItsConnectionAtTheEnd(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := openTwo(t, pool)
	ctx := within(t)
	start(t, c, "slow")
	first := holdSlow(t, pool)
	released := make(chan error, 1)
	c.Release(store.Fence{ID: "slow", Token: 1, Worker: 1}, func(_ store.Named, err error) { released <- err })
	awaitBlocked(t, pool)
	second, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = second.Rollback(context.Background()) }()
	if _, err := second.Exec(ctx, "insert into romancy.instances (id, workflow, status, token, ready_at) values ('run-0', 'flow', 'ready', 0, now())"); err != nil {
		t.Fatal(err)
	}
	const runs = 100
	started := make(chan error, runs)
	for i := range runs {
		c.Start(store.Start{ID: fmt.Sprint("run-", i), Workflow: "flow", Input: []byte("1")}, func(_ commit.Started, err error) { started <- err })
	}
	const insert = "select coalesce(min(pid), 0) from pg_stat_activity where datname = current_database() and wait_event_type = 'Lock' and query like '%StartRuns%'"
	pid := 0
	for pid == 0 {
		if err := pool.QueryRow(ctx, insert).Scan(&pid); err != nil {
			t.Fatal(err)
		}
	}
	if err := first.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-released; err != nil {
		t.Fatal(err)
	}
	closed := make(chan struct{})
	go func() { c.Close(ctx); close(closed) }()
	time.Sleep(50 * time.Millisecond) // in which the first lane used to end
	if _, err := pool.Exec(ctx, "select pg_terminate_backend($1)", pid); err != nil {
		t.Fatal(err)
	}
	if err := second.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	for range runs {
		if err := <-started; err != nil {
			t.Fatalf("a start: %v", err)
		}
	}
	<-closed
}
