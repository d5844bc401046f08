package bus

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestCoalescedNotificationFollowsTheTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "tx", "end")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = ModeCoalesced })

	dropped, sent := begin(t, pool), begin(t, pool)
	notifyTx(t, n, dropped, "tx", "rolled back")
	if err := n.NotifyTxMany(within(t), sent, []Message{{"tx", "one"}, {"tx", "two"}}); err != nil {
		t.Fatal(err)
	}
	notifyTx(t, n, sent, "tx", "three")
	if err := dropped.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the rollback is seen", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return len(n.open) == 1
	})
	n.Notify("end", "before the commit")
	if note := next(t, s); note.Channel != "end" {
		t.Errorf("got %+v before the commit", note)
	}
	commit(t, sent)
	for _, want := range []string{"one", "two", "three"} {
		if note := next(t, s); note.Payload != want {
			t.Errorf("got %+v, want %s", note, want)
		}
	}
	if !n.finished(false) {
		t.Error("something is left over")
	}
}

// Many transactions that write much and end late must not fill the memory: what is too much of theirs becomes one empty
// payload a channel.
func TestWhatOpenTransactionsAnnounceIsBounded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 30 })
	s := subscribe(t, startListener(t, pool), 0, "bulk")
	const limit, transactions, each = 4, 25, 6
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode, c.MaxPending = ModeCoalesced, limit })
	var open []pgx.Tx
	for i := range transactions {
		tx := begin(t, pool)
		var messages []Message
		for k := range each {
			messages = append(messages, Message{"bulk", fmt.Sprint(i, " ", k)})
		}
		if err := n.NotifyTxMany(within(t), tx, messages); err != nil {
			t.Fatal(err)
		}
		open = append(open, tx)
	}
	remembered := func() (transactions, size int) {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, tx := range n.open {
			size += tx.messages.size()
		}
		if size != n.openSize {
			t.Errorf("%d payloads are remembered, and %d counted", size, n.openSize)
		}
		return len(n.open), size
	}
	eventually(t, "all are remembered", func() bool { // but for the moment in which they are looked at
		count, size := remembered()
		if most := maxOpenShare*limit + limit + transactions; size > most {
			t.Fatalf("%d payloads are remembered, want %d at most", size, most)
		}
		return count == transactions
	})
	for _, tx := range open {
		commit(t, tx)
	}
	// Each transaction makes itself heard, by name or by an empty payload.
	named, empty := 0, 0
	for n.Notify("bulk", "end"); ; {
		note := next(t, s)
		switch note.Payload {
		case "":
			empty++
		case "end":
			n.Notify("bulk", "end")
		default:
			named++
		}
		if count, _ := remembered(); count == 0 && empty > 0 && named >= limit {
			break
		}
	}
	if most := maxOpenShare*limit + limit; named > most {
		t.Errorf("%d payloads came by name, want %d at most", named, most)
	}
}

func TestLongTransactionCostsAlmostNothing(t *testing.T) {
	t.Parallel()
	start := time.Now()
	tx := &openTransaction{since: start, check: start}
	looks := 0
	for tx.check.Sub(start) < 30*time.Second {
		at := tx.check
		looks++
		tx.postpone(at, 2*time.Millisecond)
		late := tx.check.Sub(at)
		if age := at.Sub(start); late > max(2*time.Millisecond, age/checkShare) || late > checkCeiling {
			t.Fatalf("after %s nobody looks for %s", age, late)
		}
	}
	if looks > 350 {
		t.Errorf("%d looks at a transaction of 30 s", looks)
	}
}

func TestAdaptiveModeNotifiesInTheTransactionWhileThatIsRare(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "adaptive")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.RateThreshold = 5 })
	remembered := 0
	for i := range 20 {
		tx := begin(t, pool)
		notifyTx(t, n, tx, "adaptive", fmt.Sprint(i))
		n.mu.Lock()
		remembered += len(n.open)
		n.mu.Unlock()
		if i < 4 && remembered > 0 {
			t.Errorf("number %d was coalesced", i+1)
		}
		commit(t, tx)
		if note := next(t, s); note.Payload != fmt.Sprint(i) {
			t.Errorf("got %+v, want %d", note, i)
		}
	}
	if remembered == 0 {
		t.Error("nothing was coalesced")
	}
}

func TestRateForgets(t *testing.T) {
	t.Parallel()
	var r rate
	now := time.Unix(1_000_000, 0)
	var got float64
	for range 100 {
		got = r.hit(now)
	}
	if got != 100 {
		t.Errorf("rate is %v, want 100", got)
	}
	if got := r.hit(now.Add(1500 * time.Millisecond)); got != 51 {
		t.Errorf("rate is %v half a second into the next, want 51", got)
	}
	if got := r.hit(now.Add(time.Minute)); got != 1 {
		t.Errorf("rate is %v after a minute, want 1", got)
	}
}

