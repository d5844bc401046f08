package outbox

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
)

var sqlSelect watermillsql.SelectQueryParams

func ackOf(b *batch) watermillsql.AckMessageQueryParams {
	return watermillsql.AckMessageQueryParams{LastRow: watermillsql.Row{ExtraData: map[string]any{extraBatch: b}}}
}

func migrate(t *testing.T, pool *pgxpool.Pool, name string) error {
	t.Helper()
	return schema.Migrate(within(t), pool, name)
}

// gate is a publisher whose calls wait.
type gate struct {
	*recorder
	entered chan string
	open    chan struct{}
}

func newGate() *gate {
	g := &gate{recorder: newRecorder(), entered: make(chan string, 1000), open: make(chan struct{})}
	g.answer = func(msg *message.Message) error {
		g.entered <- msg.UUID
		<-g.open
		return nil
	}
	return g
}

func TestShutdownKeepsWhatWasPublishedAndReturnsTheRest(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	r := startRelay(t, pool, g, func(c *RelayConfig) { c.Lanes = 3; c.Consumers = 2 })
	var events []Event
	for k := range 20 {
		events = append(events, numbered(fmt.Sprint("key", k), 5)...)
	}
	add(t, pool, events...)
	for range 2 { // one for each consumer, unless two keys share a slot
		<-g.entered
	}
	ended := make(chan error)
	go func() { ended <- r.Shutdown(within(t)) }()
	<-r.draining
	close(g.open)
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := len(g.published()); n < 2 || n > 3 {
		t.Errorf("%d published, want what was under way", n)
	}
	if n := query[int](t, pool, "select count(*) from romancy.outbox where attempts > 0 or taken is not null or next_at is not null"); n != 0 {
		t.Errorf("%d events were not given back as they were", n)
	}
	if n := query[int](t, pool, "select count(*) from romancy.outbox_slots where owner is not null"); n != 0 {
		t.Errorf("%d slots still have an owner", n)
	}
	startRelay(t, pool, g)
	g.untilPublished(t, len(events))
	untilEmpty(t, pool)
	equal(t, "published", sorted(g.published()), sorted(ids(events)))
}

func TestShutdownDoesNotWaitForAPublisherThatHangs(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	r := startRelay(t, pool, g, func(c *RelayConfig) { c.PublishTimeout = never })
	add(t, pool, Event{ID: "stuck", Topic: "t"})
	<-g.entered
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := r.Shutdown(ctx)
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "1 calls") {
		t.Errorf("got %v", err)
	}
	if n := query[int](t, pool, "select count(*) from romancy.outbox where attempts = 0 and taken is null"); n != 1 {
		t.Error("the event was not given back")
	}
	if stats, err := r.Stats(within(t)); err != nil || stats.Late != 1 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
	close(g.open)
	shutdown(t, r) // the second one waits for the call
	if stats, err := r.Stats(within(t)); err != nil || stats.Late != 0 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
}

func TestShutdownIsIdempotentAndFinal(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	r := testRelay(t, pool, newRecorder())
	shutdown(t, r)
	shutdown(t, r)
	if err := r.Start(within(t)); err == nil {
		t.Error("started after a shutdown")
	}
	r = testRelay(t, pool, newRecorder())
	if err := r.Start(within(t)); err != nil {
		t.Fatal(err)
	}
	if err := r.Start(within(t)); err == nil {
		t.Error("started twice")
	}
	var all sync.WaitGroup
	for range 5 {
		all.Go(func() { shutdown(t, r) })
	}
	all.Wait()
}

func TestStartSaysWhatIsMissing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	r := testRelay(t, pool, newRecorder())
	var version *schema.VersionError
	if err := r.Start(within(t)); !errors.As(err, &version) {
		t.Errorf("got %v, want a VersionError", err)
	}
}

func TestStartAndShutdownUnderLoad(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	total := 0
	for i := range 15 {
		r := testRelay(t, pool, published)
		if err := r.Start(within(t)); err != nil {
			t.Fatal(err)
		}
		events := numbered(fmt.Sprint("round", i), 40)
		total += len(events)
		add(t, pool, events...)
		if i%2 == 0 {
			published.untilPublished(t, total-len(events)+1)
		}
		shutdown(t, r)
	}
	startRelay(t, pool, published)
	published.untilPublished(t, total)
	untilEmpty(t, pool)
	if n := len(published.snapshot()); n != total {
		t.Errorf("%d calls for %d events: a shutdown repeats nothing", n, total)
	}
}

func TestPublisherThatDoesNotReturnDelaysOnlyItsEvent(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	release := make(chan struct{})
	var hung sync.Once
	published.answer = func(msg *message.Message) error {
		if msg.UUID == "stuck-0" {
			hang := false
			hung.Do(func() { hang = true })
			if hang {
				<-release // deaf to the message's context
			}
		}
		return nil
	}
	r := startRelay(t, pool, published, func(c *RelayConfig) { c.PublishTimeout = time.Second })
	add(t, pool, append(numbered("stuck", 3), numbered("other", 3)...)...)
	published.untilPublished(t, 6)
	untilEmpty(t, pool)
	if stats, err := r.Stats(within(t)); err != nil || stats.Late != 1 || stats.Failed != 1 {
		t.Errorf("stats: %+v, %v", stats, err)
	}
	var stuck []string
	for _, id := range published.published() {
		if strings.HasPrefix(id, "stuck") {
			stuck = append(stuck, id)
		}
	}
	equal(t, "the key", stuck, []string{"stuck-0", "stuck-1", "stuck-2"})
	close(release)
}

