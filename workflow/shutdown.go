package workflow

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// lastCall is how long steps have, at the end of a shutdown's limit, to notice that their contexts are cancelled.
	lastCall = time.Second
	// writeLimit bounds what is written and said after that.
	writeLimit = 5 * time.Second
)

// Shutdown stops taking runs, lets each run here finish the step it is in, and hands it over: another worker continues it
// at once. When ctx ends first, the contexts of the steps still executing are cancelled. A run whose steps return within a second is
// handed over all the same; a step that returns a result has it recorded, one that returns an error is executed again elsewhere. A run
// with a step that does not return stays this worker's until its lease ends, so that the step does not execute twice at the same time:
// then another worker takes it over, and counts no death. The error says which runs were interrupted, which of them are left like this,
// and until when. Later calls return nil.
func (e *Engine) Shutdown(ctx context.Context) error {
	if e == nil {
		return nil
	}
	e.mu.Lock()
	if e.state != stateStarted {
		if e.state == stateNew {
			e.state = stateClosed
		}
		e.mu.Unlock()
		return nil
	}
	e.state = stateDraining
	e.draining.Store(true)
	e.admission.close()
	e.letGoOfParkedLocked()
	e.pokeAllLocked()
	e.mu.Unlock()

	over := e.drain(ctx)
	e.unobserve()
	e.unheed()
	e.stop()
	e.loops.Wait()
	e.reports.failures.Close()
	e.reports.forgotten.Close()
	e.reports.foreign.Close()

	// What is left must be written even if ctx is over, but not for ever.
	writeCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeLimit)
	defer cancel()
	e.giveBackRest(writeCtx)
	until := e.leave(writeCtx)
	e.committer.Close(writeCtx)
	e.side.Close(writeCtx)
	e.mu.Lock()
	e.state = stateClosed
	e.mu.Unlock()
	e.watch.close()
	return over.err(until)
}

// overrun is what did not end within the limit of a shutdown.
type overrun struct {
	cause       error
	interrupted []string // runs whose steps' contexts were cancelled
	left        []string // those of them whose steps have not returned
	steps       int64    // goroutines that execute all the same, those of runs lost earlier included
}

func (o *overrun) err(until time.Time) error {
	if o == nil {
		return nil
	}
	said := fmt.Sprintf("shutdown limit reached, %d run(s) interrupted in the middle of a step: %q", len(o.interrupted), o.interrupted)
	if len(o.left) > 0 {
		said += fmt.Sprintf("; of %d the step has not returned, and they stay this worker's until its lease ends at %s, when others take them over: %q",
			len(o.left), until.UTC().Format(time.RFC3339), o.left)
	}
	return fmt.Errorf("%s; %d step(s) still executing: %w", said, o.steps, o.cause)
}

// drain waits for the runs executing here to hand themselves over. At the end of ctx it cancels what they execute, and waits a little
// longer. It returns nil if all have ended before that.
func (e *Engine) drain(ctx context.Context) *overrun {
	drained := make(chan struct{})
	go func() { e.runs.Wait(); close(drained) }()
	select {
	case <-drained:
		return nil
	case <-ctx.Done():
	}
	over := &overrun{cause: ctx.Err()}
	for _, r := range e.resident() {
		r.abandon()
		over.interrupted = append(over.interrupted, r.id)
	}
	select {
	case <-drained:
		if len(over.interrupted) == 0 {
			return nil
		}
	case <-time.After(lastCall):
	}
	for _, r := range e.resident() {
		over.left = append(over.left, r.id)
	}
	over.steps = e.goroutines.Load()
	slices.Sort(over.interrupted)
	slices.Sort(over.left)
	return over
}

// resident returns the runs in memory here.
func (e *Engine) resident() []*run {
	e.mu.Lock()
	defer e.mu.Unlock()
	here := make([]*run, 0, len(e.cache.runs))
	for _, r := range e.cache.runs {
		here = append(here, r)
	}
	return here
}

// giveBackRest gives back, at the end, what the database says we own and nothing here executes: a claim may have been under way when
// its loop ended. It waits until that is written: what is owned then is left to others when the lease ends.
func (e *Engine) giveBackRest(ctx context.Context) {
	rest, err := e.findOrphans(ctx)
	if err != nil {
		e.logger.WarnContext(ctx, "looking for runs to give back failed; others take over what there is when the lease ends", "error", err)
	}
	answered := make(chan struct{}, len(rest))
	for fence := range rest {
		e.committer.Release(fence, func(run store.Named, err error) {
			if err == nil {
				e.tellResumable(run.ID, run.Workflow)
			}
			answered <- struct{}{} // never blocks
		})
	}
	for range rest {
		select {
		case <-answered:
		case <-ctx.Done():
			return
		}
	}
}

