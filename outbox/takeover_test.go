package outbox

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// Attempts are counted at the claim, so that an event that ends its relay cannot do so for ever; and those that were
// taken together with it must not die with it.
func TestEventThatKillsItsRelayBecomesADeadLetterAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const attempts = 4
	published := newRecorder()
	r := testRelay(t, pool, published, func(c *RelayConfig) { c.MaxAttempts = attempts })
	ctx := within(t)
	r.hard, r.cutShort = context.WithCancel(ctx)
	t.Cleanup(r.cutShort)
	killer := "killer"
	var events []Event
	for i := 0; len(events) < 6; i++ {
		key := fmt.Sprint("innocent", i)
		if slotOf(key) == slotOf(killer) {
			events = append(events, Event{ID: key, Key: key, Topic: "t"})
		}
	}
	events = slices.Insert(events, 3, Event{ID: killer, Topic: "t"})
	add(t, pool, events...)

	// A relay that lives as long as it does not publish the killer.
	sizes := []int{}
	for deaths := 0; deaths < attempts; {
		c := r.consumers[0]
		cl := &claim{consumer: c}
		q, _ := c.SelectQuery(sqlSelect)
		if _, err := cl.QueryContext(ctx, q.Query, q.Args...); err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(cl.batch.events))
		if slices.ContainsFunc(cl.batch.events, func(e *taken) bool { return e.eventID == killer }) {
			deaths++
			r.keeper.letGo(cl.batch)
			continue
		}
		r.publish(cl.batch)
		settle, _ := settler{c}.AckMessageQuery(ackOf(cl.batch))
		if _, err := cl.ExecContext(ctx, settle.Query, settle.Args...); err != nil {
			t.Fatal(err)
		}
	}
	if sizes[0] != 7 || slices.Max(sizes[1:]) != 1 {
		t.Errorf("batches of %d events: want all, then one at a time", sizes)
	}

	published.answer = func(msg *message.Message) error {
		if msg.UUID == killer {
			t.Error("the killer was published once more than MaxAttempts")
		}
		return nil
	}
	r = startRelay(t, pool, published, func(c *RelayConfig) { c.MaxAttempts = attempts; c.PublishTimeout = time.Second })
	// The dead relay's lease has to end first.
	if _, err := pool.Exec(ctx, "update romancy.outbox_slots set lease_until = clock_timestamp() where owner is not null"); err != nil {
		t.Fatal(err)
	}
	published.untilPublished(t, 6)
	untilEmpty(t, pool)
	letters, err := r.DeadLetters(ctx, 10, nil)
	if err != nil || len(letters) != 1 || letters[0].ID != killer || !strings.Contains(letters[0].LastError, "ended every time") {
		t.Errorf("dead letters: %+v, %v", letters, err)
	}
}

// A relay is cut off from the database between publishing and settling, which is what killing it there looks like to
// everybody else.
func TestTakeoverRepeatsAtMostTheBatchInHand(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Connect(t, url)
	proxy := pgtest.NewProxy(t, url)
	doomedPool := pgtest.Connect(t, proxy.URL())

	const perSlot = 3
	published := newRecorder()
	cut := make(chan struct{})
	published.answer = func(*message.Message) error {
		select {
		case <-cut:
		default:
			proxy.Stall()
			close(cut)
		}
		return nil
	}
	short := func(c *RelayConfig) {
		c.PublishTimeout = 2 * time.Second
		c.PollInterval = never
		c.BatchSize = perSlot
		c.Lanes = 1
	}
	doomed := startRelay(t, doomedPool, published, short, func(c *RelayConfig) { c.Consumers = 1 })
	t.Cleanup(proxy.Resume) // before the shutdown
	events := numbered("k", 10)
	add(t, pool, events...)
	doomed.alarm.wake()
	published.untilPublished(t, perSlot)

	// Woken by nothing but its own knowledge of the other one's lease.
	heir := startRelay(t, pool, published, short)
	_ = heir
	published.untilPublished(t, len(events)+perSlot)
	untilEmpty(t, pool)
	proxy.Resume()
	eventually(t, "the first relay has noticed, and counted what it could not settle", func() bool {
		stats, err := doomed.Stats(within(t))
		return err == nil && stats.LeasesLost == 1 && stats.Unsettled == perSlot
	})
	shutdown(t, doomed)
	want := append(ids(events[:perSlot]), ids(events)...)
	equal(t, "published", published.published(), want)
}

// A relay that comes back after its lease was taken over changes nothing, whatever it has to say.
func TestSettlementAfterATakeoverChangesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := within(t)
	add(t, pool, numbered("k", 3)...)
	take := func() (*consumer, *claim) {
		r := testRelay(t, pool, newRecorder())
		r.hard, r.cutShort = context.WithCancel(ctx)
		t.Cleanup(r.cutShort)
		c := r.consumers[0]
		cl := &claim{consumer: c}
		q, _ := c.SelectQuery(sqlSelect)
		if _, err := cl.QueryContext(ctx, q.Query, q.Args...); err != nil {
			t.Fatal(err)
		}
		return c, cl
	}
	late, lateClaim := take()
	late.relay.publish(lateClaim.batch)
	if _, other := take(); other.batch != nil {
		t.Fatal("a slot has two owners")
	}
	if _, err := pool.Exec(ctx, "update romancy.outbox_slots set lease_until = clock_timestamp() where owner is not null"); err != nil {
		t.Fatal(err)
	}
	heir, heirClaim := take()
	state := "select string_agg(owner || token::text || lease_until::text, ',') || (select string_agg(o::text, ',' order by id) from romancy.outbox o) from romancy.outbox_slots where owner is not null"
	before := query[string](t, pool, state)
	settle, _ := settler{late}.AckMessageQuery(ackOf(lateClaim.batch))
	if _, err := lateClaim.ExecContext(ctx, settle.Query, settle.Args...); err != nil {
		t.Fatal(err)
	}
	late.relay.keeper.hold(lateClaim.batch)
	if _, err := late.relay.keeper.renew(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(late.relay.keeper.own.close)
	if after := query[string](t, pool, state); after != before {
		t.Errorf("it was\n%s\nand is\n%s", before, after)
	}
	if lateClaim.batch.mayBegin(late.relay) {
		t.Error("the late relay would begin another call")
	}
	// The heir takes what was in the other's hands one at a time.
	heir.relay.publish(heirClaim.batch)
	settle, _ = settler{heir}.AckMessageQuery(ackOf(heirClaim.batch))
	if _, err := heirClaim.ExecContext(ctx, settle.Query, settle.Args...); err != nil {
		t.Fatal(err)
	}
	if n := query[int](t, pool, "select count(*) from romancy.outbox"); n != 2 {
		t.Errorf("%d events left, want 2", n)
	}
}

func TestLostConnectionsAreSurvived(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	victims := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["application_name"] = "victim"
	})
	published := newRecorder()
	startRelay(t, victims, published, func(c *RelayConfig) { c.PublishTimeout = 500 * time.Millisecond })
	const total = 300
	for i := range 30 {
		var events []Event
		for j := range total / 30 {
			events = append(events, Event{ID: fmt.Sprintf("%d-%d", i, j), Topic: "t"})
		}
		add(t, pool, events...)
		if i%10 == 5 {
			pgtest.KillBackends(t, pool, "victim")
		}
	}
	published.until(t, "all events", func(calls []received) bool {
		seen := map[string]bool{}
		for _, call := range calls {
			seen[call.id] = true
		}
		return len(seen) == total
	})
	untilEmpty(t, pool)
}
