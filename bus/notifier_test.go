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

// modes are all ways in which pgx can send a query.
var modes = []pgx.QueryExecMode{
	pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
	pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
}

func begin(t testing.TB, pool *pgxpool.Pool) pgx.Tx {
	t.Helper()
	tx, err := pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = tx.Rollback(context.Background()) })
	return tx
}

func commit(t testing.TB, tx pgx.Tx) {
	t.Helper()
	if err := tx.Commit(within(t)); err != nil {
		t.Fatal(err)
	}
}

func notifyTx(t testing.TB, n *Notifier, tx pgx.Tx, channel, payload string) {
	t.Helper()
	if err := n.NotifyTx(within(t), tx, channel, payload); err != nil {
		t.Fatal(err)
	}
}

func TestNotifierSendsInEveryQueryMode(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, func(c *pgxpool.Config) {
				c.ConnConfig.DefaultQueryExecMode = mode
				c.ConnConfig.RuntimeParams["timezone"] = "Asia/Kathmandu"
			})
			s := subscribe(t, startListener(t, pool), 0, "a")
			n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = ModeCoalesced })
			n.Notify("a", "plain 'quoted'")
			if got := next(t, s); got.Payload != "plain 'quoted'" {
				t.Errorf("got %+v", got)
			}
			tx := begin(t, pool)
			notifyTx(t, n, tx, "a", "coalesced")
			commit(t, tx)
			if got := next(t, s); got.Payload != "coalesced" {
				t.Errorf("got %+v", got)
			}
			tx = begin(t, pool)
			if err := notifyIn(within(t), tx, []Message{{"a", "inside"}}); err != nil {
				t.Fatal(err)
			}
			commit(t, tx)
			if got := next(t, s); got.Payload != "inside" {
				t.Errorf("got %+v", got)
			}
		})
	}
}

func TestNotifierGathersWhileBusyAndCollapsesTheRest(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "much", "little")
	n, err := NewNotifier(NotifierConfig{Pool: pool, MaxPending: 10})
	if err != nil {
		t.Fatal(err)
	}
	for i := range 100 { // not started yet, so that all of it is pending at once
		n.Notify("much", fmt.Sprint(i))
		n.Notify("little", "the same")
	}
	if err := n.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer n.Close(within(t))
	much, little := []string{}, 0
	for len(much) < 11 || little < 1 {
		switch note := next(t, s); note.Channel {
		case "much":
			much = append(much, note.Payload)
			if note.CatchUp != (len(much) == 11) {
				t.Errorf("number %d is %+v", len(much), note)
			}
		case "little":
			little++
		}
	}
	if got := strings.Join(much, ","); got != "0,1,2,3,4,5,6,7,8,9," {
		t.Errorf("got %s", got)
	}
	n.Notify("much", "end")
	if note := next(t, s); note.Payload != "end" {
		t.Errorf("got %+v, want nothing between", note)
	}
}

func TestUnsendableTextDoesNotHoldUpTheOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Latin1(t)
	var book logbook
	s := subscribe(t, startListener(t, pool), 0, "latin")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = ModeCoalesced; c.Logger = book.logger() })
	tx := begin(t, pool)
	if err := n.NotifyTxMany(within(t), tx, []Message{{"latin", "漢"}, {"latin", "grün"}}); err != nil {
		t.Fatal(err)
	}
	commit(t, tx)
	n.Notify("latin", "字")
	n.Notify("latin", "rot")
	got := map[string]bool{next(t, s).Payload: true, next(t, s).Payload: true}
	if !got["grün"] || !got["rot"] {
		t.Errorf("got %v", got)
	}
	if book.count("notification dropped") != 2 {
		t.Errorf("logged:\n%s", book.String())
	}
}

func TestNotifierSendsAfterItsConnectionWasLost(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "lost")
	var book logbook
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Logger = book.logger(); c.Mode = ModeCoalesced })
	for i := range 3 {
		n.Notify("lost", fmt.Sprint("warm ", i))
		next(t, s)
		pgtest.KillBackends(t, pool, "% notify")
		tx := begin(t, pool)
		notifyTx(t, n, tx, "lost", fmt.Sprint(i))
		commit(t, tx)
		if note := next(t, s); note.Payload != fmt.Sprint(i) {
			t.Errorf("got %+v", note)
		}
	}
	// What comes and goes within a minute is said once.
	eventually(t, "the outage is logged", func() bool { return book.count("NOTIFY connection established") == 1 })
	if book.count("NOTIFY connection lost") != 1 {
		t.Errorf("logged:\n%s", book.String())
	}
}

