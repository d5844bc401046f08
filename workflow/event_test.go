package workflow_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// asked is what a run of collector waits for.
type asked struct {
	Attributes map[string]string
	Events     int
}

// collector waits for events one after the other and returns what they say.
var collector = workflow.Define("collector", func(ctx *workflow.Context, in asked) (string, error) {
	var got []string
	for range in.Events {
		event, err := workflow.WaitEvent[string](ctx, "order.paid", workflow.WithAttributes(in.Attributes))
		if err != nil {
			return strings.Join(got, " "), err
		}
		got = append(got, event.Data)
	}
	return strings.Join(got, " "), nil
})

// calm is a world in which no sweep helps out.
var calm = configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })

// paid is an event about an order, with an id of its own.
func paid(order, says string) workflow.OutgoingEvent {
	return workflow.OutgoingEvent{
		Type: "order.paid", Source: "shop", ID: says, Attributes: map[string]string{"order": order, "region": "eu"}, Data: says,
	}
}

func startCollector(t *testing.T, w *worker, events int, order string) *workflow.Run[string] {
	t.Helper()
	in := asked{Events: events}
	if order != "" {
		in.Attributes = map[string]string{"order": order}
	}
	run, err := collector.Start(testContext(t), w.Engine, in)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

func sendEvents(t *testing.T, w *worker, events ...workflow.OutgoingEvent) {
	t.Helper()
	for _, event := range events {
		if err := w.SendEvent(testContext(t), event); err != nil {
			t.Fatal(err)
		}
	}
}

func collected(t *testing.T, run *workflow.Run[string], want string) {
	t.Helper()
	if got, err := run.Result(testContext(t)); err != nil || got != want {
		t.Errorf("run %s got %q, %v; want %q", run.ID(), got, err, want)
	}
}

func parkedOnEvents(t *testing.T, pool *pgxpool.Pool, runs int) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d wait for events", runs), func() bool {
		return count(t, pool, "select count(*) from romancy.event_waits") == runs
	})
}

// Every run gets every event that it asks for once, oldest first: sent before it began or while it waits, here or by another
// process, whoever else has had it.
func TestEveryRunGetsEveryMatchingEventOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	definitions := []workflow.Definition{collector}
	one, two := startWorker(t, pool, definitions, calm), startWorker(t, pool, definitions, calm)
	sendEvents(t, one, paid("1", "a"), paid("2", "b"))
	all, first, other := startCollector(t, one, 5, ""), startCollector(t, two, 3, "1"), startCollector(t, one, 2, "2")
	parkedOnEvents(t, pool, 3)
	sendEvents(t, two, paid("1", "c"))
	sendEvents(t, one, workflow.OutgoingEvent{Type: "order.sent", Source: "shop", Attributes: map[string]string{"order": "1"}, Data: "x"})
	sendEvents(t, one, paid("2", "d"), paid("1", "e"))
	collected(t, all, "a b c d e")
	collected(t, first, "a c e")
	collected(t, other, "b d")
	collected(t, startCollector(t, two, 5, ""), "a b c d e")
	if n := count(t, pool, "select count(*) from romancy.event_waits"); n != 0 {
		t.Errorf("%d runs that have ended still wait", n)
	}
}

// Beyond a few runs that wait for a type, the database says which of them an event is for.
func TestEventsFindTheirRunAmongMany(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const runs = 60
	definitions := []workflow.Definition{collector}
	quiet := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	one, two := startWorker(t, pool, definitions, quiet), startWorker(t, pool, definitions, quiet)
	eventually(t, "both are known to listen, so that their runs are left to them", func() bool {
		return count(t, pool, "select count(*) from romancy.workers where listening") == 2
	})
	var started []*workflow.Run[string]
	for i := range runs {
		started = append(started, startCollector(t, []*worker{one, two}[i%2], 2, fmt.Sprint(i)))
	}
	all := startCollector(t, one, 2*runs, "")
	parkedOnEvents(t, pool, runs+1)
	resumed := one.Status().Resumed + two.Status().Resumed
	sendEvents(t, one, paid("0", "first"))
	eventually(t, "two are told, and wait again", func() bool {
		return count(t, pool, "select count(*) from romancy.event_waits where seen <> '{}'") == 2
	})
	if n := one.Status().Resumed + two.Status().Resumed - resumed; n != 2 {
		t.Errorf("%d runs were resumed by an event for 2", n)
	}
	var wg sync.WaitGroup
	for i := range runs {
		wg.Go(func() {
			for n := range 2 {
				if i+n > 0 {
					sendEvents(t, []*worker{one, two}[n], paid(fmt.Sprint(i), fmt.Sprintf("%d-%d", i, n)))
				}
			}
		})
	}
	wg.Wait()
	for i, run := range started[1:] {
		collected(t, run, fmt.Sprintf("%d-0 %d-1", i+1, i+1))
	}
	collected(t, started[0], "first 0-1")
	if got, err := all.Result(testContext(t)); err != nil || len(strings.Fields(got)) != 2*runs {
		t.Errorf("who asks for all got %q, %v", got, err)
	}
}

