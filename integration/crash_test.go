package integration_test

import (
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// Of two workers, one or the other is killed, twenty times, while orders arrive: at random moments, or just after it has
// committed something. Nothing is lost, and nothing is done twice that must be done once.
func TestKilledWorkersLoseNothing(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t, pgtest.URL(t), func(*crashWorld) {})
	w.killWhileOrdersArrive(20, 60, 400*time.Millisecond)
	w.settle()
}

// The same where no notification ever arrives.
func TestKilledWorkersLoseNothingWithoutNotifications(t *testing.T) {
	t.Parallel()
	w := newCrashWorld(t, pgtest.URL(t), func(w *crashWorld) { w.config.Notify = false })
	w.killWhileOrdersArrive(6, 24, 1200*time.Millisecond)
	w.settle()
}

func (w *crashWorld) killWhileOrdersArrive(kills, orders int, longest time.Duration) {
	w.openFor(orders)
	for kill := range kills {
		w.arrive(orders / kills)
		var victim int
		if kill%2 == 0 {
			victim = w.committed()
		} else {
			w.pause(50*time.Millisecond, longest)
			victim, _ = w.victim()
		}
		w.workers[victim].kill()
		w.replace(victim)
		// Now and then the next kill may hit a worker that is still starting.
		if w.rng.IntN(4) > 0 {
			w.must(w.workers[victim].awaitReady(w.ctx))
		}
	}
	if w.hit == 0 {
		w.t.Error("no kill hit a run: the test shows nothing")
	}
}

// The database server crashes twice under two workers and their customers, who all stay.
func TestCrashedServerLosesNothing(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	w := newCrashWorld(t, url, func(w *crashWorld) { w.unreliable = true })
	const crashes, orders = 2, 24
	w.openFor(orders)
	for crash := range crashes {
		w.arrive(orders / crashes)
		w.pause(100*time.Millisecond, 800*time.Millisecond)
		began := time.Now()
		w.must(server.Restart(w.ctx, "immediate"))
		t.Logf("crash %d: the server is back after %s", crash+1, time.Since(began).Round(time.Millisecond))
		w.pause(0, 500*time.Millisecond)
	}
	w.settle()
}
