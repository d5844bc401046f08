package bus

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// Everybody commits, notifies, and then waits to hear of it before the next commit: one notification swallowed by the send
// in progress, and one of them waits for ever. Half of them have the notifier watch their transaction instead, which races
// with the other set that it swaps.
func TestNoNotificationIsSwallowedByTheSendInProgress(t *testing.T) {
	t.Parallel()
	const workers = 100
	rounds := pgtest.Soak(1000, 60)
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 40 })
	execute(t, pool, "create unlogged table written (worker int, round int)")
	s := subscribe(t, startListener(t, pool), 100_000, "race")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode, c.Window = ModeCoalesced, 100*time.Microsecond })
	var heard [workers]chan string
	for i := range heard {
		heard[i] = make(chan string, 1)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var reader sync.WaitGroup
	reader.Go(func() { dealOut(ctx, t, s, heard[:]) })
	var wakes atomic.Int64
	var all sync.WaitGroup
	for worker := range workers {
		all.Go(func() {
			for round := range rounds {
				payload := fmt.Sprintf("%d:%d", worker, round)
				if err := commitAndNotify(ctx, pool, n, worker, round, payload); err != nil {
					t.Errorf("%s: %v", payload, err)
					return
				}
				swallowed := time.NewTimer(patience)
				select {
				case got := <-heard[worker]:
					swallowed.Stop()
					if got != payload {
						t.Errorf("got %s, want %s", got, payload)
						return
					}
					wakes.Add(1)
				case <-swallowed.C:
					t.Errorf("%s was swallowed", payload)
					return
				}
			}
		})
	}
	all.Wait()
	cancel()
	reader.Wait()
	if got := wakes.Load(); got != int64(workers*rounds) {
		t.Errorf("%d commits were followed by a wake, want %d", got, workers*rounds)
	}
}

// commitAndNotify commits one row, and has that announced in the one way or in the other.
func commitAndNotify(ctx context.Context, pool *pgxpool.Pool, n *Notifier, worker, round int, payload string) error {
	const insert = "insert into written values ($1, $2)"
	if worker%2 == 0 {
		if _, err := pool.Exec(ctx, insert, worker, round); err != nil {
			return err
		}
		n.Notify("race", payload)
		return nil
	}
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, insert, worker, round); err != nil {
			return err
		}
		return n.NotifyTx(ctx, tx, "race", payload)
	})
}

// dealOut gives each worker its notifications, until ctx ends.
func dealOut(ctx context.Context, t *testing.T, s *Subscription, heard []chan string) {
	for {
		note, err := s.Next(ctx)
		if err != nil {
			return
		}
		var worker, round int
		if _, err := fmt.Sscanf(note.Payload, "%d:%d", &worker, &round); err != nil {
			t.Errorf("got %+v", note)
			return
		}
		select {
		case heard[worker] <- note.Payload:
		case <-ctx.Done():
			return
		}
	}
}

// lockWaits counts, in many samples, the backends that wait for the lock which a notifying transaction holds of the whole
// cluster: an object lock on the database with id 0 (class 1262 is pg_database).
type lockWaits struct {
	samples, waits int
}

const sampleLockWaits = `select count(*) from pg_locks
	where not granted and locktype = 'object' and classid = 1262 and objid = 0`

// sampleWhile samples until work has returned.
func sampleWhile(t *testing.T, conn *pgxpool.Pool, work func()) lockWaits {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		work()
	}()
	var seen lockWaits
	for {
		var waiting int
		if err := conn.QueryRow(within(t), sampleLockWaits).Scan(&waiting); err != nil {
			t.Fatal(err)
		}
		seen.samples++
		seen.waits += waiting
		select {
		case <-done:
			return seen
		case <-time.After(time.Millisecond):
		}
	}
}

// 64 writers notify with every commit. The lock is held while the commit is flushed, so the server takes its time for
// that, as a disk would.
func TestCoalescedWritersNeverWaitForTheNotifyLock(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t, pgtest.Durable(),
		pgtest.Setting("commit_delay", "2000"), pgtest.Setting("commit_siblings", "0"))
	url, _, err := server.CreateDatabase(within(t))
	if err != nil {
		t.Fatal(err)
	}
	const writers, commits = 64, 10
	pool := pgtest.Connect(t, url, func(c *pgxpool.Config) { c.MaxConns = writers })
	observer := pgtest.Connect(t, url, func(c *pgxpool.Config) { c.MaxConns = 1 })
	execute(t, pool, "create table written (writer int, round int)")
	write := func(n *Notifier) func() {
		return func() {
			var all sync.WaitGroup
			for writer := range writers {
				all.Go(func() {
					for round := range commits {
						err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error {
							if _, err := tx.Exec(within(t), "insert into written values ($1, $2)", writer, round); err != nil {
								return err
							}
							return n.NotifyTx(within(t), tx, "locked", fmt.Sprint(writer, " ", round))
						})
						if err != nil {
							t.Error(err)
							return
						}
						n.Notify("locked", fmt.Sprint(writer, " ", round, " is committed"))
					}
				})
			}
			all.Wait()
		}
	}
	seen := sampleWhile(t, observer, write(startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = ModeCoalesced })))
	if seen.waits > 0 || seen.samples < 10 {
		t.Errorf("coalesced: %d waits for the notify lock in %d samples, want none in ten or more", seen.waits, seen.samples)
	}
	t.Logf("coalesced: %+v", seen)
	// The same inside the transactions, which proves that the samples would show it.
	seen = sampleWhile(t, observer, write(startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = ModeInTransaction })))
	if seen.waits == 0 {
		t.Errorf("in the transactions: no wait for the notify lock in %d samples: the sampling shows nothing", seen.samples)
	}
	t.Logf("in the transactions: %+v", seen)
}
