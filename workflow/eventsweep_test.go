package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Nothing here is done by a notification: neither that an event has come nor that a run is ready.
func TestEventsArriveWithoutNotifications(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	rarely := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	one := startWorker(t, pool, []workflow.Definition{collector}, withoutNotify, rarely)
	two := startWorker(t, pool, []workflow.Definition{collector}, withoutNotify, rarely)
	run := startCollector(t, one, 3, "1")
	sendEvents(t, two, paid("1", "a"))
	parkedOnEvents(t, pool, 1)
	for n, says := range []string{"b", "c"} {
		eventually(t, "the run has had those before", func() bool {
			return count(t, pool, "select count(*) from romancy.event_waits where cardinality(seen) = $1", n+1) == 1
		})
		sendEvents(t, two, paid("1", says))
	}
	collected(t, run, "a b c")
}

// keptEvent puts an event into the table that nobody is told of, with this row id.
func keptEvent(t *testing.T, pool *pgxpool.Pool, id int, order, says string) {
	t.Helper()
	if _, err := pool.Exec(testContext(t), `insert into romancy.events (id, type, source, event_id, match, data, created_at, expires_at) overriding system value
		select $1::bigint, 'order.paid', 'elsewhere', $3::text,
		       jsonb_build_object('', 'order.paid', 'order', $2::text), to_json($3::text), now() - interval '1 minute', now() + interval '1 hour'`,
		id, order, says); err != nil {
		t.Fatal(err)
	}
}

// A sweep finds the runs that wait for an event which nobody was told of, whoever holds them, however late it came to light, and
// leaves those alone that have had it.
func TestSweepFindsWhoWaitsForAnEventNobodyWasToldOf(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{collector}, calm)
	client := startWorker(t, pool, []workflow.Definition{collector}, calm, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	if _, err := pool.Exec(testContext(t), "select setval('romancy.events_id_seq', 5000)"); err != nil {
		t.Fatal(err)
	}
	had := startCollector(t, w, 100, "")
	waits := startCollector(t, w, 4, "1")
	parkedOnEvents(t, pool, 2)
	// sweep looks until they have had so many events, and for as long as that finds nobody besides.
	sweep := func(most, all, some int) {
		t.Helper()
		found := 0
		eventually(t, fmt.Sprintf("they have had %d and %d events", all, some), func() bool {
			n, err := client.SweepResume(testContext(t)) // full looks are rationed by what they cost
			if found += n; err != nil || found > most {
				t.Fatalf("sweeps found %d, %v; want %d at most", found, err, most)
			}
			return count(t, pool, `select count(*) from romancy.event_waits where cardinality(seen) = $1 and names = '{}'
				or cardinality(seen) = $2 and names = '{order}'`, all, some) == 2
		})
	}
	sweep(0, 0, 0)
	keptEvent(t, pool, 1000, "1", "new")
	sweep(2, 1, 1)
	sweep(0, 1, 1)
	keptEvent(t, pool, 1, "1", "late") // far below all that sweeps have seen
	sweep(2, 2, 2)
	keptEvent(t, pool, 2000, "2", "another's")
	sweep(1, 3, 2)
	sweep(0, 3, 2)
	sendEvents(t, w, paid("1", "sent"), paid("1", "last"))
	collected(t, waits, "new late sent last")
	if err := client.Cancel(testContext(t), had.ID(), "enough"); err != nil {
		t.Fatal(err)
	}
	if n := count(t, pool, "select count(*) from romancy.event_waits"); n != 0 {
		t.Errorf("%d runs that have ended still wait", n)
	}
}

// What a run has had is known from its history: it gets nothing twice, and misses nothing, when it is evicted, handed over or
// taken over in between.
func TestEventsComeOnceAcrossWorkers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	small := configured(func(c *workflow.Config) { c.FallbackInterval, c.CacheSize = time.Hour, 1 })
	one := startWorker(t, pool, []workflow.Definition{collector}, small)
	client := startWorker(t, pool, []workflow.Definition{collector}, calm, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	all, first, second := startCollector(t, one, 6, ""), startCollector(t, one, 3, "1"), startCollector(t, one, 3, "2")
	had := func(all, some int) {
		t.Helper()
		eventually(t, fmt.Sprintf("they have had %d and %d events", all, some), func() bool {
			return count(t, pool, `select count(*) from romancy.event_waits w join romancy.instances i on i.id = w.instance_id
				where i.status = 'waiting' and (cardinality(seen) = $1 and names = '{}' or cardinality(seen) = $2 and names = '{order}')`, all, some) == 3
		})
	}
	had(0, 0)
	sendEvents(t, client, paid("1", "a"), paid("2", "b"))
	had(2, 1)
	if one.Status().Evicted == 0 {
		t.Error("nothing was evicted: this test shows nothing")
	}
	two := startWorker(t, pool, []workflow.Definition{collector}, small)
	one.shutdown(t)
	sendEvents(t, client, paid("1", "c"), paid("2", "d"))
	had(4, 2)
	two.shutdown(t)
	// As if it had been killed: whoever it was seems to live, listens, and holds them all.
	if _, err := pool.Exec(testContext(t), `with dead as (
			insert into romancy.workers (label, listening, lease_until) values ('dead', true, clock_timestamp() + interval '2 seconds') returning id
		) update romancy.instances i set worker = d.id from dead d where i.status = 'waiting'`); err != nil {
		t.Fatal(err)
	}
	startWorker(t, pool, []workflow.Definition{collector}, small, configured(func(c *workflow.Config) { c.Lease = 3 * time.Second }))
	sendEvents(t, client, paid("1", "e"), paid("2", "f"))
	for run, want := range map[*workflow.Run[string]]string{all: "a b c d e f", first: "a c e", second: "b d f"} {
		collected(t, collector.Run(client.Engine, run.ID()), want)
	}
}

