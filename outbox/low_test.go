package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// holdSnapshot opens a snapshot, as a report or a forgotten session does, that ends with the test. What is deleted from then
// on stays.
func holdSnapshot(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	ctx := within(t)
	conn, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(ctx) }) // ends the transaction, whatever comes back
	if _, err := conn.Exec(ctx, "begin isolation level repeatable read; select count(*) from romancy.outbox"); err != nil {
		t.Fatal(err)
	}
}

// claimBuffers returns how many pages a claim touches that is rolled back.
func claimBuffers(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	ctx := within(t)
	queries, err := loadQueries("romancy")
	if err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if _, err := tx.Exec(ctx, queries.Get("GuardClaim"), "30s", "30s"); err != nil {
		t.Fatal(err)
	}
	total := 0
	for _, statement := range []struct {
		name string
		args []any
	}{
		{"TakeSlot", []any{"reader", 1000, []int32{}}}, {"ClaimBatch", []any{"reader", 100, maxBatchBytes}}, {"Outlook", []any{"reader", []int32{}}},
	} {
		var explained []byte
		if err := tx.QueryRow(ctx, "explain (analyze, buffers, format json) "+queries.Get(statement.name), statement.args...).Scan(&explained); err != nil {
			t.Fatalf("%s: %v", statement.name, err)
		}
		var plans []struct {
			Plan struct {
				Hit  int `json:"Shared Hit Blocks"`
				Read int `json:"Shared Read Blocks"`
			} `json:"Plan"`
		}
		if err := json.Unmarshal(explained, &plans); err != nil || len(plans) != 1 {
			t.Fatalf("%v in %s", err, explained)
		}
		total += plans[0].Plan.Hit + plans[0].Plan.Read
	}
	return total
}

// While an old snapshot is open anywhere in the database, every delivered event leaves dead index entries that nothing may
// remove, and so does every change of a slot. A claim must not read them all.
func TestClaimsStayCheapWhileAnOldSnapshotIsOpen(t *testing.T) {
	t.Parallel()
	const events, changes = 30_000, 300
	pool := pgtest.Pool(t)
	holdSnapshot(t, pool)
	fresh := claimBuffers(t, pool)
	for range changes {
		if _, err := pool.Exec(within(t), "update romancy.outbox_slots set token = token + 1"); err != nil {
			t.Fatal(err)
		}
	}
	changed := claimBuffers(t, pool)
	if changed > 2*fresh {
		t.Errorf("pages touched by a claim: %d before, %d after %d changes of each slot", fresh, changed, changes)
	}
	published := newRecorder()
	startRelay(t, pool, published)
	fill(t, pool, events)
	published.untilPublished(t, events)
	untilEmpty(t, pool)
	var passed int
	// The last ones, fewer than lowEvery and a batch for each consumer, may still be read: by TakeSlot and by Outlook.
	eventually(t, "a claim touches few pages", func() bool {
		passed = claimBuffers(t, pool)
		return passed < 2*fresh+events/5
	})
	t.Logf("pages touched by a claim: %d before, %d after %d changes of each slot, %d after %d events", fresh, changed, changes, passed, events)
}

// lowest returns the lowest low-water mark.
func lowest(t *testing.T, pool *pgxpool.Pool) int64 {
	t.Helper()
	return query[int64](t, pool, "select min(low) from romancy.outbox_slots")
}

// deliverByHand is what remains of the delivery of n events that come after all that there are. It returns the last id.
func deliverByHand(t *testing.T, pool *pgxpool.Pool, r *Relay, n int) int64 {
	t.Helper()
	last := query[int64](t, pool, `with written as (
			insert into romancy.outbox (event_id, topic, key, slot, payload)
			select 'by hand', 'numbers', 'k', 0, '' from generate_series(1, $1::integer) returning id
		) select max(id) from written`, n)
	if _, err := pool.Exec(within(t), "delete from romancy.outbox where event_id = 'by hand'"); err != nil {
		t.Fatal(err)
	}
	r.low.note([]int64{last})
	return last
}

func raise(t *testing.T, r *Relay) {
	t.Helper()
	if _, err := r.raiseLow(within(t)); err != nil {
		t.Fatal(err)
	}
}

// An event gets its id when it is written, and can be seen when its transaction has committed, which may be long after later
// ones were delivered.
func TestLowWaterMarkStaysBelowTransactionsThatMayStillCommit(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	r := testRelay(t, pool, published, func(c *RelayConfig) { c.FallbackInterval = never })
	before := deliverByHand(t, pool, r, 10)
	raise(t, r)
	if got := lowest(t, pool); got != before {
		t.Fatalf("the mark is %d with everything delivered, want %d", got, before)
	}
	tx, err := pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(within(t)) }()
	if err := Add(within(t), tx, Event{ID: "late", Topic: "numbers", Key: "a"}); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		deliverByHand(t, pool, r, 10)
		raise(t, r)
	}
	if got := lowest(t, pool); got != before {
		t.Fatalf("the mark is %d while a transaction is open whose event comes after %d", got, before)
	}
	if err := tx.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		deliverByHand(t, pool, r, 10)
		raise(t, r)
	}
	late := query[int64](t, pool, "select low from romancy.outbox_slots where slot = $1", slotOf("a"))
	if id := query[int64](t, pool, "select id from romancy.outbox where event_id = 'late'"); late != id {
		t.Errorf("the mark of its slot is %d, want that of the late event, %d", late, id)
	}
	if got := lowest(t, pool); got != late {
		t.Errorf("the mark of a slot is %d, below that of the slot with the late event, %d", got, late)
	}
	add(t, pool, Event{ID: "after", Topic: "numbers", Key: "a"})
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, r) })
	published.untilPublished(t, 2)
	equal(t, "published", published.published(), []string{"late", "after"})
}

