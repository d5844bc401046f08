package workflow_test

import (
	"context"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// waitersForNotify counts the sessions of a name that wait for the lock of the cluster that NOTIFY takes before its commit
// (PreCommit_Notify in PostgreSQL's async.c: an AccessExclusiveLock on "database 0").
const waitersForNotify = `select count(*) from pg_locks l join pg_stat_activity a on a.pid = l.pid
	where l.locktype = 'object' and l.classid = 'pg_database'::regclass and not l.granted and a.application_name like $1`

// A transaction that notifies holds one lock of the whole cluster until its commit is on disk, so those that do queue up. The
// engine's do not: what its writes have to tell leaves after their commit.
func TestEngineWritesDoNotQueueUpForTheNotifyLock(t *testing.T) { //nolint:paralleltest // has a server of its own, whose disk is slow
	server := pgtest.Private(t, pgtest.Durable(), pgtest.Setting("commit_delay", "1000"), pgtest.Setting("commit_siblings", "0"))
	url, drop, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := drop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	const writers, rounds, engines = 64, 10, 4
	pool := pgtest.Connect(t, url, func(c *pgxpool.Config) { c.MaxConns = writers })
	watcher := pgtest.Connect(t, url, func(c *pgxpool.Config) { c.MaxConns = 1 })
	ctx := testContext(t)

	// waiting returns the most sessions of that name that were seen to wait while all writers write.
	waiting := func(name string, write func(writer int) error) (most, looks int) {
		t.Helper()
		var wg sync.WaitGroup
		for writer := range writers {
			wg.Go(func() {
				for range rounds {
					if err := write(writer); err != nil {
						t.Error(err)
						return
					}
				}
			})
		}
		written := make(chan struct{})
		go func() { wg.Wait(); close(written) }()
		for {
			most, looks = max(most, count(t, watcher, waitersForNotify, name)), looks+1
			select {
			case <-written:
				return most, looks
			default:
			}
		}
	}

	if _, err := pool.Exec(ctx, "create table written (n int)"); err != nil {
		t.Fatal(err)
	}
	most, looks := waiting("%", func(int) error {
		_, err := pool.Exec(ctx, "with w as (insert into written values (1)) select pg_notify('written', '')")
		return err
	})
	t.Logf("NOTIFY inside the transactions of %d writers: up to %d wait (%d looks)", writers, most, looks)
	if most < 2 {
		t.Errorf("only %d of %d writers with a NOTIFY inside wait for one another: this test shows nothing", most, writers)
	}

	var workers []*worker
	for range engines {
		workers = append(workers, startWorker(t, pool, []workflow.Definition{steps}))
	}
	most, looks = waiting("% engine", func(writer int) error {
		run, err := steps.Start(ctx, workers[writer%engines].Engine, 3)
		if err != nil {
			return err
		}
		_, err = run.Result(ctx)
		return err
	})
	t.Logf("%d engines with %d runs in flight: up to %d wait (%d looks)", engines, writers, most, looks)
	if most > 0 {
		t.Errorf("%d engines wait for the notify lock while they write", most)
	}
	if looks < 10 {
		t.Errorf("only %d looks while the engines wrote: this test shows nothing", looks)
	}
}
