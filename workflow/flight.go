package workflow

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/romancy-go/romancy/internal/clamp"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// airspace holds the steps of a run that execute beside its goroutine, each in a goroutine of its own.
type airspace struct {
	flights []*flight // the run's goroutine's

	mu sync.Mutex // guards the state of all flights
	up int        // how many execute
}

type flightState int

const (
	grounded flightState = iota // not begun by this execution of the run, or to be begun again
	aloft                       // an attempt is under way
	delayed                     // a goroutine waits for the next attempt
	landed                      // over
)

// flight is one such step. Its result is recorded at its position when it lands; history may go on before.
type flight struct {
	step     step
	position int32
	body     stepBody
	ctx      context.Context //nolint:containedctx // ends when the step is not wanted any more
	stop     context.CancelFunc
	dropped  bool                // not wanted any more: the run's goroutine's
	knownAt  int32               // the last position when the workflow learnt that it had failed; 0: it has not. The run's goroutine's
	settled  func(output []byte) // notes how it is undone; nil: it is not, or that is noted

	unsettled atomic.Bool // an earlier execution of the run began it, and nobody knows how that ended
	settling  atomic.Bool // its next attempt that ends is the last
	steadfast bool        // it goes on although the run is to be cancelled: the run's goroutine's, until it begins
	begun     atomic.Bool // that it has begun is noted
	rejected  atomic.Bool // another case of a Select was chosen

	failed failures // its goroutine's while there is one, else the run's

	// Guarded by the airspace's mutex.
	state     flightState
	due       time.Time     // delayed or grounded: when the next attempt may begin
	dueMicros int64         // the same by the database's clock, since 1970
	recall    chan struct{} // closed to end the goroutine of a delayed flight
	record    *stepRecord   // landed: what is recorded; nil: nothing, the step was cancelled
}

// executing reports whether an attempt of any flight is under way.
func (a *airspace) executing() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.up > 0
}

// busy reports whether a goroutine of any flight is about: an attempt is under way, or will be.
func (a *airspace) busy() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.up > 0 || slices.ContainsFunc(a.flights, func(f *flight) bool { return f.state == delayed })
}

// waiting reports whether a flight is to begin.
func (a *airspace) waiting() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.flights, func(f *flight) bool { return f.state == grounded && !f.dropped })
}

func (a *airspace) land(f *flight, record *stepRecord) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if f.state == aloft {
		a.up--
	}
	f.state, f.record = landed, record
}

// over reports whether f has landed.
func (a *airspace) over(f *flight) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return f.state == landed
}

// recorded reports whether f has landed with a result. Without one it was cancelled.
func (a *airspace) recorded(f *flight) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return f.record != nil
}

// overtaken reports whether a flight that is wanted has landed without a result, because its run is cancelled.
func (a *airspace) overtaken() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.ContainsFunc(a.flights, func(f *flight) bool { return f.state == landed && f.record == nil && !f.dropped })
}

// recallDelayed ends the goroutines that only wait, unless an attempt is under way, and returns when the first of their attempts is due:
// the run can be parked until then.
func (a *airspace) recallDelayed() (stay bool, due *int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.up > 0 {
		return true, nil
	}
	for _, f := range a.flights {
		if f.state == delayed {
			close(f.recall)
			f.state = grounded
		}
		if at := f.dueMicros; f.state == grounded && !f.dropped && at > 0 && (due == nil || at < *due) {
			due = &at
		}
	}
	return false, due
}

// launch begins a step beside the workflow, unless history has it already. What history lacks while it goes on begins when it
// ends: the workflow may turn out not to want it.
func (r *run) launch(s step, body stepBody, undo func(position int32, output []byte)) (*flight, error) {
	r.checkpoint()
	if r.heedFailing() || r.cancelled != nil {
		return nil, r.cancelled
	}
	position, record, recorded, err := r.journal.Launch(s.kind, s.name)
	if err != nil {
		r.stuck(err)
	}
	if recorded || !r.journal.Begun(position) { // else the workflow has come past it before
		if err := r.heed(position, record, recorded); err != nil {
			return nil, err
		}
	}
	past := r.journal.Attempts(position)
	f := &flight{step: s, position: position, body: body, failed: newFailures(past)}
	if undo != nil {
		r.watchBeginning(f, undo)
	}
	f.ctx, f.stop = context.WithCancel(r.work)
	if recorded {
		done := r.decodeStep(position, record)
		r.checkRecordedInput(s, position, done.Input)
		f.state, f.record = landed, &done
	} else {
		f.step.digest = s.input()
		r.checkNewInput(f.step, position)
		f.failed.input = f.step.digest
	}
	if past.Failed > 0 && !recorded {
		f.due, f.dueMicros = time.Now().Add(clamp.Micros(past.Until)), past.NextAt
	}
	r.air.flights = append(r.air.flights, f)
	if !r.journal.Replaying() && r.asked.Load() == nil {
		r.takeOff()
	}
	return f, nil
}