// What failed, and what waited behind it, becomes ready under the small id that it has.
func TestEventsThatBecomeReadyAgainAreAboveTheLowWaterMark(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	failing := make(chan struct{})
	published.answer = func(*message.Message) error {
		select {
		case <-failing:
			return nil
		default:
			return errors.New("not yet")
		}
	}
	r := testRelay(t, pool, published, func(c *RelayConfig) {
		c.FallbackInterval, c.MaxAttempts, c.Consumers = never, 1000, 1
	})
	add(t, pool, numbered("a", 5)...)
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, r) })
	eventually(t, "the first is in backoff, the others are held", func() bool {
		return query[int](t, pool, "select count(*) from romancy.outbox where next_at = 'infinity'") == 4
	})
	// Others are delivered meanwhile, for long enough that every moment of a retry is met.
	var goal int64
	eventually(t, "the marks of other slots rise and rise", func() bool {
		delivered := query[int64](t, pool, "select max(nextval('romancy.outbox_id_seq')) from generate_series(1, 1000)")
		if goal == 0 {
			goal = delivered + 200_000
		}
		r.low.note(make([]int64, lowEvery))
		r.low.note([]int64{delivered})
		return query[int64](t, pool, "select min(low) from romancy.outbox_slots where slot <> $1", slotOf("a")) > goal
	})
	close(failing)
	published.untilPublished(t, 5)
	equal(t, "published", published.published(), []string{"a-0", "a-1", "a-2", "a-3", "a-4"})
}

func TestRequeuedDeadLettersAreAboveTheLowWaterMark(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	r := testRelay(t, pool, published, func(c *RelayConfig) { c.FallbackInterval = never })
	add(t, pool, numbered("a", 2)...)
	if _, err := pool.Exec(within(t), "update romancy.outbox set dead_at = now()"); err != nil {
		t.Fatal(err)
	}
	last := deliverByHand(t, pool, r, 10)
	raise(t, r)
	if got := lowest(t, pool); got != last {
		t.Fatalf("the mark is %d, want %d", got, last)
	}
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, r) })
	if n, err := r.Requeue(within(t), "a-0", "a-1", "unknown"); err != nil || n != 2 {
		t.Fatalf("requeued %d, %v", n, err)
	}
	published.untilPublished(t, 2)
}

func TestEventsWhosePredecessorIsGoneAreAboveTheLowWaterMark(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	r := testRelay(t, pool, published, func(c *RelayConfig) { c.FallbackInterval = never })
	add(t, pool, numbered("a", 2)...)
	if _, err := pool.Exec(within(t), "update romancy.outbox set next_at = 'infinity'"); err != nil {
		t.Fatal(err)
	}
	last := deliverByHand(t, pool, r, 10)
	raise(t, r)
	if got := lowest(t, pool); got != last {
		t.Fatalf("the mark is %d, want %d", got, last)
	}
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, r) })
	eventually(t, "both are published", func() bool {
		if _, err := r.Sweep(within(t)); err != nil {
			t.Fatal(err)
		}
		return len(published.published()) == 2
	})
	equal(t, "published", published.published(), []string{"a-0", "a-1"})
}

// An event out of backoff that was in the hands of a relay that died is ready again, for another relay.
func TestRetriedEventOfADeadRelayIsAboveTheLowWaterMark(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	r := testRelay(t, pool, published, func(c *RelayConfig) { c.FallbackInterval = never })
	add(t, pool, Event{ID: "retried", Topic: "numbers", Key: "a"})
	if _, err := pool.Exec(within(t), "update romancy.outbox set next_at = now() - interval '1 second', attempts = 1"); err != nil {
		t.Fatal(err)
	}
	deliverByHand(t, pool, r, 10)
	raise(t, r)
	err := r.onPool(within(t), claimTimeout, work{guard: r.queries.Get("GuardClaim"), queue: func(b *pgx.Batch) {
		b.Queue(r.queries.Get("TakeSlot"), "dead", 1, []int32{})
		b.Queue(r.queries.Get("ClaimBatch"), "dead", 100, maxBatchBytes)
	}})
	if err != nil {
		t.Fatal(err)
	}
	if n := query[int](t, pool, "select count(*) from romancy.outbox where taken is not null"); n != 1 {
		t.Fatalf("%d events taken, want 1", n)
	}
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, r) })
	published.untilPublished(t, 1)
}

// Whatever the reason for a mark that is too high, its end is a matter of the fallback interval.
func TestLowWaterMarkThatIsTooHighIsLowered(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	if _, err := pool.Exec(within(t), "update romancy.outbox_slots set low = 1000000"); err != nil {
		t.Fatal(err)
	}
	events := numbered("a", 3)
	add(t, pool, events...)
	startRelay(t, pool, published, func(c *RelayConfig) { c.FallbackInterval = 20 * time.Millisecond })
	published.untilPublished(t, 3)
	equal(t, "published", published.published(), ids(events))
}

// A slot that is changing keeps its mark: what is becoming ready in it cannot be seen yet.
func TestLowWaterMarkOfAChangingSlotStays(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	r := testRelay(t, pool, newRecorder())
	tx, err := pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(within(t)) }()
	if _, err := tx.Exec(within(t), "update romancy.outbox_slots set served_at = now() where slot = 7"); err != nil {
		t.Fatal(err)
	}
	last := deliverByHand(t, pool, r, 10)
	raise(t, r)
	want := []string{fmt.Sprint("0 in ", 1), fmt.Sprint(last, " in ", slots-1)}
	rows, err := pool.Query(within(t), "select low || ' in ' || count(*) from romancy.outbox_slots group by low order by low")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || !slices.Equal(got, want) {
		t.Errorf("marks %q, %v, want %q", got, err, want)
	}
}
