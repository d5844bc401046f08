package outbox

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestPoisonEventBlocksOnlyItsKeyAndBecomesADeadLetter(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	cured := make(chan struct{})
	published.answer = func(msg *message.Message) error {
		select {
		case <-cured:
			return nil
		default:
		}
		if msg.UUID == "bad-0" {
			return errors.New("cannot be encoded: \x00 \xff")
		}
		return nil
	}
	r := startRelay(t, pool, published, func(c *RelayConfig) {
		c.MaxAttempts = 3
		c.InitialBackoff, c.MaxBackoff = 50*time.Millisecond, 100*time.Millisecond
	})
	// Neighbours in the same slot, so in the same batch.
	neighbour := "good"
	for i := 0; slotOf(neighbour) != slotOf("bad"); i++ {
		neighbour = fmt.Sprint("good", i)
	}
	add(t, pool, append(numbered("bad", 4), numbered(neighbour, 4)...)...)
	published.untilPublished(t, 7)
	untilEmpty(t, pool)

	tries, deadAfter, goodAfter := 0, 0, 0
	for i, call := range published.snapshot() {
		switch {
		case call.id == "bad-0":
			tries++
			deadAfter = i
		case call.key == "bad" && tries < 3:
			t.Errorf("%s overtook its predecessor", call.id)
		case call.id == neighbour+"-3":
			goodAfter = i
		}
	}
	if tries != 3 {
		t.Errorf("%d attempts, want MaxAttempts 3", tries)
	}
	if goodAfter > deadAfter {
		t.Error("another key waited for the failing one")
	}
	var bad []string
	for _, id := range published.published() {
		if strings.HasPrefix(id, "bad-") {
			bad = append(bad, id)
		}
	}
	equal(t, "the rest of the key", bad, []string{"bad-1", "bad-2", "bad-3"})

	letters, err := r.DeadLetters(within(t), 10, nil)
	if err != nil || len(letters) != 1 {
		t.Fatalf("dead letters: %+v, %v", letters, err)
	}
	l := letters[0]
	if l.ID != "bad-0" || l.Topic != "numbers" || l.Key != "bad" || string(l.Payload) != "0" || l.Attempts != 3 ||
		!strings.HasPrefix(l.LastError, "cannot be encoded") || l.DiedAt.Before(l.WrittenAt) {
		t.Errorf("dead letter: %+v", l)
	}
	if stats, err := r.Stats(within(t)); err != nil || stats.DeadLetters != 1 || stats.Pending != 0 || stats.Published != 7 || stats.Failed != 3 {
		t.Errorf("stats: %+v, %v", stats, err)
	}

	close(cured)
	if n, err := r.Requeue(within(t), "bad-0", "unknown"); n != 1 || err != nil {
		t.Errorf("requeued %d, %v", n, err)
	}
	published.untilPublished(t, 8)
	untilEmpty(t, pool)
	if n := query[int](t, pool, "select count(*) from romancy.outbox"); n != 0 {
		t.Errorf("%d rows left", n)
	}
}

// However many events wait behind a failing one: they are put aside once, and come back in order.
func TestLongQueueBehindAFailingEvent(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	cured := make(chan struct{})
	published.answer = func(msg *message.Message) error {
		select {
		case <-cured:
			return nil
		default:
		}
		if msg.UUID == "bad-0" {
			return errors.New("no")
		}
		return nil
	}
	startRelay(t, pool, published, func(c *RelayConfig) { c.InitialBackoff, c.MaxBackoff = never, never })
	bad := numbered("bad", 2000)
	neighbour := "good"
	for i := 0; slotOf(neighbour) != slotOf("bad"); i++ {
		neighbour = fmt.Sprint("good", i)
	}
	good := numbered(neighbour, 20)
	add(t, pool, append(bad, good...)...)
	published.untilPublished(t, len(good))
	equal(t, "published", published.published(), ids(good))
	eventually(t, "no blocked event is in the way of others", func() bool {
		return query[int](t, pool, "select count(*) from romancy.outbox where next_at is null") == 0
	})
	close(cured)
	if _, err := pool.Exec(within(t), "update romancy.outbox set next_at = clock_timestamp() where event_id = 'bad-0'"); err != nil {
		t.Fatal(err)
	}
	published.untilPublished(t, len(good)+len(bad))
	untilEmpty(t, pool)
	equal(t, "published", published.published(), append(ids(good), ids(bad)...))
}