// A publisher that hangs altogether must not collect goroutines, nor keep events from a relay whose publisher works.
func TestHangingPublisherIsBoundedByLanes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	g := newGate()
	const lanes = 3
	bad := startRelay(t, pool, g, func(c *RelayConfig) { c.PublishTimeout = 100 * time.Millisecond; c.Lanes = lanes })
	const total = 60
	var events []Event
	for i := range total {
		events = append(events, Event{ID: fmt.Sprint(i), Topic: "t"})
	}
	add(t, pool, events...)
	for range lanes {
		<-g.entered
	}
	eventually(t, "all lanes are late", func() bool {
		stats, err := bad.Stats(within(t))
		return err == nil && stats.Late == lanes
	})
	good := newRecorder()
	startRelay(t, pool, good)
	good.untilPublished(t, total)
	untilEmpty(t, pool)
	if len(g.entered) != 0 {
		t.Errorf("%d more calls than lanes", len(g.entered))
	}
	close(g.open)
}

func TestPublisherThatPanicsOrExitsIsAFailure(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	published.answer = func(msg *message.Message) error {
		switch msg.UUID {
		case "panics":
			panic("publisher bug")
		case "exits":
			runtime.Goexit()
		}
		return nil
	}
	r := startRelay(t, pool, published, func(c *RelayConfig) { c.MaxAttempts = 2 })
	add(t, pool, Event{ID: "panics", Topic: "t"}, Event{ID: "exits", Topic: "t"}, Event{ID: "works", Topic: "t"})
	published.untilPublished(t, 1)
	untilEmpty(t, pool)
	letters, err := r.DeadLetters(within(t), 10, nil)
	if err != nil || len(letters) != 2 {
		t.Fatalf("dead letters: %+v, %v", letters, err)
	}
	for _, l := range letters {
		want := map[string]string{"panics": "publisher bug", "exits": "Goexit"}[l.ID]
		if !strings.Contains(l.LastError, want) {
			t.Errorf("%s: %q does not contain %q", l.ID, l.LastError, want)
		}
	}
}

// The lease is renewed while a batch is in work, however long.
func TestLongBatchKeepsItsLease(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	published := newRecorder()
	published.answer = func(*message.Message) error {
		time.Sleep(200 * time.Millisecond) // the work itself
		return nil
	}
	const n = 15 // half as long again as the lease
	for range 2 {
		startRelay(t, pool, published, func(c *RelayConfig) { c.PublishTimeout = time.Second })
	}
	add(t, pool, numbered("k", n)...)
	published.untilPublished(t, n)
	untilEmpty(t, pool)
	equal(t, "published", published.published(), ids(numbered("k", n)))
	// Without a renewal every batch is given back when half of the lease is over.
	if claims := query[int](t, pool, "select sum(token) from romancy.outbox_slots"); claims > 2 {
		t.Errorf("the events were taken %d times, want once", claims)
	}
}

func TestLargeEventsTravelInSmallBatches(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	r := testRelay(t, pool, newRecorder())
	r.hard, r.cutShort = context.WithCancel(within(t))
	t.Cleanup(r.cutShort)
	events := numbered("k", 12)
	for i := range events {
		events[i].Payload = make([]byte, 1<<20)
	}
	add(t, pool, events...)
	c := r.consumers[0]
	cl := &claim{consumer: c}
	q, _ := c.SelectQuery(sqlSelect)
	if _, err := cl.QueryContext(within(t), q.Query, q.Args...); err != nil {
		t.Fatal(err)
	}
	if n := len(cl.batch.events); n != maxBatchBytes>>20 {
		t.Errorf("%d events of 1 MiB in a batch, want %d", n, maxBatchBytes>>20)
	}
}

func TestStartSaysWhatTheRoleMayNotDo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	role := pool.Config().ConnConfig.Database + "_relay"
	mustExec(t, pool, fmt.Sprintf("create role %[1]s; grant usage on schema romancy to %[1]s; grant select, update on all tables in schema romancy to %[1]s", role))
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), "drop owned by "+role+"; drop role "+role); err != nil {
			t.Error(err)
		}
	})
	restricted := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
		c.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+role)
			return err
		}
	})
	r := testRelay(t, restricted, newRecorder())
	var missing *schema.GrantError
	if err := r.Start(within(t)); !errors.As(err, &missing) || !strings.Contains(err.Error(), "grant delete on table romancy.outbox to ") {
		t.Fatalf("start: %v", err)
	}
	mustExec(t, pool, "grant delete on romancy.outbox to "+role+"; grant insert on romancy.outbox_slots to "+role)
	if err := r.Start(within(t)); err != nil {
		t.Error(err)
	}
	shutdown(t, r)
}
