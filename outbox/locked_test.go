package outbox

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// Others' locks keep a settlement waiting for longer than a lease, and the renewals pass.
func TestLocksOfOthersCostNoLease(t *testing.T) {
	t.Parallel()
	for name, lock := range map[string]struct {
		statement string
		lasts     time.Duration
	}{
		"the outbox, as CREATE INDEX takes it": {"lock table romancy.outbox in share mode", 6 * shortLease},
		"one event":                            {"select from romancy.outbox where event_id = 'event-003' for update", 6 * shortLease},
		"the slots":                            {"lock table romancy.outbox_slots in share mode", shortLease}, // no lease can be renewed
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			g := newGate()
			startRelay(t, pool, g, withShortLease, func(c *RelayConfig) { c.PublishTimeout, c.Lease = shortLease, 5*shortLease })
			events := several(20)
			add(t, pool, events...)
			for range events {
				<-g.entered
			}
			tx := hold(t, pool, lock.statement)
			startRelay(t, pool, g, withShortLease)
			close(g.open)
			g.untilPublished(t, len(events))
			time.Sleep(lock.lasts)
			if err := tx.Rollback(within(t)); err != nil {
				t.Fatal(err)
			}
			untilEmpty(t, pool)
			once(t, g.recorder, events)
		})
	}
}

// hold executes a statement in a transaction of a session beside the pool's, which stays open until the test ends or rolls it
// back.
func hold(t *testing.T, pool *pgxpool.Pool, statement string) pgx.Tx {
	t.Helper()
	tx, err := pgtest.Connect(t, pool.Config().ConnString()).Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) })
	if _, err := tx.Exec(within(t), statement); err != nil {
		t.Fatal(err)
	}
	return tx
}

// Also a session that has not prepared a statement yet waits for a lock of its tables for a bounded time only.
func TestAClaimThatWaitsForALockGivesItsSessionBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	log := &lines{}
	published := newRecorder()
	tx := hold(t, pool, "lock table romancy.outbox_slots in share mode")
	startRelay(t, pool, published, func(c *RelayConfig) { c.Logger = log.logger() })
	events := several(20)
	add(t, pool, events...)
	eventually(t, "claims are refused, and say that it is a lock", func() bool { return strings.Contains(log.String(), "55P03") })
	if err := tx.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	untilEmpty(t, pool)
	once(t, published, events)
}
