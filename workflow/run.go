package workflow

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// run is one run executing or parked here. Its goroutine executes the workflow function from the top: commands that
// history knows are answered from it, the others are carried out and recorded. The goroutine ends with the run, or, by
// runtime.Goexit, when the run is evicted, handed over or lost; a deferred function of the workflow runs in each case.
type run struct {
	engine     *Engine
	id         string
	definition Definition
	input      []byte

	work     context.Context //nolint:containedctx // ends with the run's life here, or when it is cancelled: handed to activities
	stopWork context.CancelFunc
	left     atomic.Bool                    // the limit of a shutdown is over: see abandon
	over     atomic.Bool                    // its goroutine has ended
	lost     atomic.Bool                    // writes of this run are refused, or will be: end
	mailed   atomic.Bool                    // there may be mail for a goroutine that waits without being parked
	asked    atomic.Pointer[CancelledError] // it is to be cancelled
	broken   atomic.Pointer[interruption]   // a step beside the goroutine has found that the run cannot go on here

	tracing tracing

	// The goroutine's own.
	journal       *journal.Journal
	token         int64
	worker        int64 // that owns it: this one, under the id that it had then
	heir          bool  // it has continued another as new
	stream        *commit.Stream
	pending       chan error   // the outcome of the last append, or of the wake, if it has not been waited for
	woken         chan error   // the outcome of the wake, if nothing was written since
	logger        *slog.Logger // of the workflow; nil until it asks for it
	compensations []compensation
	inputs        inputs                 // of activities
	subscriptions map[string]Mode        // nil: none
	events        map[string][]seenEvent // it has had, by type; nil: none
	cancelled     *CancelledError        // the workflow has been told
	finishing     bool                   // it has failed, and steps beside it are executed to their ends so that they can be undone
	compensating  bool
	exiting       bool // the goroutine is ending, or has to: see exit
	producing     bool // the workflow's own code makes a value that is to be recorded at the position issued last

	turn   turn                          // of the command under way
	resume chan *resumption              // to the parked goroutine
	poked  atomic.Pointer[chan struct{}] // see pokes
	air    airspace                      // steps that execute beside the goroutine

	// The cache's, guarded by the engine's mutex.
	ctx       context.Context //nolint:containedctx // see lifetime
	stop      context.CancelFunc
	element   *list.Element
	epoch     int64 // of the database server when it was parked, see serverEpoch
	waiting   waiting
	listening []listening // the channels it waits on, parked or not
	reasons   reasons     // to poll for it, while it is parked
	phase     phase
	slot      bool // it executes, or may
	due       bool // it is parked and waits for a slot
	unproven  bool // it goes on by a wake that the database has not committed yet
}

// launchLocked begins to execute a run that this worker owns and has a slot for. The caller holds the engine's mutex.
func (e *Engine) launchLocked(definition Definition, owned store.Claimed, past *store.Past) {
	remembered, err := journal.New(past.Records, past.Attempts)
	if err != nil {
		e.about(owned.ID, owned.Workflow).Error("run cannot be replayed and is stuck", "error", err, "remedy", stuckRemedy)
		e.giveSlotLocked(owned.Workflow)
		e.finishStuck(owned, err)
		return
	}
	r := &run{
		engine: e, id: owned.ID, definition: definition, input: owned.Input,
		journal: remembered, token: owned.Token, worker: owned.Worker, heir: owned.Heir, stream: &commit.Stream{},
		resume: make(chan *resumption, 1),
	}
	r.work, r.stopWork = context.WithCancel(context.Background())
	if past.Cancel != nil {
		r.asked.Store(decodeCancelled(past.Cancel))
	}
	r.tracing.origin = decodeTrace(owned.Trace)
	e.addLocked(r)
	replayed := len(past.Records) > 0
	if replayed {
		e.cache.replayed++
	}
	e.goroutines.Add(1)
	e.runs.Go(func() {
		defer e.goroutines.Add(-1)
		defer e.ended(r)
		r.beginSegment(replayed)
		defer r.endSegment(segmentLeft, nil)
		r.main()
	})
}

