package workflow

import (
	"container/list"
	"context"
	"errors"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/deadline"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/slots"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// minDeadlines is how many left-over deadlines are not worth clearing out.
const minDeadlines = 1000

// cache holds the runs of this worker: those executing, and the parked ones whose goroutines are kept so that they resume
// without a replay. The engine's mutex guards it and the fields of runs marked as its.
type cache struct {
	runs      map[string]*run
	executing int
	slots     *slots.Slots[*run]       // the room for executing runs, those about to execute included
	parked    *list.List               // of *run, least recently parked first
	receiving map[string]map[*run]bool // runs by the channels they wait on, parked or beside steps that execute
	deadlines deadline.Heap            // of parked runs, and of those in cold
	cold      map[string]int64         // tokens of runs not in memory here whose deadline comes soon
	relook    time.Time                // when to look for more of those; zero: the looks from time to time will do

	resumed, replayed, evicted int64
}

func newCache(room *slots.Slots[*run]) cache {
	return cache{slots: room, runs: map[string]*run{}, parked: list.New(), receiving: map[string]map[*run]bool{}, cold: map[string]int64{}}
}

type phase int8

const (
	executing phase = iota
	parked
	gone // not in the cache any more
)

// waiting is what a parked run waits for.
type waiting struct {
	position int32        // where the outcome is recorded; 0: a sleep
	kind     journal.Kind // of that record
	due      time.Time    // its deadline by this process's monotonic clock; zero: it has none
	nudged   bool         // the moment it wakes at is not the deadline of what it waits for
}

// resumption is what a parked run's goroutine is told.
type resumption struct {
	outcome string // store.GotMessage, store.Due, store.Nudged, or claimed
	message []byte
	durable chan error // whether the outcome was committed, if that is not known yet
	exit    bool       // end the goroutine
}

// claimed: the run was made ready while it was parked, and claimed here again; it looks for itself.
const claimed = "claimed"

// addLocked makes r, which has a slot, one of the executing runs. A run of that id that is still here lost its owner and is ended.
func (e *Engine) addLocked(r *run) {
	if old := e.cache.runs[r.id]; old != nil {
		e.dropLocked(old)
	}
	delete(e.cache.cold, r.id)
	r.phase, r.slot = executing, true
	e.cache.runs[r.id] = r
	e.cache.executing++
}

// dropLocked removes r from the cache and ends its goroutine, at once if it is parked, else at its next command.
func (e *Engine) dropLocked(r *run) {
	switch r.phase {
	case gone:
		return
	case executing:
		e.cache.executing--
	case parked:
		e.unparkLocked(r)
		r.resume <- &resumption{exit: true} // never blocks: a parked run is resumed once
	}
	e.unlistenLocked(r)
	e.passOnLocked(r.reasons.end())
	r.phase = gone
	r.lost.Store(true)
	if r.stop != nil {
		r.stop()
	}
	r.stopWork()
	if e.cache.runs[r.id] == r {
		delete(e.cache.runs, r.id)
	}
}

// ended removes a run whose goroutine is over.
func (e *Engine) ended(r *run) {
	if r.left.Load() {
		r.giveBack()
	}
	r.over.Store(true)
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.lost.Load() {
		e.claims.give() // told to be ready while it was here, which heardResumable passes over
	}
	e.dropLocked(r)
	e.freeLocked(r)
}

func (e *Engine) unparkLocked(r *run) {
	e.cache.parked.Remove(r.element)
	r.element = nil
	e.unlistenLocked(r)
}

// listenLocked has r told of mail on channels, and on no others.
func (e *Engine) listenLocked(r *run, channels []listening) {
	e.unlistenLocked(r)
	r.listening = channels
	for _, on := range channels {
		if e.cache.receiving[on.channel] == nil {
			e.cache.receiving[on.channel] = map[*run]bool{}
		}
		e.cache.receiving[on.channel][r] = true
	}
}

func (e *Engine) unlistenLocked(r *run) {
	for _, on := range r.listening {
		delete(e.cache.receiving[on.channel], r)
		if len(e.cache.receiving[on.channel]) == 0 {
			delete(e.cache.receiving, on.channel)
		}
	}
	r.listening = nil
}

// on returns how r listens to channel, if it does.
func (r *run) on(channel string) (listening, bool) {
	for _, on := range r.listening {
		if on.channel == channel {
			return on, true
		}
	}
	return listening{}, false
}

// listenUnparked has a run that waits while steps of it execute told of mail on channels, and on no others.
func (e *Engine) listenUnparked(r *run, channels []listening) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.phase == executing {
		e.listenLocked(r, channels)
	}
}

