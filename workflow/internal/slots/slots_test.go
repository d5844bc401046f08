package slots_test

import (
	"maps"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/romancy-go/romancy/workflow/internal/slots"
)

// world is what a worker and its database would be: slots, and runs that are ready or executing by workflow.
type world struct {
	*slots.Slots[string]

	ready, executing map[string]int
}

func newWorld(total int, limits map[string]int) *world {
	return &world{Slots: slots.New[string](total, limits), ready: map[string]int{}, executing: map[string]int{}}
}

func (w *world) total() (n int) {
	for executing := range maps.Values(w.executing) {
		n += executing
	}
	return n
}

// round looks for ready runs until there is no room for more.
func (w *world) round(batch int) {
	for round := (&slots.Round{}); ; {
		w.serve(true)
		offer, ok := w.Offer(round, batch)
		if !ok {
			break
		}
		found, left := map[string]int{}, offer.Limit
		for i, name := range offer.Workflows {
			found[name] = min(w.ready[name], offer.Allowed[i], left)
			left -= found[name]
			w.ready[name] -= found[name]
			w.executing[name] += found[name]
		}
		w.Settle(round, offer, found)
	}
	w.serve(false)
}

func (w *world) serve(fair bool) {
	for _, name := range w.Serve(fair) {
		w.executing[name]++
	}
}

func (w *world) end(name string) (wanted bool) {
	w.executing[name]--
	return w.Give(name)
}

func TestRoomIsSharedEquallyBetweenFloods(t *testing.T) {
	t.Parallel()
	w := newWorld(30, map[string]int{"a": 0, "b": 0, "c": 0})
	w.ready = map[string]int{"a": 10_000, "b": 10_000, "c": 10_000}
	w.round(100)
	if want := (map[string]int{"a": 10, "b": 10, "c": 10}); !maps.Equal(w.executing, want) {
		t.Errorf("executing %v, want %v", w.executing, want)
	}
}

func TestFloodLeavesASlotToEveryOtherWorkflow(t *testing.T) {
	t.Parallel()
	for name, flood := range map[string]func(w *world){
		"ready":    func(w *world) { w.ready["a"] = 10_000; w.round(100) },
		"starting": func(w *world) { take(w, "a") },
		"waking": func(w *world) {
			for range 10_000 {
				w.Wait("a", "a")
			}
			w.round(100)
		},
	} {
		w := newWorld(10, map[string]int{"a": 0, "b": 0, "c": 0})
		flood(w)
		if w.executing["a"] != 8 {
			t.Errorf("%s: %d of a execute, want 8", name, w.executing["a"])
		}
		for _, other := range []string{"b", "c"} {
			if !w.Take(other) {
				t.Errorf("%s: no room for %s", name, other)
			}
		}
	}
}

// take starts runs until there is no room.
func take(w *world, name string) {
	for w.Take(name) {
		w.executing[name]++
	}
}

func TestAloneAWorkflowHasAllSlots(t *testing.T) {
	t.Parallel()
	w := newWorld(10, map[string]int{"a": 0})
	take(w, "a")
	if w.executing["a"] != 10 {
		t.Errorf("%d execute, want 10", w.executing["a"])
	}
}

// With one slot for all, they take turns, although nobody is behind in numbers when a slot becomes free.
func TestOneSlotGoesRound(t *testing.T) {
	t.Parallel()
	w := newWorld(1, map[string]int{"a": 0, "b": 0, "c": 0})
	w.ready = map[string]int{"a": 100, "b": 3, "c": 3}
	var order []string
	for range 9 {
		w.round(100)
		for name, n := range w.executing {
			if n > 0 {
				order = append(order, name)
				w.end(name)
			}
		}
	}
	for _, name := range []string{"b", "c"} {
		if last := lastIndex(order, name); last < 0 || last > 8 || w.ready[name] != 0 {
			t.Errorf("%s: %d are still ready after the turns %v", name, w.ready[name], order)
		}
	}
}

