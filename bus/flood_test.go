package bus

import (
	"runtime"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// A connection that nobody drains would hold back vacuum in the whole database and fill the server's queue; one that is
// drained without limit would fill the process's memory.
func TestAFloodAtASubscriptionThatNeverReadsStaysBounded(t *testing.T) {
	// Not parallel: it measures the process's memory.
	_, url := privateDatabase(t) // whose queue is nobody else's
	pool := pgtest.Connect(t, url)
	l := startListener(t, pool)
	const limit = 100
	deaf := subscribe(t, l, limit, "flood")
	other := subscribe(t, l, 10, "other")

	const full, batch = 1_000_000, int64(50_000)
	total := int64(full)
	if raceEnabled {
		total = int64(pgtest.Soak(full, full/10))
	}
	before := heap()
	var highest uint64
	for sent := int64(0); sent < total; sent += batch {
		execute(t, pool, "select count(pg_notify('flood', 'payload number ' || i)) from generate_series($1::bigint, $2::bigint) i", sent+1, sent+batch)
		notify(t, pool, "other", "still served")
		if n := next(t, other); n.Payload != "still served" {
			t.Fatalf("the other subscription got %+v after %d", n, sent)
		}
		highest = max(highest, heap())
	}
	eventually(t, "all came", func() bool { return l.Status().Received == total+total/batch })
	eventually(t, "the server's queue is empty", func() bool { return queueUsage(t, pool) == 0 })

	t.Logf("%d notifications, the heap grew by %d bytes at most", total, max(highest, before)-before)
	// The payloads alone are 22 MB, in the queue three times that.
	const most = 8 << 20
	if highest > before+most {
		t.Errorf("the heap grew by %d bytes", highest-before)
	}
	deaf.mu.Lock()
	kept, missed := len(deaf.queue), len(deaf.missed)
	deaf.mu.Unlock()
	if kept > limit || missed != 1 {
		t.Errorf("the queue holds %d notifications and %d catch-ups, want %d and 1 at most", kept, missed, limit)
	}
	if status := l.Status(); status.Dropped != total-int64(kept) || status.Reconnects != 0 || status.State != StateListening {
		t.Errorf("status: %+v", status)
	}
	if n := next(t, deaf); !n.CatchUp {
		t.Errorf("got %+v, want a catch-up", n)
	}
}

func heap() uint64 {
	runtime.GC()
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}

func queueUsage(t *testing.T, pool *pgxpool.Pool) (usage float64) {
	t.Helper()
	if err := pool.QueryRow(within(t), "select pg_notification_queue_usage()").Scan(&usage); err != nil {
		t.Fatal(err)
	}
	return usage
}