// Somebody deletes the failing event in psql: those behind it must not wait for ever.
func TestSweepReleasesEventsWhosePredecessorWasRemoved(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	published.answer = func(msg *message.Message) error {
		if strings.HasSuffix(msg.UUID, "-0") {
			return errors.New("no")
		}
		return nil
	}
	r := startRelay(t, pool, published, func(c *RelayConfig) { c.InitialBackoff, c.MaxBackoff = never, never; c.BatchSize = 2 })
	const keys, each = 5, 6
	for k := range keys {
		add(t, pool, numbered(fmt.Sprint("key", k), each)...)
	}
	waiting := "select count(*) from romancy.outbox where next_at = 'infinity'"
	eventually(t, "all others are held", func() bool { return query[int](t, pool, waiting) == keys*(each-1) })
	if n, err := r.Sweep(within(t)); n != 0 || err != nil {
		t.Errorf("sweep: %d, %v: all wait for a reason", n, err)
	}
	if n := query[int](t, pool, waiting); n != keys*(each-1) {
		t.Errorf("%d are held, want %d: they wait for a reason", n, keys*(each-1))
	}
	if stats, err := r.Stats(within(t)); err != nil || stats.Pending != keys*each || stats.Waiting != keys*each || stats.OldestAge <= 0 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
	if _, err := pool.Exec(within(t), "delete from romancy.outbox where event_id like '%-0'"); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Sweep(within(t)); err != nil {
		t.Fatal(err)
	}
	published.untilPublished(t, keys*(each-1))
	untilEmpty(t, pool)
}

func TestRetainDeletesOldDeadLettersOnly(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := within(t)
	if _, err := pool.Exec(ctx, `
		insert into romancy.outbox (event_id, topic, key, slot, payload, dead_at, created_at)
		select g::text, 't', g::text, 0, ''::bytea, clock_timestamp() - g * interval '1 hour', clock_timestamp() - interval '1 year'
		from generate_series(1, 1200) g
		union all
		select 'pending', 't', 'k', 0, ''::bytea, null, clock_timestamp() - interval '1 year'`); err != nil {
		t.Fatal(err)
	}
	forever := testRelay(t, pool, newRecorder())
	if n, err := forever.Retain(ctx); n != 0 || err != nil {
		t.Errorf("deleted %d, %v, although dead letters are kept by default", n, err)
	}
	r := testRelay(t, pool, newRecorder(), func(c *RelayConfig) { c.DeadLetterRetention = 100*time.Hour + 30*time.Minute })
	if n, err := r.Retain(ctx); n != 1100 || err != nil {
		t.Errorf("deleted %d, %v, want 1100", n, err)
	}
	if n := query[int](t, pool, "select count(*) from romancy.outbox"); n != 101 {
		t.Errorf("%d rows left, want 100 dead letters and a pending event", n)
	}
}

// However many there are, a statement changes some hundred.
func TestManyDeadLettersOfOneIDAreRequeuedAndDiscarded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const many = 2*retainBatch + 1
	bury := func() {
		mustExec(t, pool, fmt.Sprintf(`insert into romancy.outbox (event_id, topic, key, slot, payload, dead_at)
			select 'same', 't', 'k', %d, '', now() from generate_series(1, %d)`, slotOf("k"), many))
	}
	r := testRelay(t, pool, newRecorder())
	bury()
	if n, err := r.Requeue(within(t), "no such", "same"); err != nil || n != many {
		t.Errorf("requeued %d, %v", n, err)
	}
	bury()
	if n, err := r.DiscardDeadLetters(within(t), "same", "no such"); err != nil || n != many {
		t.Errorf("discarded %d, %v", n, err)
	}
	if n := query[int](t, pool, "select count(*) from romancy.outbox where dead_at is null and next_at is null"); n != many {
		t.Errorf("%d events are ready, want %d", n, many)
	}
}

// A settlement makes about as many held events ready as fit in a batch, of however many keys.
func TestASettlementReleasesABatchOfHeldEvents(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	r := testRelay(t, pool, newRecorder(), func(c *RelayConfig) { c.BatchSize = 10 })
	for keys, want := range map[int]int{1: 10, 3: 3, 10: 1} {
		b := &batch{}
		for i := range keys {
			b.lanes = append(b.lanes, &lane{relay: r, batch: b, events: []*taken{{key: fmt.Sprint(i), fate: delivered}}})
		}
		args := r.settlement(b)
		if got := args[len(args)-1]; got != want {
			t.Errorf("%d keys: releases %v of each, want %d", keys, got, want)
		}
	}
}

// Whoever empties all tables, as test suites do, takes the slots along: they are made again, by a relay that runs and by one that starts,
// and a line says so.
func TestSlotsThatAreMissingAreMadeAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	var lines bytes.Buffer
	log := slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn})) // read after the last relay
	truncate := func() {
		t.Helper()
		if _, err := pool.Exec(within(t), "truncate romancy.outbox, romancy.outbox_slots restart identity"); err != nil {
			t.Fatal(err)
		}
	}
	begin := func() *Relay {
		return startRelay(t, pool, published, func(c *RelayConfig) { c.Logger, c.FallbackInterval = log, 50*time.Millisecond })
	}
	running := begin()
	add(t, pool, numbered("before", 3)...)
	published.untilPublished(t, 3)
	untilEmpty(t, pool)
	truncate()
	add(t, pool, numbered("while it runs", 3)...)
	published.untilPublished(t, 6)
	untilEmpty(t, pool)
	shutdown(t, running)
	truncate()
	running = begin()
	add(t, pool, numbered("after a start", 3)...)
	published.untilPublished(t, 9)
	untilEmpty(t, pool)
	shutdown(t, running)
	if n := strings.Count(lines.String(), "rows of outbox_slots were missing"); n != 2 || strings.Count(lines.String(), "slots=64") != 2 {
		t.Errorf("%d lines say it, want one each time:\n%s", n, lines.String())
	}
}