// The event of a transaction that commits late is older than others that a run has had, and reaches it all the same; that of
// one that is rolled back reaches nobody.
func TestEventOfATransactionThatCommitsLateArrives(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{collector}, calm)
	ctx := testContext(t)
	begin := func(says string) pgx.Tx {
		t.Helper()
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = tx.Rollback(ctx) })
		if err := w.SendEventTx(ctx, tx, paid("1", says)); err != nil {
			t.Fatal(err)
		}
		return tx
	}
	late, never := begin("late"), begin("never")
	run := startCollector(t, w, 3, "1")
	sendEvents(t, w, paid("1", "early"))
	eventually(t, "the run has had one", func() bool {
		return count(t, pool, "select count(*) from romancy.event_waits where seen <> '{}'") == 1
	})
	if err := errors.Join(late.Commit(ctx), never.Rollback(ctx)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run has had two", func() bool {
		return count(t, pool, "select count(*) from romancy.event_waits where cardinality(seen) = 2") == 1
	})
	sendEvents(t, w, paid("1", "last"))
	collected(t, run, "early late last")
}

// What has the source and the id of an event that is kept is that event, whatever it says and however it is sent.
func TestEventIsSentOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 8 })
	sends := workflow.Define("sends", func(ctx *workflow.Context, says string) (int, error) {
		return 0, workflow.SendEvent(ctx, paid("1", says))
	})
	one, two := startWorker(t, pool, []workflow.Definition{sends, collector}), startWorker(t, pool, []workflow.Definition{sends, collector})
	ctx := testContext(t)
	const events = 30
	var wg sync.WaitGroup
	for i := range events {
		says := fmt.Sprint("event-", i)
		for _, w := range []*worker{one, two} {
			wg.Go(func() { sendEvents(t, w, paid("1", says), paid("1", says)) })
			wg.Go(func() {
				run, err := sends.Start(ctx, w.Engine, says)
				if err == nil {
					_, err = run.Result(ctx)
				}
				if err != nil {
					t.Error(err)
				}
			})
		}
		wg.Go(func() {
			if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return one.SendEventTx(ctx, tx, paid("1", says)) }); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := count(t, pool, "select count(*) from romancy.events"); n != events {
		t.Errorf("%d events are kept, want %d", n, events)
	}
	again := paid("1", "event-0")
	again.Source = "another shop"
	sendEvents(t, one, again)
	if n := count(t, pool, "select count(*) from romancy.events"); n != events+1 {
		t.Error("the event of another source was taken for the same")
	}
}

