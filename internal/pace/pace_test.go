package pace

import (
	"testing"
	"time"
)

func TestCheapLooksAreAllFull(t *testing.T) {
	t.Parallel()
	var p Pace
	now := time.Now()
	for range 10 {
		if !p.Begin(now) {
			t.Fatal("a look was not full although the last one was cheap")
		}
		p.Took(now, cheap)
	}
}

func TestDearLooksTakeATwentiethOfTheTime(t *testing.T) {
	t.Parallel()
	const cost, look = 10 * time.Millisecond, time.Millisecond
	var p Pace
	now := time.Now()
	var full time.Duration
	begun := now
	for now.Sub(begun) < time.Minute {
		now = now.Add(look)
		if p.Begin(now) {
			if p.Begin(now) != (full == 0) { // before the first one's cost is known, nothing is
				t.Fatal("a second full look began while one was under way")
			}
			now = now.Add(cost)
			full += cost
			p.Took(now, cost)
		} else if p.Next().Before(now) {
			t.Fatal("a look was not full although one was due")
		}
	}
	if part := full.Seconds() / now.Sub(begun).Seconds(); part < 0.04 || part > 0.05 {
		t.Errorf("full looks took %.1f %% of the time, want just below 5 %%", 100*part)
	}
}

func TestAfterAnOldSnapshotHasGoneEveryLookIsFullAgain(t *testing.T) {
	t.Parallel()
	var p Pace
	now := time.Now()
	p.Begin(now)
	p.Took(now, time.Second)
	if now = now.Add(19 * time.Second); p.Begin(now) {
		t.Fatal("too early")
	}
	if now = p.Next(); !p.Begin(now) {
		t.Fatal("not even when it was due")
	}
	p.Took(now, time.Millisecond)
	if !p.Begin(now) {
		t.Fatal("the one after a cheap one")
	}
}
