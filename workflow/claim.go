package workflow

import (
	"context"
	"errors"
	"maps"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/slots"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// claimGap is the least time between two looks for ready runs: every start in the cluster is announced to all workers.
	claimGap = 5 * time.Millisecond
	// orphanDelay is how long a run may be owned in the database and not be here: its claim may be under way.
	orphanDelay = time.Second
)

// do carries out statements through the committer and waits for them.
func (e *Engine) do(ctx context.Context, repeat bool, statements func(*pgx.Batch)) error {
	_, err := commit.Await(ctx, func(then func(struct{}, error)) { e.committer.Do(repeat, statements, then) })
	return err
}

// doHinted does the same for what a hint asks for, which goes after what the runs here have to write. The statements
// may be repeated.
func (e *Engine) doHinted(ctx context.Context, statements func(*pgx.Batch)) error {
	_, err := commit.Await(ctx, func(then func(struct{}, error)) { e.committer.Hinted().Do(statements, then) })
	return err
}

// claimSize bounds what one claim takes, whose answer brings the inputs of all the runs: after one that was lost it is a quarter, and
// grows again with those that come. It belongs to one loop.
type claimSize struct{ lowered int } // 0: it is not

// of returns how many runs the next claim may take, at most most.
func (c *claimSize) of(most int) int {
	if c.lowered == 0 {
		return most
	}
	return min(most, c.lowered)
}

// learn follows a claim that was allowed to take n.
func (c *claimSize) learn(n int, err error) {
	switch {
	case err != nil:
		c.lowered = max(n/4, 1)
	case c.lowered > maxTally:
		c.lowered = 0
	default:
		c.lowered *= 2
	}
}

// claimLoop takes ready runs while there is room.
func (e *Engine) claimLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.claims:
		case <-e.ready.later:
		}
		round := &slots.Round{}
		for e.claim(ctx, round) {
		}
		e.serve(false)
		select {
		case <-ctx.Done():
			return
		case <-time.After(claimGap):
		}
	}
}

// claim takes one batch of ready runs, after the parked ones that have waited for room to go on. It reports whether there may
// be more that there is room for.
func (e *Engine) claim(ctx context.Context, round *slots.Round) bool {
	worker := e.lease.ID()
	if worker == 0 || ctx.Err() != nil || e.draining.Load() {
		return false
	}
	e.serve(true)
	e.mu.Lock()
	room, ok := e.cache.slots.Offer(round, e.readySize.of(e.config.MaxWorkflowsPerBatch))
	e.mu.Unlock()
	if !ok {
		return false
	}
	offer := store.Offer(room)
	marks, full := e.ready.begin(offer.Workflows)
	look := new(store.Look) // its own: an operation that is not waited for any more may still write to it
	err := e.do(ctx, false, func(b *pgx.Batch) {
		if full {
			e.store.ClaimReady(b, worker, offer, readyMargin, look)
		} else {
			e.store.ClaimReadyFrom(b, worker, offer, marks, readyMargin, look)
		}
	})
	e.ready.end(look, full, offer, err)
	e.readySize.learn(room.Limit, err)
	e.mu.Lock()
	if err != nil {
		e.cache.slots.Withdraw(room)
	} else {
		e.cache.slots.Settle(round, room, counted(look.Claimed))
	}
	e.mu.Unlock()
	if err != nil {
		e.claimFailed(ctx, e.reports.claims, err)
		return false
	}
	e.reports.claims.Succeeded(ctx)
	e.launch(ctx, worker, look.Claimed)
	return true
}

// counted returns how many of the runs there are of each workflow.
func counted(runs []store.Claimed) map[string]int {
	counts := map[string]int{}
	for _, run := range runs {
		counts[run.Workflow]++
	}
	return counts
}

func (e *Engine) claimFailed(ctx context.Context, report *outage.Reporter, err error) {
	if ctx.Err() != nil {
		return
	}
	report.Failed(ctx, err)
	e.orphans.give() // an answer may have been lost
	select {
	case <-ctx.Done():
	case <-time.After(time.Second):
	}
	e.claims.give()
}

