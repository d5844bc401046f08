package workflow_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// expireEvents has all events expired, as if their time were over and no sweep had come.
func expireEvents(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	if _, err := pool.Exec(testContext(t), "update romancy.events set expires_at = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
}

// An event that nobody sees any more keeps no other from being sent, whether it has been removed or not: those who wait get the
// new one, also if they have had the old one, and are told or find it.
func TestEventIsSentAgainOnceItHasExpired(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]workerOption{"told": {calm}, "not told": {withoutNotify, calm}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			w := startWorker(t, pool, []workflow.Definition{collector}, options...)
			client := startWorker(t, pool, []workflow.Definition{collector}, append(options, configured(func(c *workflow.Config) { c.ClientOnly = true }))...)
			ctx := testContext(t)
			had, waits := startCollector(t, w, 3, ""), startCollector(t, w, 2, "2")
			parkedOnEvents(t, pool, 2)
			event := paid("1", "transfer")
			sendEvents(t, client, event, event)
			eventually(t, "one run has had it, once", func() bool {
				return count(t, pool, "select count(*) from romancy.event_waits where cardinality(seen) = 1") == 1
			})

			expireEvents(t, pool)
			event.Attributes, event.Data = map[string]string{"order": "2"}, "again"
			sendEvents(t, client, event)
			event.Data = "a duplicate"
			sendEvents(t, client, event)
			eventually(t, "both have had the new one", func() bool {
				return count(t, pool, `select count(*) from romancy.event_waits
					where names = '{}' and cardinality(seen) = 2 or names = '{order}' and cardinality(seen) = 1`) == 2
			})

			expireEvents(t, pool)
			event.Data = "in a transaction"
			if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return client.SendEventTx(ctx, tx, event) }); err != nil {
				t.Fatal(err)
			}
			collected(t, had, "transfer again in a transaction")
			collected(t, waits, "again in a transaction")
			if n := count(t, pool, "select count(*) from romancy.events where created_at > now() - interval '10 minutes' and expires_at > now()"); n != 1 {
				t.Errorf("%d events are kept, want the last", n)
			}
			if removed, err := client.SweepRetention(ctx); err != nil || removed != 0 {
				t.Errorf("retention removed %d, %v; want nothing: the event in the place of the expired one is new", removed, err)
			}
		})
	}
}

// However many send the event at that moment, together or not, one of them has sent it.
func TestOneOfManySendsAnExpiredEventAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 8 })
	one, two := startWorker(t, pool, []workflow.Definition{collector}, calm), startWorker(t, pool, []workflow.Definition{collector}, calm)
	const rounds = 5
	run := startCollector(t, one, rounds+2, "")
	sendEvents(t, one, paid("1", "transfer"))
	for round := range rounds {
		eventually(t, "the run has had those before", func() bool {
			return count(t, pool, "select count(*) from romancy.event_waits where cardinality(seen) = $1", round+1) == 1
		})
		expireEvents(t, pool)
		last := count(t, pool, "select max(id) from romancy.events")
		var wg sync.WaitGroup
		for range 20 {
			for _, w := range []*worker{one, two} {
				wg.Go(func() { sendEvents(t, w, paid("1", "transfer")) })
			}
		}
		wg.Wait()
		if n := count(t, pool, "select count(*) from romancy.events where id > $1 and expires_at > now() + $2", last, time.Hour); n != 1 {
			t.Errorf("%d events in the place of the expired one, want 1", n)
		}
		if n := count(t, pool, "select count(*) from romancy.events"); n != 1 {
			t.Errorf("%d events, want 1", n)
		}
	}
	sendEvents(t, two, paid("2", "last"))
	collected(t, run, strings.Repeat("transfer ", rounds+1)+"last")
}
