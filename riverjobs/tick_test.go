package riverjobs

import (
	"testing"
	"time"
)

func TestCadence(t *testing.T) {
	t.Parallel()
	const (
		well   = true
		unwell = false
	)
	type tick struct {
		after   time.Duration // the previous tick
		healthy bool
		overdue bool
		due     bool
	}
	repeat := func(n int, tk tick) []tick {
		ticks := make([]tick, n)
		for i := range ticks {
			ticks[i] = tk
		}
		return ticks
	}
	join := func(parts ...[]tick) (all []tick) {
		for _, part := range parts {
			all = append(all, part...)
		}
		return all
	}
	quietSecond := tick{after: time.Second, healthy: well}

	for name, test := range map[string]struct {
		unwell time.Duration
		ticks  []tick
	}{
		"healthy: at the start of the term nothing, then every fallback interval": {time.Second, join(
			repeat(30, quietSecond), []tick{{time.Second, well, false, true}},
			repeat(29, quietSecond), []tick{{time.Second, well, false, true}},
		)},
		"unwell: at the start of the term and then at every interval": {5 * time.Second, join(
			[]tick{{time.Second, unwell, false, true}}, repeat(4, tick{after: time.Second}),
			[]tick{{time.Second, unwell, false, true}}, repeat(4, tick{after: time.Second}),
			[]tick{{time.Second, unwell, false, true}},
		)},
		"unwell: an interval of one second is every tick, also if River ticks 100 ms early": {time.Second, join(
			repeat(3, tick{time.Second, unwell, false, true}),
			[]tick{{900 * time.Millisecond, unwell, false, true}, {time.Second, unwell, false, true}},
		)},
		"a change of health counts from the next tick on, both ways": {time.Second, join(
			repeat(10, quietSecond),
			[]tick{{time.Second, unwell, false, true}, {time.Second, unwell, false, true}},
			repeat(29, quietSecond), []tick{{time.Second, well, false, true}},
		)},
		"an overdue deadline is due at once and counts as a sweep": {time.Second, join(
			repeat(20, quietSecond), []tick{{time.Second, well, true, true}},
			repeat(29, quietSecond), []tick{{time.Second, well, false, true}},
		)},
		"a silence of River's is a new term": {time.Second, join(
			repeat(20, quietSecond), []tick{{20 * time.Second, well, false, false}},
			repeat(29, quietSecond), []tick{{time.Second, well, false, true}},
			[]tick{{20 * time.Second, unwell, false, true}},
		)},
		"ticks made up for in a burst after a stall sweep once": {time.Second, join(
			[]tick{{time.Second, unwell, false, true}, {4 * time.Second, unwell, false, true}},
			repeat(3, tick{after: time.Millisecond}),
		)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pace := cadence{unwell: test.unwell, well: 30 * time.Second}
			now := time.Now()
			for i, tick := range test.ticks {
				now = now.Add(tick.after)
				if due, _ := pace.due(now, tick.healthy, tick.overdue); due != tick.due {
					t.Fatalf("tick %d (%+v): due = %t", i, tick, due)
				}
			}
		})
	}
}

func TestCadenceTellsTheStartOfATerm(t *testing.T) {
	t.Parallel()
	pace := cadence{unwell: time.Second, well: time.Minute}
	now := time.Now()
	for i, step := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {time.Second, false}, {termGap, false}, {termGap + 1, true}, {time.Second, false}} {
		now = now.Add(step.after)
		if _, newTerm := pace.due(now, true, false); newTerm != step.want {
			t.Fatalf("tick %d: new term = %t", i, newTerm)
		}
	}
}
