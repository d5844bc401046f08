package workflow

import (
	"testing"
	"time"
)

// A deadline that is further away than a time.Duration reaches is far away, whatever the database's clock shows.
func TestDueClockKeepsWhatIsFarAwayFarAway(t *testing.T) {
	t.Parallel()
	const century = 100 * 365 * 24 * time.Hour
	for _, year := range []int{1, 1969, 2026, 2262, 9999} {
		now := time.Now()
		c := newDueClock(now)
		shown := time.Date(year, 12, 31, 23, 0, 0, 0, time.UTC).UnixMicro()
		c.observe(shown, now.Add(time.Millisecond))
		if got := c.when(shown + 1000).Sub(now); got != 2*time.Millisecond {
			t.Errorf("in the year %d a deadline in a millisecond is %s away", year, got)
		}
		for _, micros := range []int64{
			shown + (200 * 365 * 24 * time.Hour).Microseconds(),
			time.Date(year+1000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro(),
			time.Date(290_000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro(),
		} {
			if got := c.when(micros).Sub(now); got < century {
				t.Errorf("in the year %d a deadline in %s is %s away", year, time.UnixMicro(micros).UTC(), got)
			}
		}
		if got := now.Sub(c.when(time.Date(-4000, 1, 1, 0, 0, 0, 0, time.UTC).UnixMicro())); got < century {
			t.Errorf("in the year %d a deadline long ago was %s ago", year, got)
		}
	}
}

// The quickest answer of late decides, whatever way the clocks go.
func TestDueClockIsNeverEarlyAndForgets(t *testing.T) {
	t.Parallel()
	const millisecond = int64(1000) // as the database counts
	start := time.Now()
	c := newDueClock(start)
	server := time.Date(1999, 12, 31, 23, 0, 0, 0, time.UTC).UnixMicro()
	at := func(ms int64) time.Time { return start.Add(time.Duration(ms) * time.Millisecond) }
	late := func(ms int64) time.Duration { return c.when(server + ms*millisecond).Sub(at(ms)) }

	c.observe(server+100*millisecond, at(103)) // under way for 3 ms
	if got := late(500); got != 3*time.Millisecond {
		t.Errorf("after one answer a deadline is %s late, want 3ms", got)
	}
	c.observe(server+200*millisecond, at(201))
	c.observe(server+300*millisecond, at(340))
	if got := late(500); got != time.Millisecond {
		t.Errorf("after a quicker and a slower answer a deadline is %s late, want 1ms", got)
	}
	// The database's clock is set back by a second: in time, only what it has said since counts.
	const back = 1000
	for ms := int64(1000); ms <= 70_000; ms += 1000 {
		c.observe(server+(ms-back)*millisecond, at(ms+2))
	}
	if got := late(70_000); got != (back+2)*time.Millisecond {
		t.Errorf("after the clock was set back by a second a deadline is %s late, want 1.002s", got)
	}
	// It is set forward again: that counts at once.
	c.observe(server+71_000*millisecond, at(71_004))
	if got := late(72_000); got != 4*time.Millisecond {
		t.Errorf("after the clock was set forward a deadline is %s late, want 4ms", got)
	}
	// After a long silence only the next answer counts.
	c.observe(server+900_000*millisecond, at(900_007))
	if got := late(900_100); got != 7*time.Millisecond {
		t.Errorf("after a silence a deadline is %s late, want 7ms", got)
	}
}
