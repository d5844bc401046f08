//go:build unix

package integration_test

import (
	"syscall"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// A worker that is stopped for longer than its lease, in the middle of whatever it is doing, writes nothing for its runs
// when it continues: they are others' by then. The database watches (see crashTables).
func TestFrozenWorkerWritesNothing(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t, pgtest.URL(t), func(*crashWorld) {})
	const freezes, orders = 6, 72
	w.openFor(orders)
	for range freezes {
		w.arrive(orders / freezes)
		w.pause(50*time.Millisecond, 400*time.Millisecond)
		victim, label := w.victim()
		process := w.workers[victim].command.Process
		w.must(process.Signal(syscall.SIGSTOP))
		w.must(w.until("the frozen worker's lease is over", func() (bool, error) {
			return w.holds("select not exists (select 1 from romancy.workers where label like '%/' || $1::text and lease_until > clock_timestamp())", label)
		}))
		w.pause(0, 300*time.Millisecond) // so that it continues while another has just begun with the same runs
		w.must(process.Signal(syscall.SIGCONT))
		w.must(w.until("it has a lease again", func() (bool, error) {
			return w.holds("select exists (select 1 from romancy.workers where label like '%/' || $1::text and lease_until > clock_timestamp())", label)
		}))
	}
	if w.hit == 0 {
		t.Error("no freeze hit a run: the test shows nothing")
	}
	w.settle()
}