// lifetime returns a context that ends when the run is not executed here any more. It outlives work when the run is cancelled,
// and is handed to compensations. Most parked runs never had one.
func (r *run) lifetime() context.Context {
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	if r.ctx == nil {
		r.ctx, r.stop = context.WithCancel(context.Background())
		if r.phase == gone || r.left.Load() {
			r.stop()
		}
	}
	return r.ctx
}

// fence names the run as this worker owns it.
func (r *run) fence() store.Fence { return store.Fence{ID: r.id, Token: r.token, Worker: r.worker} }

// log returns the logger for what the engine says of the run.
func (r *run) log() *slog.Logger { return r.engine.about(r.id, r.definition.Name()) }

// main executes the workflow and ends the run.
func (r *run) main() {
	defer func() {
		if value := recover(); value != nil { // not the workflow's, see call
			r.stuck(newPanicError(" at the end of the run", value))
		}
	}()
	returned := false
	defer func() {
		if !returned && !r.exiting { // nothing stops a goroutine that ends, but the run need not stay owned by nobody
			r.end(nil, errWorkflowGoexit)
		}
	}()
	output, err := r.call()
	returned = true
	r.end(output, err)
}

// errWorkflowGoexit is the failure of a workflow that has called runtime.Goexit, as a test's FailNow does.
var errWorkflowGoexit = NewError("goexit", "the workflow ended its goroutine instead of returning")

// call runs the workflow function and turns a panic into an error.
func (r *run) call() (output []byte, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = newPanicError("", value)
		}
	}()
	input := r.input
	r.input = nil // it is decoded once
	output, err = r.definition.execute(&Context{Context: r.work, run: r}, input)
	return output, checked(err)
}

// end records how the workflow ended, undoing its steps first if it failed or is cancelled.
func (r *run) end(output []byte, err error) {
	if r.left.Load() {
		r.exit() // it may have ended because its context is cancelled; executed again, it finds what is recorded
	}
	r.enterEnd()
	next := new(continuation)
	r.heedFailing()
	if r.cancelled == nil && (err == nil || errors.As(err, &next)) {
		if diverged := r.journal.End(); diverged != nil {
			r.stuck(diverged)
		}
		// Steps that nobody has waited for belong to the run all the same.
		if r.awaitLanding() == store.Cancelled || r.air.overtaken() {
			r.learnCancelled()
			r.cancelled = r.asked.Load()
		}
	}
	if r.cancelled != nil {
		err = r.cancelled
	}
	var ended bool
	switch {
	case err == nil:
		ended = r.finish(store.Finish{Status: string(StatusCompleted), Output: output})
	case errors.As(err, &next):
		ended = r.continueAs(next)
	default:
		ended = r.fallBack(err)
	}
	if !ended { // it has just learnt that it is cancelled, and ends as that
		r.fallBack(r.cancelled)
	}
}

// fallBack undoes the run's steps and ends it as failed, or as cancelled if it is. It reports false if it has learnt instead that it
// is cancelled.
func (r *run) fallBack(err error) (ended bool) {
	issued := r.journal.Issued()
	failed := r.compensate(err)
	failed.KnownAt = r.air.knownAt(issued)
	if diverged := r.journal.End(); diverged != nil {
		r.stuck(diverged)
	}
	status := StatusFailed
	if r.cancelled != nil {
		status = StatusCancelled
	}
	if ended = r.finish(store.Finish{Status: string(status), Error: failed.encode()}); ended && status == StatusFailed {
		r.reportFailed(failed, err)
	}
	return ended
}