// launch executes runs that this worker has just become the owner of. They have their slots.
func (e *Engine) launch(ctx context.Context, worker int64, owned []store.Claimed) {
	rest := e.resumeClaimed(owned)
	if len(rest) == 0 {
		return
	}
	pasts, err := e.loadPasts(ctx, rest)
	if err != nil {
		e.reports.loads.Failed(ctx, err)
	} else {
		e.reports.loads.Succeeded(ctx)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, run := range rest {
		if err != nil || e.draining.Load() || e.lease.ID() != worker {
			e.giveSlotLocked(run.Workflow)
			e.release(run.Fence(), run.Workflow)
			if e.lease.ID() != worker {
				e.lease.TakenFrom(run.Fence())
			}
			continue
		}
		e.launchLocked(e.definitions[run.Workflow], run, pasts[run.ID])
	}
}

// resumeClaimed lets those runs go on that are parked in memory here and were owned by nobody else meanwhile; it returns
// the others.
func (e *Engine) resumeClaimed(owned []store.Claimed) (rest []store.Claimed) {
	epoch := e.serverEpoch()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, run := range owned {
		r := e.cache.runs[run.ID]
		if r != nil && r.phase == parked && !r.reasons.polling && r.token+1 == run.Token && r.epoch == epoch {
			r.slot, r.due, r.worker = true, false, run.Worker
			e.resumeLocked(r, run.Token, resumption{outcome: claimed})
			continue
		}
		rest = append(rest, run)
	}
	return rest
}

func (e *Engine) loadPasts(ctx context.Context, owned []store.Claimed) (map[string]*store.Past, error) {
	pasts := map[string]*store.Past{}
	var ids []string
	for _, run := range owned {
		pasts[run.ID] = &store.Past{}
		if run.Token > 1 { // an earlier owner may have left something
			ids = append(ids, run.ID)
		}
	}
	return pasts, e.addPasts(ctx, ids, pasts)
}

// How much history is loaded at a time. The bytes are as they are stored, so what is compressed there is more on its way.
const (
	historyRows  = 1000
	historyBytes = 1 << 20
)

// addPasts loads what the database knows of runs that nobody else is busy with.
func (e *Engine) addPasts(ctx context.Context, ids []string, into map[string]*store.Past) error {
	page := &store.PastPage{IDs: ids}
	for first := true; page != nil && len(page.IDs) > 0; first = false {
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.LoadHistory(b, page, historyRows, historyBytes)
			if first {
				e.store.LoadState(b, page)
			}
		}); err != nil {
			return err
		}
		if first {
			maps.Copy(into, page.Pasts)
		} else {
			for id, past := range page.Pasts {
				into[id].Records = append(into[id].Records, past.Records...)
			}
		}
		page = page.Next
	}
	return nil
}

// release makes an owned run ready for any worker.
func (e *Engine) release(fence store.Fence, workflow string) {
	e.committer.Release(fence, func(run store.Named, err error) {
		switch {
		case err == nil:
			e.reports.releases.Succeeded(context.Background())
			e.tellResumable(run.ID, run.Workflow)
			e.claims.give()
		case errors.Is(err, commit.ErrFenced):
			e.claims.give() // it may have been made ready while it was here
		case errors.Is(err, commit.ErrClosed):
		default:
			e.reports.releases.Failed(context.Background(), err, aboutRun(fence.ID, workflow)...)
			e.orphans.give()
		}
	})
}

// coldLoop takes runs that are due and were evicted from memory.
func (e *Engine) coldLoop(ctx context.Context) {
	again := retrying{}
	for again.wait(ctx, e.cold.some, nil) {
		counts, more := e.cold.take()
		ids, err := e.claimCold(ctx, keys(counts), more)
		if err != nil && ctx.Err() == nil {
			e.cold.putBack(nil, more)
		}
		e.cold.add(ids...)
		again.after(err != nil)
	}
}

