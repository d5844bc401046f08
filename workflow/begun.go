package workflow

import (
	"context"
	"slices"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// A step beside the workflow has no record until it ends, and history may go on meanwhile. If its worker leaves, nothing would
// tell the next that it has had its effect, unless the workflow waits for it. So one that can be undone has a note in history
// before its first attempt begins. When the run fails, such a step without a record is executed to its end: its result is what
// the compensation needs.

// watchBeginning has it noted when f begins, and how it is undone when it has ended.
func (r *run) watchBeginning(f *flight, undo func(position int32, output []byte)) {
	f.settled = func(output []byte) { undo(f.position, output) }
	f.unsettled.Store(r.journal.Unsettled(f.position))
	f.step.inDoubt = r.journal.InDoubt(f.position)
	f.begun.Store(r.journal.Begun(f.position))
	f.step.begin = func() error { return r.noteBegun(f) }
}

// noteBegun returns once it is durable that f has begun. It is called by the goroutine of f.
func (r *run) noteBegun(f *flight) error {
	if f.begun.Load() {
		return nil
	}
	err := r.note(journal.Begun, f)
	if err == nil {
		f.begun.Store(true)
	}
	return err
}

// noteGivenUp notes that f, which lost a Select, has returned without success, so that it is not executed again to be undone. If
// that fails it is executed again, which is correct, too. It is called by the goroutine of f when it ends.
func (r *run) noteGivenUp(f *flight, record *stepRecord) {
	if record == nil && f.rejected.Load() && f.begun.Load() && !f.unsettled.Load() && r.broken.Load() == nil && !r.lost.Load() {
		_ = r.note(journal.GivenUp, f)
	}
}

func (r *run) note(kind journal.Kind, f *flight) error {
	_, err := commit.Await(context.Background(), func(then func(struct{}, error)) {
		r.engine.committer.Append(nil, store.Append{
			Fence: r.fence(), Position: journal.NoteAt(kind, f.position), Kind: kind, Name: f.step.name,
		}, then)
	})
	return err
}

// ground ends all flights, waits for those under way to notice, and has what they did undone if the run is undone. Those that have
// not begun again since a crash never do, unless they can be undone and have begun before it.
func (r *run) ground() {
	owed := r.owed()
	for _, f := range r.air.flights {
		if !slices.Contains(owed, f) || f.ctx.Err() != nil {
			r.drop(f)
		}
	}
	for _, f := range owed {
		f.settling.Store(!f.step.inDoubt)
	}
	r.awaitSilence()
	r.checkpoint() // history knows more than this process of a step that was interrupted
	if len(owed) > 0 {
		r.finishBegun(owed)
	}
	for _, f := range r.air.flights {
		r.air.mu.Lock() // one that only waited for its next attempt may be just landing
		record := f.record
		r.air.mu.Unlock()
		if f.settled != nil && record != nil && record.Error == nil {
			f.settled(record.Output)
		}
		f.settled = nil
	}
}

// owed returns the flights that an earlier execution of the run has begun, that can be undone and of which nothing is known. There
// are none if history says that the run is failing: that was recorded when all had ended.
func (r *run) owed() (owed []*flight) {
	if _, more := r.journal.Next(); more {
		return nil
	}
	if diverged := r.journal.EndOfNotes(); diverged != nil {
		r.stuck(diverged)
	}
	for _, f := range r.air.flights {
		if f.unsettled.Load() && !r.air.recorded(f) {
			owed = append(owed, f)
		}
	}
	return owed
}

// finishBegun executes flights until each has a record, also if the run is cancelled: with their retry policies, but only once more where
// nothing but the time says that an attempt may have begun after the last one that failed.
func (r *run) finishBegun(owed []*flight) {
	r.finishing = true
	recorded := func() bool {
		return !slices.ContainsFunc(owed, func(f *flight) bool { return !r.air.recorded(f) })
	}
	for !recorded() {
		for _, f := range owed {
			r.revive(f)
		}
		r.takeOff()
		r.await(&store.Wait{}, nil, func() bool {
			return !slices.ContainsFunc(owed, func(f *flight) bool { return !r.air.over(f) })
		})
		r.checkpoint() // a step that was interrupted is over as well, without a record
	}
	r.finishing = false
}

// revive makes a flight that was not wanted any more, or that the run's cancellation has overtaken, ready to begin again.
func (r *run) revive(f *flight) {
	r.air.mu.Lock()
	idle := f.record == nil && f.ctx.Err() != nil && (f.state == grounded || f.state == landed)
	r.air.mu.Unlock()
	if !idle {
		return
	}
	f.ctx, f.stop = context.WithCancel(r.lifetime())
	f.dropped, f.steadfast = false, true
	r.air.mu.Lock()
	defer r.air.mu.Unlock()
	f.state = grounded
}
