package workflow

import "sync"

// signal wakes one goroutine; signals given before it looks are one.
type signal chan struct{}

func newSignal() signal { return make(signal, 1) }

func (s signal) give() {
	select {
	case s <- struct{}{}:
	default:
	}
}

// maxTally bounds what a tally remembers by name.
const maxTally = 1000

// tally counts things by name until somebody takes them. Beyond maxTally names it only remembers that there were more:
// whoever takes it then looks at everything.
type tally struct {
	some signal

	mu       sync.Mutex
	counts   map[string]int
	overflow bool
}

func newTally() *tally { return &tally{some: newSignal(), counts: map[string]int{}} }

func (t *tally) add(names ...string) {
	if len(names) == 0 {
		return
	}
	t.mu.Lock()
	for _, name := range names {
		if _, known := t.counts[name]; !known && len(t.counts) >= maxTally {
			t.overflow = true
			continue
		}
		t.counts[name]++
	}
	t.mu.Unlock()
	t.some.give()
}

// tooMany notes that there is more than can be named.
func (t *tally) tooMany() {
	t.mu.Lock()
	t.overflow = true
	t.mu.Unlock()
	t.some.give()
}

// putBack returns to a tally what was taken from it without result.
func (t *tally) putBack(counts map[string]int, overflow bool) {
	t.mu.Lock()
	t.overflow = t.overflow || overflow
	for name, count := range counts {
		if _, known := t.counts[name]; !known && len(t.counts) >= maxTally {
			t.overflow = true
			continue
		}
		t.counts[name] += count
	}
	some := t.overflow || len(t.counts) > 0
	t.mu.Unlock()
	if some {
		t.some.give()
	}
}

// take returns what was counted and whether there was more, and starts over.
func (t *tally) take() (counts map[string]int, overflow bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	counts, overflow = t.counts, t.overflow
	t.counts, t.overflow = map[string]int{}, false
	return counts, overflow
}