// park puts r, whose row is waiting now, among the parked. It reports false if r must end instead.
func (e *Engine) park(r *run, w waiting, channels []listening) bool {
	epoch := e.serverEpoch()
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.phase != executing || e.draining.Load() {
		return false
	}
	r.epoch = epoch
	e.cache.executing--
	e.freeLocked(r)
	r.phase, r.waiting, r.reasons, r.due = parked, w, reasons{}, false
	r.element = e.cache.parked.PushBack(r)
	e.listenLocked(r, channels)
	if r.timed() {
		e.armLocked(r, w.due)
	}
	for e.cache.parked.Len() > e.config.CacheSize && e.evictLocked() {
	}
	return true
}

// timed reports whether a parked run has a deadline.
func (r *run) timed() bool { return !r.waiting.due.IsZero() }

// armLocked has timerLoop look at r at a time by this process's monotonic clock.
func (e *Engine) armLocked(r *run, at time.Time) { e.pushDeadlineLocked(r.id, r.token, at) }

func (e *Engine) pushDeadlineLocked(id string, token int64, at time.Time) {
	// Runs that went on earlier, or were evicted long before they are due, left their deadlines behind. They are cleared out
	// when they are the majority.
	if e.cache.deadlines.Len() > 2*(e.cache.parked.Len()+len(e.cache.cold))+minDeadlines {
		e.cache.deadlines.Keep(func(entry deadline.Entry) bool {
			if entry.ID == relook {
				return entry.At.Equal(e.cache.relook)
			}
			held := e.cache.runs[entry.ID]
			return held != nil && held.phase == parked && held.token == entry.Token || e.cache.cold[entry.ID] == entry.Token
		})
	}
	if e.cache.deadlines.Push(deadline.Entry{At: at, ID: id, Token: token}) {
		e.timers.give()
	}
}

// evictLocked drops the run that has been parked longest, those just polled for excepted, and reports whether there was one. A
// deadline that comes soon is kept, and the run claimed when it is due. If there is a reason to poll for the run, it is made ready.
func (e *Engine) evictLocked() bool {
	front := e.cache.parked.Front()
	for front != nil && front.Value.(*run).reasons.polling { //nolint:forcetypeassert // the list holds nothing else
		front = front.Next()
	}
	if front == nil {
		return false
	}
	r := front.Value.(*run) //nolint:forcetypeassert // the list holds nothing else
	fence, roused := r.fence(), r.reasons.waiting()
	if r.timed() && e.soon(r.waiting.due) {
		e.cache.cold[r.id] = r.token // with the deadline that is in the heap since it was parked
	}
	e.dropLocked(r)
	e.cache.evicted++
	if roused {
		e.rousing.add(fence)
		return true
	}
	e.letGo(fence)
	return true
}

// letGo notes that a parked run is not in memory here any more, so that others wake it. If that cannot be noted, it is made ready.
func (e *Engine) letGo(fence store.Fence) {
	number := e.letting.begin()
	e.committer.LetGo(fence, func(_ struct{}, err error) {
		defer e.letting.end(number)
		noteOutcome(context.Background(), e.reports.evictions, err)
		if err != nil && !errors.Is(err, commit.ErrClosed) {
			e.rousing.add(fence)
		}
	})
}

// pokeAllLocked has every run that executes here, or waits beside steps that do, look whether it is to go on.
func (e *Engine) pokeAllLocked() {
	for _, r := range e.cache.runs {
		if r.phase == executing {
			r.poke()
		}
	}
}

// letGoOfParkedLocked ends the goroutines of all parked runs. Their rows say waiting: any worker can resume them.
func (e *Engine) letGoOfParkedLocked() {
	for e.cache.parked.Len() > 0 {
		e.dropLocked(e.cache.parked.Front().Value.(*run)) //nolint:forcetypeassert // the list holds nothing else
	}
}

// resumeLocked lets a parked run go on, which has a slot. token is its row's now.
func (e *Engine) resumeLocked(r *run, token int64, with resumption) {
	e.unparkLocked(r)
	e.passOnLocked(r.reasons.end())
	r.phase, r.token, r.unproven = executing, token, with.durable != nil
	r.stream = &commit.Stream{}
	e.cache.executing++
	e.cache.resumed++
	r.resume <- &with // never blocks: a parked run is resumed once
}
