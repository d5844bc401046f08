package riverjobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// aheadOfUs is how far the database's clock is ahead of this process's in these tests.
const aheadOfUs = 90 * time.Minute

// deadlines plays the database: its deadlines, its clock, and how often it was asked.
type deadlines struct {
	mu    sync.Mutex
	at    []time.Time // by our clock
	err   error
	looks int
}

func (d *deadlines) databaseNow() time.Time { return time.Now().Add(aheadOfUs) }

// add returns the deadline as it is announced.
func (d *deadlines) add(in time.Duration) time.Time {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = append(d.at, time.Now().Add(in))
	return d.databaseNow().Add(in)
}

func (d *deadlines) serve() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at = nil
}

func (d *deadlines) fail(err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.err = err
}

func (d *deadlines) asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.looks
}

func (d *deadlines) next(context.Context) (earliest time.Time, ok bool, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.looks++
	for _, at := range d.at {
		if !ok || at.Before(earliest) {
			earliest, ok = at, true
		}
	}
	return earliest, ok, d.err
}

type lookoutBundle struct {
	*lookout
	db      *deadlines
	leading atomic.Bool
	healthy atomic.Bool
}

// inBubble runs test with a running lookout in a leading, healthy process, in fake time.
func inBubble(t *testing.T, test func(t *testing.T, b *lookoutBundle)) {
	t.Helper()
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		b := &lookoutBundle{db: &deadlines{}}
		b.leading.Store(true)
		b.healthy.Store(true)
		b.lookout = newLookout(lookoutConfig{
			next: b.db.next, leading: b.leading.Load, healthy: b.healthy.Load,
			clock:   func(context.Context) (time.Time, error) { return b.db.databaseNow(), nil },
			spacing: time.Second, every: 30 * time.Second, logger: slog.New(slog.DiscardHandler),
		})
		ctx, cancel := context.WithCancel(t.Context())
		var running sync.WaitGroup
		running.Go(func() { b.run(ctx) })
		defer running.Wait()
		defer cancel()
		b.lookAgain() // what the first tick of a term does
		synctest.Wait()
		test(t, b)
	})
}

func (b *lookoutBundle) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (b *lookoutBundle) wantOverdue(t *testing.T, want bool) {
	t.Helper()
	if got := b.takeOverdue(); got != want {
		t.Fatalf("overdue = %t, want %t", got, want)
	}
}

func TestAnIdleLookoutAsksOncePerFallbackInterval(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		b.after(10*time.Minute + time.Second)
		if got := b.db.asked(); got != 21 {
			t.Errorf("asked %d times in ten minutes, want 21", got)
		}
		b.wantOverdue(t, false)
	})
}

func TestAKnownDeadlineIsOverdueSoonAfterItHasPassedWhateverTheClocksSay(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		b.db.add(40 * time.Second)
		b.after(30 * time.Second) // the look that learns of it
		b.after(10*time.Second + ownerGrace - time.Millisecond)
		b.wantOverdue(t, false)
		b.after(time.Millisecond)
		b.wantOverdue(t, true)
		b.wantOverdue(t, false) // said once
	})
}

func TestAnAnnouncedDeadlineIsOverdueBeforeTheNextRegularLook(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		b.announce(b.db.add(3 * time.Second))
		b.announce(b.db.add(20 * time.Second)) // a later one changes nothing
		b.after(3*time.Second + ownerGrace)
		b.wantOverdue(t, true)
	})
}

// Deadlines that this process's types of time do not reach are not overdue: they are as good as none, and hide none.
// Those of the distant past are overdue.
func TestDeadlinesBeyondAllMeasureAreClamped(t *testing.T) {
	t.Parallel()
	year := func(n int) time.Time { return time.Date(n, 12, 31, 23, 59, 59, 0, time.UTC) }
	for name, test := range map[string]struct {
		at   time.Time
		past bool
	}{
		"the last year of 64 bits of nanoseconds": {year(2261), false},
		"the year after":               {year(2262), false},
		"the last year of JSON":        {year(9999), false},
		"the last year of PostgreSQL":  {year(294_275), false},
		"the end of time":              {time.Unix(1<<60, 0), false},
		"the first year of JSON":       {year(1), true},
		"the first year of PostgreSQL": {year(-4712), true},
	} {
		for _, announced := range []bool{true, false} {
			t.Run(fmt.Sprint(name, ", announced: ", announced), func(t *testing.T) {
				inBubble(t, func(t *testing.T, b *lookoutBundle) {
					b.db.mu.Lock()
					b.db.at = append(b.db.at, test.at)
					b.db.mu.Unlock()
					before := b.db.asked()
					if announced {
						b.announce(test.at)
					} else {
						b.lookAgain()
						before++
					}
					b.after(10 * time.Second)
					b.wantOverdue(t, test.past)
					if got := b.db.asked(); !test.past && got != before {
						t.Errorf("asked %d times more in ten seconds, although nothing is due", got-before)
					}
					if test.past {
						return
					}
					b.announce(b.db.add(time.Second))
					b.after(time.Second + ownerGrace)
					b.wantOverdue(t, true)
				})
			})
		}
	}
}

func TestADeadlineItsOwnerServesIsNeverOverdue(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		for range 100 {
			b.announce(b.db.add(100 * time.Millisecond))
			b.after(100 * time.Millisecond)
			b.db.serve()
		}
		b.after(time.Second)
		b.wantOverdue(t, false)
		if got := b.db.asked(); got > 13 {
			t.Errorf("asked %d times in eleven seconds of timers, want about one a second", got)
		}
	})
}

func TestAfterASweepTheNextDeadlineIsLearnt(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		b.announce(b.db.add(time.Second))
		b.after(time.Second + ownerGrace)
		b.wantOverdue(t, true)
		b.db.serve()
		b.db.add(4 * time.Second) // not announced: its notification was lost
		b.after(5 * time.Second)
		b.wantOverdue(t, true)
	})
}

func TestADeadlineThatNoSweepServesIsAskedForLessAndLess(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		b.announce(b.db.add(0))
		b.after(time.Hour)
		b.wantOverdue(t, true)
		if got := b.db.asked(); got < 120 || got > 140 {
			t.Errorf("asked %d times in an hour, want about 120, the fallback interval", got)
		}
	})
}

func TestAFollowerAndAnUnwellLeaderAskNothing(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		before := b.db.asked()
		b.leading.Store(false)
		b.announce(b.db.add(time.Second))
		b.after(10 * time.Minute)
		if got := b.db.asked(); got != before {
			t.Errorf("a follower asked %d times", got-before)
		}
		b.healthy.Store(false)
		b.leading.Store(true)
		b.lookAgain()
		b.after(10 * time.Minute)
		if got := b.db.asked(); got != before {
			t.Errorf("an unwell leader asked %d times", got-before)
		}
		b.healthy.Store(true)
		b.after(time.Second)
		b.wantOverdue(t, true) // and what happened meanwhile is found at once
	})
}

func TestAFailedLookIsRepeatedWithDelay(t *testing.T) {
	inBubble(t, func(t *testing.T, b *lookoutBundle) {
		b.db.fail(errors.New("no connection"))
		b.lookAgain()
		b.after(time.Minute)
		asked := b.db.asked()
		if asked < 5 || asked > 9 {
			t.Errorf("asked %d times in a minute of failure, want a growing delay", asked)
		}
		b.db.fail(nil)
		b.db.add(0)
		b.after(31 * time.Second)
		b.wantOverdue(t, true)
	})
}
