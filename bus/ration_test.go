package bus

import (
	"testing"
	"time"
)

// send has statements of length took sent whenever it is allowed, for a while, and returns when each began.
func (r *ration) send(from time.Time, took, span time.Duration) []time.Time {
	var began []time.Time
	for at := from; at.Sub(from) < span; {
		if next := r.next(); next.After(at) {
			at = next
		}
		began = append(began, at)
		r.spend(at, at.Add(took))
		at = at.Add(took)
	}
	return began
}

func TestRation(t *testing.T) {
	t.Parallel()
	const window = 2 * time.Millisecond
	start := time.Now()
	for _, c := range []struct {
		what        string
		took        time.Duration
		first, last time.Duration // between two statements of a burst, and in the end
	}{
		{"a fast server", 100 * time.Microsecond, window, window},
		{"a tenth of the time", 400 * time.Microsecond, window, 4 * time.Millisecond},
		{"five windows at most", 1500 * time.Microsecond, 3 * time.Millisecond, 10 * time.Millisecond},
		{"a slow server rests as long again", 5 * time.Millisecond, 10 * time.Millisecond, 10 * time.Millisecond},
		{"but not for ever", time.Second, time.Second + 5*window, time.Second + 5*window},
	} {
		r := newRation(window)
		if !r.next().Before(start) {
			t.Errorf("%s: the first is delayed", c.what)
		}
		began := r.send(start, c.took, 10*time.Second)
		if got := began[1].Sub(began[0]); got != c.first {
			t.Errorf("%s: the second came after %s, want %s", c.what, got, c.first)
		}
		if got := began[len(began)-1].Sub(began[len(began)-2]); got != c.last {
			t.Errorf("%s: in the end every %s, want %s", c.what, got, c.last)
		}
		// After a pause it is as it was at first, and no more is saved up than that.
		again := r.send(began[len(began)-1].Add(time.Hour), c.took, 10*time.Second)
		if got := again[1].Sub(again[0]); got != c.first {
			t.Errorf("%s: after a pause the second came after %s, want %s", c.what, got, c.first)
		}
		if len(again) > len(began)+1 {
			t.Errorf("%s: %d statements after a pause, %d at first", c.what, len(again), len(began))
		}
	}
}