// Whoever sends an event that an open transaction has sent waits for it, and delays nobody else.
func TestOpenTransactionHoldsItsEventAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{collector}, calm)
	ctx := testContext(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	if err := w.SendEventTx(ctx, tx, paid("1", "held")); err != nil {
		t.Fatal(err)
	}
	sent := make(chan error, 1)
	go func() { sent <- w.SendEvent(ctx, paid("1", "held")) }()
	run := startCollector(t, w, 20, "")
	for i := range 20 {
		sendEvents(t, w, paid("2", fmt.Sprint(i)))
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-sent:
		t.Fatalf("the other did not wait: %v", err)
	default:
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	collected(t, startCollector(t, w, 1, "1"), "held")
}

func TestEventsExpire(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{collector}, configured(func(c *workflow.Config) {
		c.FallbackInterval, c.MaxMessagesPerBatch, c.EventRetention = time.Hour, 10, 2*time.Hour
	}))
	const old = 25
	for i := range old {
		sendEvents(t, w, paid("1", fmt.Sprint("old-", i)))
	}
	if n := count(t, pool, "select count(*) from romancy.events where expires_at between now() + interval '1 hour' and now() + interval '2 hours'"); n != old {
		t.Errorf("%d of %d events are kept for the time configured", n, old)
	}
	if _, err := pool.Exec(testContext(t), "update romancy.events set expires_at = now() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	long := paid("1", "long")
	long.Retention = 100 * time.Hour
	sendEvents(t, w, long)
	if n := count(t, pool, "select count(*) from romancy.events where expires_at > now() + interval '99 hours'"); n != 1 {
		t.Error("an event is not kept for the time that it names")
	}
	collected(t, startCollector(t, w, 1, ""), "long")
	collected(t, startCollector(t, w, 1, "1"), "long")
	if removed, err := w.SweepRetention(testContext(t)); err != nil || removed != old {
		t.Errorf("retention removed %d, %v; want %d", removed, err, old)
	}
	sendEvents(t, w, paid("1", "old-0")) // a new event under an id that is free again
	if n := count(t, pool, "select count(*) from romancy.events"); n != 2 {
		t.Errorf("%d events are kept, want 2", n)
	}
}

func TestEventsAreCheckedBeforeTheyAreSent(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var waits tally
	mistaken := workflow.Define("mistaken", func(ctx *workflow.Context, _ int) (int, error) {
		_, err := workflow.WaitEvent[int](ctx, "")
		waits.add(fmt.Sprint(err != nil))
		_, err = workflow.WaitEvent[int](ctx, "t", workflow.WithAttributes(map[string]string{"": "x"}))
		waits.add(fmt.Sprint(err != nil))
		if err := workflow.SendEvent(ctx, workflow.OutgoingEvent{Type: "a\x00"}); err == nil {
			return 0, errors.New("a run has sent an event that cannot be")
		}
		if _, err := workflow.Receive[int](ctx, "event:order.paid"); err == nil || !strings.Contains(err.Error(), "those of events") {
			return 0, fmt.Errorf("receive from a channel that is no channel: %w", err)
		}
		if err := workflow.SendEvent(ctx, workflow.OutgoingEvent{Type: "wrong", Data: "text"}); err != nil {
			return 0, err
		}
		_, err = workflow.WaitEvent[int](ctx, "wrong")
		if err == nil || !strings.Contains(err.Error(), "decode") {
			return 0, fmt.Errorf("an event of another shape: %w", err)
		}
		return 1, nil
	})
	w := startWorker(t, pool, []workflow.Definition{mistaken})
	ctx := testContext(t)
	run, err := mistaken.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Error(err)
	}
	if waits.of("true") != 2 {
		t.Error("a run waited for an event that cannot be")
	}
	if n := count(t, pool, "select count(*) from romancy.events where source = 'mistaken'"); n != 1 {
		t.Error("an event of a run does not name its workflow")
	}
	many := map[string]string{}
	for i := range 33 {
		many[fmt.Sprint(i)] = "x"
	}
	for says, change := range map[string]func(*workflow.OutgoingEvent){
		"event type is empty":                    func(e *workflow.OutgoingEvent) { e.Type = "" },
		"event source is empty":                  func(e *workflow.OutgoingEvent) { e.Source = "" },
		"at most 255":                            func(e *workflow.OutgoingEvent) { e.Type = strings.Repeat("x", 256) },
		"event source \"xxxx":                    func(e *workflow.OutgoingEvent) { e.Source = strings.Repeat("x", 256) },
		"event id \"a\\x00\" contains a NUL":     func(e *workflow.OutgoingEvent) { e.ID = "a\x00" },
		"event id \"\\xff\" is not valid UTF-8":  func(e *workflow.OutgoingEvent) { e.ID = "\xff" },
		"attribute \"a\" contains a NUL":         func(e *workflow.OutgoingEvent) { e.Attributes = map[string]string{"a": "\x00"} },
		"attribute \"\\xff\" is not valid UTF-8": func(e *workflow.OutgoingEvent) { e.Attributes = map[string]string{"\xff": ""} },
		"has no name":                            func(e *workflow.OutgoingEvent) { e.Attributes = map[string]string{"": "x"} },
		"801 bytes long":                         func(e *workflow.OutgoingEvent) { e.Attributes = map[string]string{"a": strings.Repeat("x", 800)} },
		"33 attributes":                          func(e *workflow.OutgoingEvent) { e.Attributes = many },
		"encode the data":                        func(e *workflow.OutgoingEvent) { e.Data = func() {} },
		"its JSON is not valid UTF-8":            func(e *workflow.OutgoingEvent) { e.Data = json.RawMessage("\"\xff\"") },
		"json.RawMessage is encoded as is no":    func(e *workflow.OutgoingEvent) { e.Data = json.RawMessage("{") },
		"OutgoingEvent.Retention is -1s":         func(e *workflow.OutgoingEvent) { e.Retention = -time.Second },
	} {
		event := paid("1", "x")
		change(&event)
		err := w.SendEvent(ctx, event)
		if err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("got %v, want it to say %q", err, says)
		}
		if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			if err := w.SendEventTx(ctx, tx, event); err == nil {
				return errors.New("sent in a transaction")
			}
			_, err := tx.Exec(ctx, "select 1") // it is not aborted
			return err
		}); err != nil {
			t.Errorf("%s: %v", says, err)
		}
	}
	largest := paid("1", strings.Repeat("i", 255))
	largest.Type, largest.Source = strings.Repeat("t", 255), strings.Repeat("s", 255)
	largest.Attributes = map[string]string{}
	for i := range 32 {
		largest.Attributes[fmt.Sprintf("%024d", i)] = "1"
	}
	sendEvents(t, w, largest)
}
