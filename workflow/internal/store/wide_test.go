package store_test

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// No statement makes more messages than its bound, whatever is published and to however many: what does not fit is put off as a whole, and
// what does not fit by itself is told to.
func TestAStatementMakesABoundedNumberOfMessages(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	execAll(t, pool, `insert into romancy.subscriptions (instance_id, channel, mode)
		select c || '-' || n, c, 'broadcast' from unnest(array['hundreds', 'thousands']) c, generate_series(1, case c when 'hundreds' then 900 else 4500 end) n`)
	small, large := []byte(`1`), []byte(`"`+strings.Repeat("x", 20<<10)+`"`) // three times 8 KB
	hundreds, thousands := store.Deliver{Channel: "hundreds", Payload: small}, store.Deliver{Channel: "thousands", Payload: small}
	direct, keyed, heavy := hundreds, thousands, hundreds
	direct.Target, keyed.Key, keyed.KeepMicros, heavy.Payload = "nobody", "k", 1e9, large
	for _, c := range []struct {
		rows    []store.Deliver
		became  string
		written int
	}{
		{[]store.Deliver{hundreds, hundreds, hundreds}, "done, done, later", 1800}, //nolint:dupword // two of them
		{[]store.Deliver{hundreds, thousands, hundreds, direct}, "done, wide, later, later", 900},
		{[]store.Deliver{heavy, hundreds}, "wide, later", 0},
		{[]store.Deliver{keyed}, "wide", 0},
	} {
		became := make([]string, len(c.rows))
		sent := 0
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			batch := &pgx.Batch{}
			s.DeliverMessages(batch, c.rows, func(ord int, d store.Delivered) {
				became[ord] = map[[2]bool]string{{}: "done", {true, false}: "later", {true, true}: "wide"}[[2]bool{d.Later, d.Wide}]
			}, func(store.Sent) { sent++ })
			if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
				return err
			}
			var written, keys int
			if err := tx.QueryRow(t.Context(), "select (select count(*) from romancy.mailbox), (select count(*) from romancy.sent_keys)").Scan(&written, &keys); err != nil {
				return err
			}
			if written != c.written || sent != written || keys != 0 {
				t.Errorf("%s: %d messages, %d told, %d keys taken; want %d messages and no key", c.became, written, sent, keys, c.written)
			}
			return errRollback
		})
		if got := strings.Join(became, ", "); !errors.Is(err, errRollback) || got != c.became {
			t.Errorf("%s, %v; want %s", got, err, c.became)
		}
	}
}

// What reaches more than one statement does goes to every subscriber once, as often as a bound fits into them and when it does exactly.
func TestAWideMessageReachesEverySubscriberOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	for subscribers, statements := range map[int]int{0: 1, 1: 1, 1999: 1, 2000: 2, 2001: 2, 6500: 4} {
		channel := fmt.Sprint("of-", subscribers)
		execAll(t, pool, fmt.Sprintf(`insert into romancy.subscriptions (instance_id, channel, mode) select 'run-' || n, '%s', 'broadcast' from generate_series(1, %d) n`, channel, subscribers))
		row := store.Deliver{Channel: channel, Payload: []byte(`{"n": 1}`), Metadata: []byte(`{"a":"b"}`)}
		asked := 0
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			told := map[string]int{}
			sent := func(m store.Sent) { told[m.Receiver]++ }
			rest, err := s.DeliverFirst(t.Context(), tx, row, func(store.Delivered) {}, sent)
			for asked++; err == nil && rest != nil; asked++ {
				rest, err = s.DeliverMore(t.Context(), tx, *rest, sent)
			}
			if len(told) != max(subscribers, 1) { // with nobody subscribed, it is for whoever competes first
				t.Errorf("%d of %d were told", len(told), subscribers)
			}
			return err
		})
		if err != nil || asked != statements {
			t.Errorf("%d subscribers: %d statements, want %d; %v", subscribers, asked, statements, err)
		}
		rows := countRows(t, pool, fmt.Sprintf(`select count(*) from romancy.mailbox where channel = '%s' and payload::text = '{"n": 1}' and metadata::text = '{"a":"b"}'`, channel))
		distinct := countRows(t, pool, fmt.Sprintf("select count(distinct receiver) from romancy.mailbox where channel = '%s' and mode = 'broadcast'", channel))
		if rows != max(subscribers, 1) || distinct != subscribers {
			t.Errorf("%d messages to %d of %d subscribers", rows, distinct, subscribers)
		}
	}
}

// A wide message whose sender is not owned any more, or whose key was used, reaches nobody.
func TestAWideMessageOfWhomItMayNotComeFromReachesNobody(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	execAll(t, pool, `insert into romancy.subscriptions (instance_id, channel, mode) select 'run-' || n, 'news', 'broadcast' from generate_series(1, 2500) n`,
		`insert into romancy.sent_keys (key, expires_at) values ('used', now() + interval '1 hour')`,
		`insert into romancy.instances (id, workflow, status, worker, token, ready_at) values ('sender', 'order', 'running', 2, 1, now())`)
	for name, row := range map[string]store.Deliver{
		"fenced": {Fence: store.Fence{ID: "sender", Token: 1, Worker: 1}, Position: 1, Channel: "news", Payload: []byte(`1`)},
		"again":  {Channel: "news", Payload: []byte(`1`), Key: "used", KeepMicros: 1e9},
	} {
		told := 0
		err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			rest, err := s.DeliverFirst(t.Context(), tx, row, func(store.Delivered) { told++ }, func(store.Sent) { t.Error(name, "was sent") })
			if rest != nil {
				t.Error(name, "goes on")
			}
			return err
		})
		if n := countRows(t, pool, "select (select count(*) from romancy.mailbox) + (select count(*) from romancy.history)"); err != nil || n != 0 || (told == 1) != (name == "again") {
			t.Errorf("%s: %d rows, told %d times, %v", name, n, told, err)
		}
	}
}