// leave gives this worker's id up and has the others look: what it held parked has nobody now who knows its deadlines or whom
// it was to be told of mail. It returns when the lease ends.
func (e *Engine) leave(ctx context.Context) (until time.Time) {
	if !e.executes() {
		return time.Time{}
	}
	ctx, cancel := context.WithTimeout(ctx, writeLimit/2) // what is queued is to be written, too
	defer cancel()
	until, err := e.lease.Leave(ctx)
	if err != nil {
		e.logger.WarnContext(ctx, "worker could not deregister; its lease will run out instead", "error", err)
		return until
	}
	e.config.Notifier.Notify(e.leftOn, "") // no payload: look for yourselves
	return until
}

// abandon is called when the limit of a shutdown is over. What the run executes learns it from its contexts, and no error that follows
// is recorded as a failure. The run stays in memory, and this worker's, until its bodies have returned: see giveBack.
func (r *run) abandon() {
	r.left.Store(true)
	r.stopWork()
	r.engine.mu.Lock()
	defer r.engine.mu.Unlock()
	if r.stop != nil {
		r.stop()
	}
	r.poke()
}

// giveBack is called at the end of the goroutine of a run that was abandoned: when the steps beside it have returned as well and what
// was appended is answered, nothing of the run executes here, and another worker may.
func (r *run) giveBack() {
	r.awaitBodies()
	if r.pending != nil {
		if err := <-r.pending; err != nil { // the committer answers every operation
			r.log().Warn("what a step returned during the shutdown is not recorded, it will be executed again", "error", err)
		}
	}
	r.handOver()
}

// lingering holds runs that were lost with a lease while they executed.
type lingering struct {
	some signal
	runs []*run // guarded by the engine's mutex
}

func newLingering() *lingering { return &lingering{some: newSignal()} }

// namedAtMost bounds how many ids a line of the log has.
const namedAtMost = 10

// lingerLoop says, once for each lease that was lost, which bodies have ignored that their contexts were cancelled: when the lease has
// ended they may execute beside those of another worker.
func (e *Engine) lingerLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.lingering.some:
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(max(e.config.Lease/10, lastCall)): // the lease has ended by then
		}
		e.mu.Lock()
		lost := e.lingering.runs
		e.lingering.runs = nil
		e.mu.Unlock()
		still := slices.DeleteFunc(lost, func(r *run) bool { return r.over.Load() && !r.air.executing() })
		if len(still) == 0 {
			continue
		}
		var ids []string
		for _, r := range still[:min(len(still), namedAtMost)] {
			ids = append(ids, r.id)
		}
		e.logger.WarnContext(ctx, "steps of runs that were lost with the lease still execute, although their contexts are cancelled: "+
			"other workers may execute them at the same time, and what they return is not recorded", "runs", len(still), "instance_ids", ids)
	}
}

// leaseLost ends every run here, which belong to whoever takes them over, and counts why. It returns those that the database may say are
// executed by this worker.
func (e *Engine) leaseLost() (owned []store.Fence) {
	e.metrics.leaseLosses.Add(context.Background(), 1)
	owned = e.dropAll()
	e.committer.Abandon(context.Background())
	return owned
}

// dropAll ends every run here, and returns those that the database may say are executed by this worker.
func (e *Engine) dropAll() (owned []store.Fence) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.cache.runs {
		fence := r.fence()
		switch {
		case r.phase == executing:
			e.lingering.runs = append(e.lingering.runs, r)
			owned = append(owned, fence)
		case r.reasons.polling:
			fence.Token++ // if the wake was carried out
			owned = append(owned, fence)
		}
		e.dropLocked(r)
	}
	if len(e.lingering.runs) > 0 {
		e.lingering.some.give()
	}
	return owned
}

// freed has runs go on that were stuck because this worker was counted as dead.
func (e *Engine) freed(runs []store.Named) {
	for _, run := range runs {
		e.about(run.ID, run.Workflow).Info("run is not stuck any more: a worker that was counted as dead lives")
	}
	e.madeReady(runs)
}
