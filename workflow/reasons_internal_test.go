package workflow

import (
	"maps"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// reasonsModel says of each reason whether a poll that began after it came has been answered.
type reasonsModel struct {
	reasons

	open, polled map[listening]bool
}

func (m *reasonsModel) check(t *rapid.T) {
	same := func(what string, got []listening, want map[listening]bool) {
		seen := map[listening]bool{}
		for _, on := range got {
			if seen[on] {
				t.Fatalf("%s has %q twice", what, on.channel)
			}
			seen[on] = true
		}
		if !maps.Equal(seen, want) {
			t.Fatalf("%s is %v, want %v", what, seen, want)
		}
	}
	for on := range m.open {
		if !slices.Contains(m.reasons.open, on) {
			t.Fatalf("the reason %q is forgotten", on.channel)
		}
	}
	same("what no poll has begun for", m.reasons.open, m.open)
	for on := range m.polled {
		if !slices.Contains(m.reasons.polled, on) {
			t.Fatalf("the reason %q is not among those of the poll under way", on.channel)
		}
	}
	if m.waiting() != (len(m.open) > 0) {
		t.Fatalf("waiting is %t with %v", m.waiting(), m.open)
	}
}

// Whatever comes in between, a reason stays until a poll that began after it came is answered.
func TestReasonStaysUntilAPollThatBeganAfterItIsAnswered(t *testing.T) {
	t.Parallel()
	deadline := listening{}
	some := rapid.SampledFrom([]listening{deadline, {channel: "a"}, {channel: "b", competing: true}, {channel: "c"}})
	rapid.Check(t, func(t *rapid.T) {
		m := &reasonsModel{open: map[listening]bool{}, polled: map[listening]bool{}}
		t.Repeat(map[string]func(*rapid.T){
			"": m.check,
			"a reason comes": func(t *rapid.T) {
				on := some.Draw(t, "reason")
				m.add(on)
				m.open[on] = true
			},
			"a poll begins": func(t *rapid.T) {
				if m.polling || !m.waiting() {
					t.Skip()
				}
				on := m.begin()
				if !m.open[on] {
					t.Fatalf("polls for %q, which is no reason", on.channel)
				}
				if channels := len(m.open); on == deadline && channels > 1 {
					t.Fatal("the deadline goes before a message")
				}
				for _, answered := range []listening{on, deadline} {
					if m.open[answered] {
						delete(m.open, answered)
						m.polled[answered] = true
					}
				}
			},
			"it finds nothing": func(t *rapid.T) {
				if !m.polling {
					t.Skip()
				}
				m.nothing()
				clear(m.polled)
			},
			"it is not answered": func(t *rapid.T) {
				if !m.polling {
					t.Skip()
				}
				if wait := m.fail(); wait < pollAgain || wait > pollAgainAtMost {
					t.Fatalf("tries again after %s", wait)
				}
				maps.Copy(m.open, m.polled)
				clear(m.polled)
			},
			"the run resumes": func(t *rapid.T) {
				left := map[listening]bool{}
				for _, on := range m.end() {
					left[on] = true
				}
				maps.Copy(m.open, m.polled)
				if !maps.Equal(left, m.open) {
					t.Fatalf("%v are left, want %v", left, m.open)
				}
				clear(m.open)
				clear(m.polled)
			},
		})
	})
}

// What is put back into a tally is there again, as often, with what has come meanwhile; what does not fit any more is not forgotten.
func TestWhatIsPutBackIntoATallyIsNotForgotten(t *testing.T) {
	t.Parallel()
	counts := newTally()
	counts.add("a", "a", "b")
	taken, more := counts.take()
	<-counts.some
	counts.add("a")
	<-counts.some
	counts.putBack(taken, more)
	select {
	case <-counts.some:
	default:
		t.Error("nobody is told of what was put back")
	}
	if got, more := counts.take(); more || !maps.Equal(got, map[string]int{"a": 3, "b": 1}) {
		t.Errorf("got %v, %t", got, more)
	}
	counts.add()
	counts.putBack(nil, false)
	select {
	case <-counts.some:
		t.Error("somebody is told of nothing")
	default:
	}
	counts.putBack(nil, true)
	if _, more := counts.take(); !more {
		t.Error("that there is more was forgotten")
	}
	for i := range maxTally {
		counts.add(string(rune('0' + i)))
	}
	counts.putBack(map[string]int{"one more": 1}, false)
	if _, more := counts.take(); !more {
		t.Error("what did not fit was forgotten")
	}
}