// claimCold claims runs that are due, or, without room, makes them ready for whoever has room. more: there are others than these. It
// returns those that are left.
func (e *Engine) claimCold(ctx context.Context, ids []string, more bool) (left []string, err error) {
	if more {
		if err := e.sweepDueRuns(ctx); err != nil {
			return ids, err
		}
	}
	worker := e.lease.ID()
	if len(ids) == 0 {
		return nil, nil
	}
	if worker == 0 {
		return ids, errNoLease
	}
	if most := e.coldSize.of(len(ids)); most < len(ids) {
		ids, left = ids[:most], ids[most:]
	}
	e.mu.Lock()
	room, ok := e.cache.slots.Blind(len(ids))
	e.mu.Unlock()
	if !ok {
		if err := e.sweepDueFor(ctx, worker, ids); err != nil {
			return append(left, ids...), err
		}
		return left, nil
	}
	due := new(store.DueRuns)
	err = e.do(ctx, false, func(b *pgx.Batch) { e.store.ClaimWaiting(b, ids, worker, due) })
	e.mu.Lock()
	if err != nil {
		e.cache.slots.Withdraw(room)
	} else {
		e.cache.slots.SettleBlind(room, counted(due.Claimed))
	}
	e.mu.Unlock()
	e.coldSize.learn(len(ids), err)
	if err != nil {
		e.claimFailed(ctx, e.reports.coldClaims, err)
		return append(left, ids...), err
	}
	e.reports.coldClaims.Succeeded(ctx)
	for _, run := range due.Claimed {
		e.metrics.late(run.Late)
	}
	e.launch(ctx, worker, due.Claimed)
	e.armLeft(due.Left)
	return left, nil
}

// errNoLease: this worker is just registering.
var errNoLease = errors.New("the worker has no lease")

// sweepDueRuns makes runs ready that are due, whoever has room for them.
func (e *Engine) sweepDueRuns(ctx context.Context) error {
	_, err := e.SweepTimers(ctx)
	_, failed := e.SweepChannelTimeouts(ctx)
	err = errors.Join(err, failed)
	noteOutcome(ctx, e.reports.timers, err)
	return err
}

// sweepDueFor does that, and has these runs claimed later if they are still parked and in nobody's memory.
func (e *Engine) sweepDueFor(ctx context.Context, worker int64, ids []string) error {
	if err := e.sweepDueRuns(ctx); err != nil {
		return err
	}
	found := new([]store.ParkedRun)
	if err := e.do(ctx, true, func(b *pgx.Batch) { e.store.ParkedRuns(b, ids, found) }); err != nil {
		return err
	}
	var left []store.Deadline
	for _, run := range *found {
		if run.Status == string(StatusWaiting) && run.Until != nil && (run.Worker == 0 || run.Worker == worker) {
			left = append(left, store.Deadline{Fence: run.Fence, Until: *run.Until})
		}
	}
	e.armLeft(left)
	return nil
}

// armLeft has cold runs claimed later that were not: they are not due by the database's clock yet, or their rows are held.
func (e *Engine) armLeft(left []store.Deadline) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, due := range left {
		if e.cache.runs[due.ID] == nil {
			e.armColdLocked(due.ID, due.Token, time.Now().Add(max(due.Until, pollAgain)))
		}
	}
}

// orphanLoop gives back what the database says we own but is not here: the answer to a claim was lost, say.
func (e *Engine) orphanLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.orphans:
		}
		before, err := e.findOrphans(ctx)
		if err == nil && len(before) > 0 {
			select {
			case <-ctx.Done():
				return
			case <-time.After(orphanDelay):
			}
			var after map[store.Fence]string
			after, err = e.findOrphans(ctx)
			for fence, workflow := range after {
				if _, still := before[fence]; still {
					e.mu.Lock()
					e.dropForgottenLocked(fence)
					e.mu.Unlock()
					e.release(fence, workflow)
				}
			}
		}
		if err != nil && ctx.Err() == nil {
			e.reports.orphans.Failed(ctx, err)
			select {
			case <-ctx.Done():
				return
			case <-time.After(orphanDelay):
			}
			e.orphans.give()
		} else if err == nil {
			e.reports.orphans.Succeeded(ctx)
		}
	}
}

// findOrphans returns the workflows of the orphans.
func (e *Engine) findOrphans(ctx context.Context) (map[store.Fence]string, error) {
	worker := e.lease.ID()
	orphans := map[store.Fence]string{}
	if worker == 0 {
		return orphans, nil
	}
	if err := e.do(ctx, true, func(b *pgx.Batch) { e.store.OwnedRuns(b, worker, orphans) }); err != nil {
		return nil, err
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	maps.DeleteFunc(orphans, func(fence store.Fence, _ string) bool {
		// A run that is waking is in memory with the token it had when it parked.
		r := e.cache.runs[fence.ID]
		orphan := r == nil || (r.phase == executing && r.token != fence.Token) || (r.phase == parked && !r.reasons.polling)
		return !orphan
	})
	return orphans, nil
}