// finish ends the run. It reports false if the run has learnt instead that it is cancelled.
func (r *run) finish(finish store.Finish) (ended bool) {
	finish.Fence = r.fence()
	if _, err := commit.Await(context.Background(), func(then func(struct{}, error)) {
		r.engine.committer.Finish(r.stream, finish, then)
	}); err != nil {
		if r.overtaken(err) {
			return false
		}
		r.giveUp(err)
	}
	r.endLastSegment(finish)
	r.engine.tellEnded(store.Run{ID: r.id, Workflow: r.definition.Name(), Status: finish.Status, Output: finish.Output, Error: finish.Error})
	return true
}

// exit ends the goroutine; the run goes on elsewhere, or later. A goroutine that the workflow has begun itself is not the engine's
// to end: its command returns an error, and the run's own ends at its next.
func (r *run) exit() {
	r.exiting = true
	if !onRunGoroutine() {
		panic(departure{})
	}
	runtime.Goexit()
}

// checkpoint is passed before every command: a run that is lost ends here, one of a worker that is shutting down is handed
// over here.
func (r *run) checkpoint() {
	if r.lost.Load() || r.left.Load() || r.exiting {
		r.exit()
	}
	r.yieldToClash()
	if broken := r.broken.Load(); broken != nil {
		r.giveUp(broken.err)
	}
	if r.engine.draining.Load() {
		r.settle()
		for r.air.executing() {
			r.idle(nil)
		}
		r.handOver()
		r.exit()
	}
}

// handOver makes the run ready for others, if it is still ours, when nothing of it executes here any more.
func (r *run) handOver() {
	r.awaitBodies()
	if !r.lost.Swap(true) {
		r.engine.release(r.fence(), r.definition.Name())
	}
}

// awaitBodies waits until no body of a step beside the goroutine executes here any more, so that none executes beside itself when
// another worker goes on with the run.
func (r *run) awaitBodies() {
	for r.air.executing() {
		<-r.pokes() // each says so when it ends
	}
}

// giveUp ends the goroutine because an operation of the run failed with err, which no attempt will change: operations of runs are kept
// until the database takes them.
func (r *run) giveUp(err error) {
	switch {
	case r.lost.Load():
	case errors.Is(err, commit.ErrFenced), errors.Is(err, commit.ErrClosed):
		// Somebody else's, or will be when the lease has run out. If the database says that it is ours, others are to have it.
		if errors.Is(err, commit.ErrFenced) {
			r.engine.refused(r.fence(), r.definition.Name())
		}
		r.stopWork()
		r.awaitBodies()
		r.lost.Store(true)
		r.engine.orphans.give()
	case errors.As(err, new(*interruptionsError)), refusal.Of(err) == refusal.Value:
		r.stuck(err)
	case errors.Is(err, commit.ErrOutcomeUnknown):
		r.handOver() // it has resumed by a wake that was not committed, perhaps, and has done nothing since: history knows
	default:
		r.log().Warn("run interrupted, it will be executed again from history", "error", err)
		r.handOver()
	}
	r.exit()
}

// stuck stops the run with its history untouched and ends the goroutine.
func (r *run) stuck(err error) {
	r.awaitBodies()
	shown := err
	if errors.As(err, new(*interruptionsError)) {
		shown = r.engine.told(err) // a step's words are in it
	}
	r.log().Error("run is stuck", "error", shown, "remedy", stuckRemedy)
	r.endSegment(string(StatusStuck), shown)
	if !r.lost.Swap(true) {
		r.engine.finishStuck(store.Claimed{ID: r.id, Workflow: r.definition.Name(), Token: r.token, Worker: r.worker}, err)
	}
	r.exit()
}

// misfit stops the run because what is recorded at a position (0: its input) is not what the code expects there.
func (r *run) misfit(position int32, err error) {
	r.settle() // it may have just been made
	r.stuck(divergence{fmt.Errorf("history does not fit the code at position %d: %w; deploy code that fits and retry the run", position, err)})
}

// divergence is an error because of which the run is stuck with ErrDiverged.
type divergence struct{ error }

func (d divergence) Unwrap() error        { return d.error }
func (d divergence) Is(target error) bool { return target == ErrDiverged }