// takeOff begins, or goes on with, every flight that is not under way.
func (r *run) takeOff() {
	if !r.air.waiting() {
		return
	}
	r.settle() // what came before is durable before they have effects
	r.air.mu.Lock()
	defer r.air.mu.Unlock()
	for _, f := range r.air.flights {
		if f.state != grounded || f.dropped {
			continue
		}
		recall := make(chan struct{})
		f.state, f.recall = delayed, recall
		if !f.due.After(time.Now()) {
			f.state = aloft
			r.air.up++
		}
		r.goFly(f, recall)
	}
}

func (r *run) goFly(f *flight, recall <-chan struct{}) {
	r.engine.goroutines.Add(1)
	r.engine.runs.Go(func() {
		defer r.engine.goroutines.Add(-1)
		r.fly(f, recall)
	})
}

// fly is the goroutine of a flight.
func (r *run) fly(f *flight, recall <-chan struct{}) {
	var record *stepRecord
	var begin, recalled, returned bool
	defer func() {
		if !returned { // the body has ended its goroutine: the attempt has failed, and another goroutine goes on
			if value := recover(); value != nil {
				panic(value) // not the body's, see callBody
			}
			if record = r.failFlight(f, errGoexit); !r.settledFlight(f, record) {
				r.goFly(f, recall)
				return
			}
		}
		if !recalled {
			r.noteGivenUp(f, record)
			r.air.land(f, record)
		}
		r.poke()
	}()
	for {
		if begin, recalled = r.awaitTurn(f, recall); !begin {
			break
		}
		if record, recalled = r.flyOnce(f); recalled || r.settledFlight(f, record) {
			break
		}
	}
	returned = true
}

// settledFlight reports whether there will be no further attempt after one that has left record.
func (r *run) settledFlight(f *flight, record *stepRecord) bool {
	return record != nil || f.ctx.Err() != nil || r.broken.Load() != nil
}

// errGoexit is the failure of an attempt whose body has called runtime.Goexit, as a test's FailNow does.
var errGoexit = NewError("goexit", "the activity ended its goroutine instead of returning")

// awaitTurn waits until the next attempt of f may begin. If it may not: either the goroutine is recalled, and another may have taken its place,
// or the step is not wanted any more.
func (r *run) awaitTurn(f *flight, recall <-chan struct{}) (begin, recalled bool) {
	r.air.mu.Lock()
	state, wait := f.state, time.Until(f.due)
	r.air.mu.Unlock()
	if state == aloft {
		return true, false
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-recall:
	case <-f.ctx.Done():
	}
	r.air.mu.Lock()
	defer r.air.mu.Unlock()
	select {
	case <-recall:
		return false, true
	default:
	}
	switch {
	case f.ctx.Err() != nil:
		return false, false
	case r.engine.draining.Load():
		f.state = grounded
		return false, true
	}
	f.state = aloft
	r.air.up++
	return true, false
}

// flyOnce attempts the step and returns what it has recorded, if the step is over by that. recalled: it had not begun when the
// worker began to shut down.
func (r *run) flyOnce(f *flight) (record *stepRecord, recalled bool) {
	done, err := r.executeUntilKept(f.ctx, f.step, f.position, f.failed.count+1, f.body)
	interrupted := asInterruption(err)
	switch {
	case errors.Is(err, errDraining):
		r.air.mu.Lock()
		defer r.air.mu.Unlock()
		f.state = grounded
		r.air.up--
		return nil, true
	case interrupted != nil:
		r.broken.CompareAndSwap(nil, interrupted)
		return nil, false
	case err == nil && done.recorded:
		return &done.stepRecord, false
	case err == nil && !r.lost.Load():
		return r.recordFlight(f, done.stepRecord), false
	default:
		return r.failFlight(f, err), false
	}
}

// failFlight records a failed attempt, and returns what it has recorded if that was the last.
func (r *run) failFlight(f *flight, err error) *stepRecord {
	switch {
	case r.lost.Load():
		f.stop()
	case f.ctx.Err() != nil: // whoever does not want it any more has said so
	case f.failed.add(f.step.options.retry, err) || f.settling.Load():
		return r.recordFlight(f, f.failed.record(err))
	default:
		r.delayFlight(f, err)
	}
	return nil
}