func lastIndex(list []string, value string) int {
	for i, at := range slices.Backward(list) {
		if at == value {
			return i
		}
	}
	return -1
}

// Runs that are in memory and may go on come before ready ones of their workflow, and not before those of another.
func TestParkedRunsGoOnBeforeOthersOfTheirWorkflowBegin(t *testing.T) {
	t.Parallel()
	w := newWorld(4, map[string]int{"a": 0, "b": 0})
	take(w, "a")
	for range 10 {
		w.Wait("a", "a")
	}
	w.ready["a"], w.ready["b"] = 10, 10
	w.round(100) // the slot that was kept
	if w.executing["b"] != 1 {
		t.Fatalf("executing %v, want one of b", w.executing)
	}
	w.end("a")
	w.round(100)
	w.end("a")
	w.round(100)
	if w.executing["a"] != 2 || w.executing["b"] != 2 || w.ready["a"] != 10 {
		t.Errorf("executing %v, ready %v, waiting %d: want two each, and none of a begun", w.executing, w.ready, w.Waiting())
	}
}

func TestLimitOfAWorkflowHolds(t *testing.T) {
	t.Parallel()
	w := newWorld(10, map[string]int{"a": 2, "b": 0})
	w.ready["a"] = 100
	w.round(100)
	if w.executing["a"] != 2 || w.Take("a") {
		t.Errorf("executing %v, want 2 of a and no more", w.executing)
	}
	take(w, "b")
	if w.executing["b"] != 8 {
		t.Errorf("%d of b execute, want 8", w.executing["b"])
	}
	if !slices.Contains(w.Full(), "a") {
		t.Errorf("full: %v, want a", w.Full())
	}
	if !w.end("a") {
		t.Error("the freed slot is wanted by nobody")
	}
}

// Whatever happens in whatever order, there are never more than may be, no slot is lost, and nobody is forgotten: when a slot
// is given back, and looked for as it says, those who wait go on.
func TestSlotsAreNeitherExceededNorLost(t *testing.T) {
	t.Parallel()
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	names := []string{"a", "b", "c"}
	for range 300 {
		total := 1 + rng.IntN(6)
		limits := map[string]int{"a": rng.IntN(3), "b": 0, "c": 0}
		w := newWorld(total, limits)
		due := false // a look is
		for range 200 {
			name := names[rng.IntN(len(names))]
			switch rng.IntN(5) {
			case 0: // a start
				if w.Take(name) {
					w.executing[name]++
				} else {
					w.ready[name]++
					due = true
				}
			case 1: // a wake
				if w.Take(name) {
					w.executing[name]++
				} else {
					w.Wait(name, name)
					due = true
				}
			case 2:
				if w.executing[name] > 0 && w.end(name) {
					due = true
				}
			case 3: // somebody else's start, of which we hear
				w.ready[name]++
				due = true
			case 4:
				if due {
					w.round(1 + rng.IntN(4))
					due = false
				}
			}
			if w.total() > total || limits["a"] > 0 && w.executing["a"] > limits["a"] {
				t.Fatalf("executing %v of %d, limits %v", w.executing, total, limits)
			}
		}
		for range 10_000 {
			if due {
				w.round(3)
				due = false
			}
			ended := false
			for name, n := range w.executing {
				if n > 0 && !ended {
					due, ended = w.end(name), true
				}
			}
			if !ended {
				break
			}
		}
		if left := w.ready["a"] + w.ready["b"] + w.ready["c"] + w.Waiting(); left > 0 {
			t.Fatalf("%d runs are forgotten: ready %v, waiting %d", left, w.ready, w.Waiting())
		}
		for range total {
			if !w.Take("b") {
				if w.round(3); !w.Take("b") && total > 1 && w.executing["b"] < total-2 {
					t.Fatalf("a slot of %d is lost: %v", total, w.executing)
				}
			}
			w.executing["b"]++
		}
	}
}
