package outbox

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
)

// Whatever a role notifies that may only connect, the relay publishes what is in the table, and all of that.
func TestForgedNotificationsPublishNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	role := pool.Config().ConnConfig.Database + "_stranger"
	mustExec(t, pool, "create role "+role+" login password 'secret'")
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), "drop role "+role); err != nil {
			t.Error(err)
		}
	})
	enemy := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) { c.ConnConfig.User, c.ConnConfig.Password = role, "secret" })
	listener := startListener(t, pool, false)
	published := newRecorder()
	r := startRelay(t, pool, published, func(c *RelayConfig) {
		c.Listener = listener
		c.PollInterval, c.FallbackInterval = never, never
	})
	eventually(t, "the listener listens", listener.Healthy)
	const rounds = 20
	for i := range rounds {
		id := fmt.Sprint("event ", i)
		forged := []string{bus.Encode(bus.OutboxPending{EventID: id}), bus.Encode(bus.OutboxPending{EventID: "nobody's"}), "garbage", "", "[[[["}
		for _, payload := range append(forged, forged...) { // before, and again
			mustExec(t, enemy, "select pg_notify('romancy_outbox_pending', '"+strings.ReplaceAll(payload, "'", "''")+"')")
		}
		add(t, pool, Event{ID: id, Topic: "t"})
		mustExec(t, enemy, "select count(pg_notify('romancy_outbox_pending', i::text)) from generate_series(1, 3000) i")
		published.untilPublished(t, i+1)
	}
	eventually(t, "the flood is over", func() bool { return r.alarm.idle.Load() > 0 && len(r.alarm.woken) == 0 })
	eventually(t, "the outbox is empty", func() bool {
		left := -1
		err := pool.QueryRow(t.Context(), "select count(*) from romancy.outbox").Scan(&left)
		return err == nil && left == 0
	})
	if got := len(published.snapshot()); got != rounds {
		t.Errorf("%d are published, want %d", got, rounds)
	}
}

func TestNotificationsThatLieAreRationed(t *testing.T) {
	t.Parallel()
	a := newAlarm(func() time.Duration { return never })
	for range fruitless {
		if rest := a.rest(); rest != 0 {
			t.Errorf("it rests for %s before it knows better", rest)
		}
		a.found(false)
	}
	if a.rest() == 0 {
		t.Error("it does not rest though nothing is ever found")
	}
	a.found(true)
	if rest := a.rest(); rest != 0 {
		t.Errorf("it rests for %s though notifications tell the truth", rest)
	}
}

// A writer without a notifier notifies inside the transaction, but not into a queue that is filling: that would cost the
// commit.
func TestAFullNotifyQueueCostsNoCommit(t *testing.T) {
	t.Parallel()
	var version int
	if err := pgtest.Pool(t).QueryRow(t.Context(), "select current_setting('server_version_num')::int / 10000").Scan(&version); err != nil {
		t.Fatal(err)
	}
	if version < 17 {
		t.Skipf("PostgreSQL %d has no max_notify_queue_pages: its queue is 8 GB", version)
	}
	server := pgtest.Private(t, pgtest.Setting("max_notify_queue_pages", "64"))
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url)
	holder, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer holder.Release()
	for _, sql := range []string{"listen held", "begin", "select 1"} {
		if _, err := holder.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	for err = nil; err == nil; {
		_, err = pool.Exec(t.Context(), "select pg_notify('flood', repeat('x', 7999))")
	}
	if !strings.Contains(err.Error(), "54000") {
		t.Fatal(err)
	}
	if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
		return Add(t.Context(), tx, Event{ID: "written", Topic: "t"})
	}); err != nil {
		t.Errorf("a full queue costs the commit: %v", err)
	}
	if _, err := holder.Exec(t.Context(), "rollback"); err != nil {
		t.Error(err)
	}
}

// Whoever may insert into the outbox may write what no writer does. It costs the key of that event, and no other.
func TestAnEventWrittenByHandStopsNoOther(t *testing.T) {
	t.Parallel()
	for name, row := range map[string]string{
		"most attempts":  "attempts) values ('by hand', 't', 'its key', 7, '', 2147483647)",
		"least attempts": "attempts) values ('by hand', 't', 'its key', 7, '', -2147483648)",
		"due ever since": "next_at) values ('by hand', 't', 'its key', 7, '', '-infinity')",
		"never due":      "next_at) values ('by hand', 't', 'its key', 7, '', 'infinity')",
		"oldest":         "created_at) values ('by hand', 't', 'its key', 7, '', '0001-01-01')",
		"taken":          "taken) values ('by hand', 't', 'its key', 7, '', 9223372036854775807)",
		"no headers":     `headers) values ('by hand', 't', 'its key', 7, '', '[{"a": 1}]')`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			mustExec(t, pool, "insert into romancy.outbox (event_id, topic, key, slot, payload, "+row)
			published := newRecorder()
			startRelay(t, pool, published, func(c *RelayConfig) { c.Consumers, c.PollInterval = 1, 10*time.Millisecond })
			const others = 64
			for i := range others {
				add(t, pool, Event{ID: fmt.Sprint("other ", i), Topic: "t"})
			}
			eventually(t, "the others are published", func() bool {
				left := -1
				err := pool.QueryRow(t.Context(), "select count(*) from romancy.outbox where event_id <> 'by hand'").Scan(&left)
				return err == nil && left == 0
			})
		})
	}
}