// issue takes the next position for a command. A replay that diverges ends the goroutine. The error says that the run is
// cancelled, and that the command is not to be carried out.
func (r *run) issue(kind journal.Kind, name string) (position int32, record journal.Record, recorded bool, err error) {
	return r.take(r.journal.Issue, kind, name)
}

func (r *run) take(
	next func(journal.Kind, string) (int32, journal.Record, bool, error), kind journal.Kind, name string,
) (position int32, record journal.Record, recorded bool, err error) {
	r.checkpoint()
	if r.heedFailing() || r.cancelled != nil && !r.compensating {
		return 0, record, false, r.cancelled
	}
	position, record, recorded, err = next(kind, name)
	if err != nil {
		r.stuck(err)
	}
	return position, record, recorded, r.heed(position, record, recorded)
}

// heed notices, at a command, that the run is cancelled: because history says that it was noticed there, or because history
// ends and somebody has asked for it since.
func (r *run) heed(position int32, record journal.Record, recorded bool) error {
	switch {
	case recorded && record.Kind == journal.Cancelled:
		r.cancelled = decodeCancelled(record.Payload)
		r.stopWork()
		return r.cancelled
	case recorded || r.journal.Replaying():
		return nil
	}
	if r.asked.Load() != nil && !r.compensating {
		return r.recordCancelled(position)
	}
	r.takeOff() // what executed beside the workflow when history ends goes on
	return nil
}

// heedFailing notices that an earlier execution, before it began to undo the run's steps, was told without a record that the run is
// cancelled: by a future, whose step may have been executed to its end since, to be undone, or at the end. It issued no command from then on, so
// this one issues none either.
func (r *run) heedFailing() (cancelled bool) {
	if r.compensating || r.asked.Load() == nil {
		return false
	}
	if next, _ := r.journal.Next(); next.Kind != journal.Failing || next.Position != r.journal.Issued()+1 {
		return false
	}
	if r.cancelled == nil {
		r.cancelled = r.asked.Load()
		r.stopWork()
	}
	return true
}

// recordCancelled tells the workflow that its run is cancelled: here, in this and every later execution.
func (r *run) recordCancelled(position int32) error {
	r.cancelled = r.asked.Load()
	r.stopWork()
	r.append(position, journal.Cancelled, "", r.cancelled.encode())
	return r.cancelled
}

// append records a step without waiting: the next side effect, or the end, will.
func (r *run) append(position int32, kind journal.Kind, name string, payload []byte) {
	outcome := make(chan error, 1)
	r.pending = outcome
	r.engine.committer.Append(r.stream, store.Append{
		Fence: r.fence(), Position: position, Kind: kind, Name: name, Payload: payload,
	}, func(_ struct{}, err error) { outcome <- err })
}

// settleWake waits until it is known whether the run was woken for good: what it did would be done again otherwise.
func (r *run) settleWake() {
	if r.woken != nil && r.woken == r.pending {
		r.settle()
	}
}

// settle waits until what was appended is durable.
func (r *run) settle() {
	if r.pending == nil {
		return
	}
	err := <-r.pending // the committer answers every operation
	r.pending = nil
	if err != nil {
		r.giveUp(err)
	}
}

// pokes holds a token after something that a goroutine which waits without being parked waits for. Few runs ever need it.
func (r *run) pokes() chan struct{} {
	if made := r.poked.Load(); made != nil {
		return *made
	}
	made := make(chan struct{}, 1)
	r.poked.CompareAndSwap(nil, &made)
	return *r.poked.Load()
}

// poke has a goroutine that waits without being parked look again. It never blocks.
func (r *run) poke() {
	select {
	case r.pokes() <- struct{}{}:
	default:
	}
}

// idle waits until something may have happened: the run was poked or lost, or after, which it reports.
func (r *run) idle(after <-chan time.Time) (over bool) {
	select {
	case <-r.pokes():
		return false
	case <-after:
		return true
	case <-r.lifetime().Done():
		r.exit()
		return false
	}
}
