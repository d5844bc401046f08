package bus

import (
	"strconv"
	"testing"
	"time"
)

func TestAReceiverRestsHalfOfTheTimeWhileMoreComesThanItTakes(t *testing.T) {
	t.Parallel()
	const each = 100 * time.Microsecond
	now := time.Now()
	var o overload
	// round returns for how long it rests in a while in which there is always something to take.
	round := func(while time.Duration) (rests time.Duration) {
		for end := now.Add(while); now.Before(end); now = now.Add(each) {
			wait := o.rest(now)
			rests += wait
			now = now.Add(wait)
		}
		return rests
	}
	if got := round(time.Second); got != 0 {
		t.Errorf("without an overflow it rests for %s", got)
	}
	o.overflowed(now)
	if got := round(500 * time.Millisecond); got < 200*time.Millisecond || got > 300*time.Millisecond {
		t.Errorf("after an overflow it rests for %s in 500 ms, want about half", got)
	}
	// Others rest at the same time.
	o.overflowed(now)
	other := overload{last: now}
	for range 1000 {
		now = now.Add(each / 3)
		if a, b := o.rest(now), other.rest(now); a != b {
			t.Fatalf("one rests for %s and another for %s", a, b)
		}
	}
	now = now.Add(2 * overloadLasts)
	if got := round(time.Second); got != 0 {
		t.Errorf("when the flood is over it rests for %s", got)
	}
}

// What comes for a channel between an overflow and its catch-up is covered by that; what comes after is kept.
func TestOverflowDropsOnlyWhatItsCatchUpIsFor(t *testing.T) {
	t.Parallel()
	s := newSubscription(nil, 2, []string{"busy", "calm"})
	push := func(channel string, payload int) int {
		return s.push(Notification{Channel: channel, Payload: strconv.Itoa(payload)})
	}
	take := func() Notification {
		t.Helper()
		n, ok, err := s.take()
		if !ok || err != nil {
			t.Fatalf("nothing to take: %v", err)
		}
		return n
	}
	for i, want := range []int{0, 0, 3, 1, 1} {
		if dropped := push("busy", i); dropped != want {
			t.Errorf("the %d. notification drops %d, want %d", i+1, dropped, want)
		}
	}
	if dropped := push("calm", 5); dropped != 0 {
		t.Error("another channel's is dropped, too")
	}
	if n := take(); !n.CatchUp || n.Channel != "busy" {
		t.Errorf("got %+v, want the catch-up", n)
	}
	if dropped := push("busy", 6); dropped != 0 {
		t.Error("what comes after the catch-up was taken is dropped")
	}
	if a, b := take(), take(); a.Payload != "5" || b.Payload != "6" {
		t.Errorf("got %+v and %+v", a, b)
	}
	// A catch-up of a new connection says nothing of what comes after it: nobody else would tell that on a channel of
	// the application's.
	s.catchUp([]string{"calm"}, false)
	if dropped := push("calm", 7); dropped != 0 {
		t.Error("what follows a new LISTEN is dropped")
	}
	if a, b := take(), take(); !a.CatchUp || b.Payload != "7" {
		t.Errorf("got %+v and %+v", a, b)
	}
}