func TestRefusedNotificationNeverReachesTheTransaction(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	for _, mode := range []NotifyMode{ModeAdaptive, ModeInTransaction, ModeCoalesced} {
		n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = mode })
		tx := begin(t, pool)
		for _, bad := range []Message{
			{"", "x"},
			{strings.Repeat("c", 64), "x"},
			{"c\x00", "x"},
			{"c\xff", "x"},
			{"c", strings.Repeat("p", 8000)},
			{"c", "\x00"},
			{"c", "\xff"},
		} {
			err := n.NotifyTxMany(within(t), tx, []Message{{"c", "good"}, bad})
			if refused := (*MessageError)(nil); !errors.As(err, &refused) || refused.Channel != bad.Channel || refused.Err == nil {
				t.Errorf("%.10q: got %v", bad, err)
			}
		}
		notifyTx(t, n, tx, strings.Repeat("c", 63), strings.Repeat("p", MaxPayload))
		commit(t, tx) // still usable
	}
	var book logbook
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Logger = book.logger() })
	n.Notify("c", strings.Repeat("p", 8000))
	if !strings.Contains(book.String(), "8000 bytes") {
		t.Errorf("logged %s", book.String())
	}
}

// A synchronous standby that does not answer holds up a notifying commit, which holds up every other notifying commit of
// the cluster.
func TestStalledStandbyDelaysWakeUpsButNoCoalescedCommit(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(within(t))
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["synchronous_commit"] = "local" })
	s := subscribe(t, startListener(t, pool), 0, "stall")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = ModeCoalesced })
	execute(t, pool, "create table written (id int)")
	execute(t, pool, "alter system set synchronous_standby_names = 'nobody'")
	execute(t, pool, "select pg_reload_conf()")
	release := sync.OnceFunc(func() {
		execute(t, pool, "alter system reset synchronous_standby_names")
		execute(t, pool, "select pg_reload_conf()")
	})

	var released atomic.Bool
	var stalled sync.WaitGroup
	stalled.Go(func() {
		for !released.Load() { // until the setting has taken effect, these commits go through
			_, err := pool.Exec(within(t), "begin; set local synchronous_commit = on; insert into written values (1); notify stall, 'stalled'; commit")
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	defer stalled.Wait()
	defer release()
	defer released.Store(true)
	waiting := func() bool {
		var found bool
		err := pool.QueryRow(within(t), "select exists (select from pg_stat_activity where wait_event = 'SyncRep')").Scan(&found)
		return err == nil && found
	}
	eventually(t, "a notifying commit is stalled", waiting)
	tx := begin(t, pool)
	if _, err := tx.Exec(within(t), "insert into written values (2)"); err != nil {
		t.Fatal(err)
	}
	notifyTx(t, n, tx, "stall", "coalesced")
	commit(t, tx)
	n.Notify("stall", "after the commit")
	if !waiting() {
		t.Error("the commit waited for the standby")
	}
	released.Store(true)
	release()
	for missing := map[string]bool{"coalesced": true, "after the commit": true}; len(missing) > 0; {
		delete(missing, next(t, s).Payload)
	}
}

func TestKnownTransactionIDSavesTheRoundTrip(t *testing.T) {
	t.Parallel()
	var counted *pgtest.RoundTrips
	pool := pgtest.Pool(t, func(cfg *pgxpool.Config) { counted = pgtest.CountRoundTrips(&cfg.ConnConfig.Config) })
	other := pgtest.Connect(t, pool.Config().ConnString())
	n := startNotifier(t, other, func(cfg *NotifierConfig) { cfg.Mode = ModeCoalesced })
	l := startListener(t, other)
	s := subscribe(t, l, 0, "orders")
	ctx := within(t)
	notifyWith := func(payload string, notify func(tx pgx.Tx, xid string) error) int64 {
		t.Helper()
		tx, err := pool.Begin(ctx)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
		var xid string
		if err := tx.QueryRow(ctx, "select pg_current_xact_id()::text").Scan(&xid); err != nil {
			t.Fatal(err)
		}
		before := counted.Count()
		if err := notify(tx, xid); err != nil {
			t.Fatal(err)
		}
		taken := counted.Count() - before
		if err := tx.Commit(ctx); err != nil {
			t.Fatal(err)
		}
		if got := next(t, s); got.Payload != payload {
			t.Fatalf("got %+v, want %s", got, payload)
		}
		return taken
	}
	known := notifyWith("known", func(tx pgx.Tx, xid string) error {
		return n.NotifyTxID(ctx, tx, xid, []Message{{Channel: "orders", Payload: "known"}})
	})
	asked := notifyWith("asked", func(tx pgx.Tx, _ string) error { return n.NotifyTx(ctx, tx, "orders", "asked") })
	if known != 0 || asked == 0 {
		t.Errorf("%d round trips with a known id, %d without, want 0 and some", known, asked)
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(ctx)) }()
	if err := n.NotifyTxID(ctx, tx, "soon", []Message{{Channel: "orders"}}); err == nil || !strings.Contains(err.Error(), "pg_current_xact_id") {
		t.Errorf("a mistaken id: %v", err)
	}
}