// recordFlight returns once the result is durable. A step that is not wanted any more is recorded too: it has had its effect.
func (r *run) recordFlight(f *flight, done stepRecord) *stepRecord {
	if _, err := commit.Await(context.Background(), func(then func(struct{}, error)) {
		r.engine.committer.Append(nil, store.Append{ // not in the run's stream: it does not follow from what comes before it there
			Fence: r.fence(), Position: f.position, Kind: f.step.kind, Name: f.step.name, Payload: done.encode(),
		}, then)
	}); err != nil {
		r.broken.CompareAndSwap(nil, &interruption{err: err})
		return nil
	}
	return &done
}

// delayFlight records a failed attempt; the next is due later.
func (r *run) delayFlight(f *flight, cause error) {
	ask := r.newRetry(f.step, f.position, f.failed.count, cause)
	ask.Stay = true
	ask.Heeds = ask.Heeds && !f.steadfast
	waited, err := commit.Await(context.Background(), func(then func(store.Waited, error)) {
		r.engine.committer.Retry(r.stream, ask, then)
	})
	switch {
	case err != nil:
		r.broken.CompareAndSwap(nil, &interruption{err: err})
		return
	case waited.Outcome == store.Cancelled:
		f.stop() // its run is cancelled, which the workflow learns at its next command
		return
	}
	r.engine.tellTimer(r.id, f.position, *waited.FiresAtMicros)
	if !f.step.inDoubt {
		f.unsettled.Store(false)
	}
	r.air.mu.Lock()
	defer r.air.mu.Unlock()
	f.due = time.Now().Add(clamp.Micros(*waited.RemainingMicros))
	f.dueMicros = *waited.FiresAtMicros
	f.state = delayed
	r.air.up--
	r.poke() // the run may be parked now
}

// errInterrupted: a step has left no record, and its run is not to be cancelled.
var errInterrupted = errors.New("a step has ended without a record")

// outcome returns what became of a flight that has landed, or that its run's cancellation has overtaken.
func (r *run) outcome(f *flight) ([]byte, error) {
	r.air.mu.Lock()
	record := f.record
	r.air.mu.Unlock()
	switch {
	case f.dropped:
		return nil, ErrNotChosen
	case r.heedFailing(): // whatever is recorded of it by now
	case record != nil:
		if record.Error != nil && f.knownAt == 0 {
			f.knownAt = r.reached()
		}
		return f.step.result(*record)
	case r.cancelled == nil:
		r.checkpoint() // it may be interrupted instead, which history alone can mend
		r.learnCancelled()
		r.cancelled = r.asked.Load() // told by this, as by a command
	}
	return nil, r.cancelled
}

// reached returns the position of the last command whose record cannot follow from what the workflow learns now.
func (r *run) reached() int32 {
	if r.producing {
		return r.journal.Issued() - 1
	}
	return r.journal.Issued()
}

// knownAt returns, by position, when the workflow learnt of the flights that have failed: by the end if it never has.
func (a *airspace) knownAt(end int32) map[int32]int32 {
	a.mu.Lock()
	defer a.mu.Unlock()
	known := map[int32]int32{}
	for _, f := range a.flights {
		if f.record != nil && f.record.Error != nil {
			known[f.position] = cmp.Or(f.knownAt, end)
		}
	}
	return known
}

// awaitFlights waits until wanted says that enough of the flights have landed. If the run is cancelled meanwhile it waits until
// all have noticed: what is recorded then decides what the workflow is told, now and in every later execution.
func (r *run) awaitFlights(wanted func() bool) (outcome string) {
	if wanted() {
		r.checkpoint() // a step that was interrupted has landed as well, without a record
		return store.Landed
	}
	r.checkpoint()
	if r.asked.Load() == nil {
		r.takeOff()
		r.settle()
		if outcome, _ = r.await(&store.Wait{}, nil, wanted); outcome != store.Cancelled {
			r.checkpoint()
			return outcome
		}
	}
	r.stopWork()
	r.awaitSilence()
	return store.Cancelled
}

// awaitSilence waits until no attempt is under way.
func (r *run) awaitSilence() {
	for r.air.executing() {
		r.checkpoint()
		r.idle(nil)
	}
}

// awaitLanding waits for all flights, wanted or not.
func (r *run) awaitLanding() (outcome string) {
	return r.awaitFlights(func() bool {
		for _, f := range r.air.flights {
			if !f.dropped && !r.air.over(f) {
				return false
			}
		}
		return !r.air.executing()
	})
}

// drop ends a flight that is not wanted any more, and keeps it from beginning.
func (r *run) drop(f *flight) {
	f.dropped = true
	f.stop()
}