func TestFailedNotifierDelaysNoCommit(t *testing.T) {
	t.Parallel()
	var down atomic.Bool
	pool := pgtest.Pool(t, func(c *pgxpool.Config) {
		c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error {
			if down.Load() {
				return errors.New("down")
			}
			return nil
		}
	})
	s := subscribe(t, startListener(t, pool), 0, "down")
	begin(t, pool) // a connection the pool keeps
	if err := pool.Ping(within(t)); err != nil {
		t.Fatal(err)
	}
	down.Store(true)
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Mode = ModeCoalesced })
	n.Notify("down", "late")
	eventually(t, "the attempt failed", func() bool {
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.failing
	})
	tx := begin(t, pool)
	notifyTx(t, n, tx, "down", "inside") // the transaction itself can still notify
	commit(t, tx)
	if note := next(t, s); note.Payload != "inside" {
		t.Errorf("got %+v", note)
	}
	down.Store(false)
	if note := next(t, s); note.Payload != "late" {
		t.Errorf("got %+v", note)
	}
}

func TestNotifierCloseFlushes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "flush")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Window = time.Hour; c.Mode = ModeCoalesced })
	n.Notify("flush", "first")
	next(t, s)
	n.Notify("flush", "second")
	tx, stuck := begin(t, pool), begin(t, pool)
	notifyTx(t, n, tx, "flush", "third")
	notifyTx(t, n, stuck, "flush", "never")
	commit(t, tx)
	start := time.Now()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := n.Close(within(t)); err != nil {
				t.Error(err)
			}
		})
	}
	all.Wait()
	if took := time.Since(start); took > patience/2 {
		t.Errorf("a transaction that does not end held up Close for %s", took)
	}
	got := map[string]bool{next(t, s).Payload: true, next(t, s).Payload: true}
	if !got["second"] || !got["third"] {
		t.Errorf("got %v", got)
	}
	n.Notify("flush", "after")
	tx = begin(t, pool)
	notifyTx(t, n, tx, "flush", "inside") // a closed notifier leaves it to the transaction
	commit(t, tx)
	if note := next(t, s); note.Payload != "inside" {
		t.Errorf("got %+v", note)
	}
	if err := n.Start(t.Context()); !errors.Is(err, ErrClosed) {
		t.Errorf("Start after Close: %v", err)
	}
}

func TestNotifierCloseIsBoundedWithoutAServer(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) {
		c.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return errors.New("down") }
	})
	n := startNotifier(t, pool)
	n.Notify("nobody", "hears")
	if err := n.Close(within(t)); err == nil || !strings.Contains(err.Error(), "1 notifications could not be sent") || !strings.Contains(err.Error(), "down") {
		t.Errorf("Close: %v", err)
	}
	blocked := make(chan struct{})
	var once sync.Once
	pool = pgtest.Pool(t, func(c *pgxpool.Config) {
		c.BeforeConnect = func(ctx context.Context, _ *pgx.ConnConfig) error {
			once.Do(func() { close(blocked) })
			<-ctx.Done()
			return ctx.Err()
		}
	})
	n = startNotifier(t, pool)
	n.Notify("nobody", "hears")
	<-blocked
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if err := n.Close(ctx); err == nil {
		t.Error("Close lost a notification without an error")
	}
}

func TestDisabledAndNilNotifiersDoNothing(t *testing.T) {
	t.Parallel()
	disabled, err := NewNotifier(NotifierConfig{Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range []*Notifier{nil, disabled} {
		n.Notify("", "")
		err := errors.Join(n.Start(t.Context()), n.NotifyTx(t.Context(), nil, "c", "p"), n.Close(t.Context()), n.Close(t.Context()))
		if err != nil {
			t.Error(err)
		}
	}
}

func TestNotifierSurvivesStartNotifyAndCloseInParallel(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	for range 20 {
		n, err := NewNotifier(NotifierConfig{Pool: pool, Mode: ModeCoalesced, Logger: (&logbook{}).logger()})
		if err != nil {
			t.Fatal(err)
		}
		var all sync.WaitGroup
		for i := range 4 {
			all.Go(func() { _ = n.Start(t.Context()) })
			all.Go(func() { n.Notify("stress", fmt.Sprint(i)) })
			all.Go(func() {
				err := pgx.BeginFunc(within(t), pool, func(tx pgx.Tx) error {
					return n.NotifyTx(within(t), tx, "stress", fmt.Sprint(i))
				})
				if err != nil {
					t.Error(err)
				}
			})
		}
		all.Go(func() { _ = n.Close(within(t)) })
		all.Wait()
		_ = n.Close(within(t))
	}
}

func TestNotifierConfigReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := NewNotifier(NotifierConfig{Window: -1, MaxPending: -1, RateThreshold: -1, Mode: 7})
	for _, field := range []string{"Pool", "Window", "MaxPending", "RateThreshold", "Mode"} {
		if err == nil || !strings.Contains(err.Error(), "NotifierConfig."+field) {
			t.Errorf("%s is missing in: %v", field, err)
		}
	}
}