func TestWaitForAnEventTimesOut(t *testing.T) {
	t.Parallel()
	flow := workflow.Define("impatient", func(ctx *workflow.Context, limit time.Duration) (string, error) {
		event, err := workflow.WaitEvent[string](ctx, "order.paid", workflow.WithTimeout(limit))
		if errors.Is(err, workflow.ErrTimeout) {
			err = nil
			event.Data = "timed out"
		}
		if err != nil {
			return "", err
		}
		again, err := workflow.WaitEvent[string](ctx, "order.paid", workflow.WithTimeout(time.Hour))
		return event.Data + ", then " + again.Data, err
	})
	for name, options := range map[string][]workerOption{
		"cached": {calm}, "evicted": {calm, configured(func(c *workflow.Config) { c.CacheSize = 1 })}, "without notifications": {withoutNotify, calm},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			w := startWorker(t, pool, []workflow.Definition{flow}, options...)
			ctx := testContext(t)
			var runs []*workflow.Run[string]
			for _, limit := range []time.Duration{300 * time.Millisecond, time.Hour, 400 * time.Millisecond} {
				run, err := flow.Start(ctx, w.Engine, limit)
				if err != nil {
					t.Fatal(err)
				}
				runs = append(runs, run)
			}
			eventually(t, "two have timed out", func() bool {
				return count(t, pool, "select count(*) from romancy.history where payload ->> 'timeout' = 'true'") == 2
			})
			parkedOnEvents(t, pool, 3)
			sendEvents(t, w, paid("1", "a"), paid("1", "b"))
			collected(t, runs[0], "timed out, then a")
			collected(t, runs[1], "a, then b")
			collected(t, runs[2], "timed out, then a")
		})
	}
}

// A run that waits while a step of it executes beside is not parked, and is told of events all the same; nor is an event sent twice
// because the run is executed again.
func TestEventsReachARunBesideItsSteps(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proceed := make(chan struct{})
	slow := workflow.DefineActivity("slow", func(ctx context.Context, _ int) (int, error) {
		select {
		case <-proceed:
			return 7, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	})
	flow := workflow.Define("busy", func(ctx *workflow.Context, _ int) (string, error) {
		step := slow.Go(ctx, 1)
		if err := workflow.SendEvent(ctx, workflow.OutgoingEvent{Type: "begun", Data: "x"}); err != nil {
			return "", err
		}
		event, err := workflow.WaitEvent[string](ctx, "order.paid", workflow.WithAttributes(map[string]string{"order": "1"}))
		if err != nil {
			return "", err
		}
		n, err := step.Get(ctx)
		if err != nil {
			return "", err
		}
		if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
			return "", err
		}
		last, err := workflow.WaitEvent[string](ctx, "order.paid")
		return fmt.Sprint(event.Data, " ", n, " ", last.Data), err
	})
	one := startWorker(t, pool, []workflow.Definition{flow}, calm)
	client := startWorker(t, pool, []workflow.Definition{flow}, calm, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	run, err := flow.Start(testContext(t), one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it has begun", func() bool { return count(t, pool, "select count(*) from romancy.events") == 1 })
	sendEvents(t, client, paid("2", "other"), paid("1", "mine"))
	eventually(t, "it has its event", func() bool {
		return count(t, pool, "select count(*) from romancy.history where kind = 'wait_event'") == 1
	})
	two := startWorker(t, pool, []workflow.Definition{flow}, calm)
	close(proceed)
	one.shutdown(t)
	collected(t, flow.Run(two.Engine, run.ID()), "mine 7 other")
	if n := count(t, pool, "select count(*) from romancy.events where type = 'begun'"); n != 1 {
		t.Errorf("the run has sent its event %d times", n)
	}
}
