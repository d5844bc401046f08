package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// CancelledError is what every command of a workflow returns once its run is to be cancelled and undoes its steps.
type CancelledError struct {
	Reason string
}

func (e *CancelledError) Error() string { return "the run is cancelled: " + e.Reason }

// ErrorType returns "cancelled".
func (e *CancelledError) ErrorType() string { return typeCancelled }

// Is reports whether target is ErrCancelled.
func (e *CancelledError) Is(target error) bool { return target == ErrCancelled }

const typeCancelled = "cancelled"

func (e *CancelledError) encode() []byte {
	return failure{Type: typeCancelled, Message: e.Reason}.encode()
}

func decodeCancelled(text []byte) *CancelledError {
	return &CancelledError{Reason: decodeFailure(text).Message}
}

// CancelOption sets how a run is cancelled.
type CancelOption func(*cancelOptions)

type cancelOptions struct {
	compensate bool
}

// Compensate has the run undo what it has done before it ends: every further command of the workflow returns a *CancelledError,
// and when it has returned, its compensations are executed.
func Compensate() CancelOption {
	return func(o *cancelOptions) { o.compensate = true }
}

// maxReason is the longest reason for a cancellation, in bytes.
const maxReason = 10_000

// Cancel ends a run: its timers, subscriptions and messages are removed, and the context of what it executes is cancelled, at once
// where a notification arrives, else when its worker next polls. What its activities do from then on is not recorded. With
// [Compensate] the run undoes its steps first. A run that has continued as new is followed to the run that it has become.
//
// Without Compensate nil means that the run is cancelled. With Compensate nil means that the request is recorded and will be
// carried out: from then on the run can neither complete nor fail nor continue as new. If its function returns, or fails,
// before a command has told it, it is told at its end, undoes its steps and ends as cancelled. Cancel does not wait for that: Result
// does. Only a run that becomes stuck before it has undone its steps stays as it is, until [Engine.Retry] lets it go on undoing
// them, or Cancel without Compensate gives it up. That ends any stuck run as cancelled, also one that was undoing its steps because it
// had failed: the steps that it has not undone stay done.
//
// It returns nil also for a run that is cancelled already, however it was, and, with Compensate, for one that undoes its steps because
// it is being cancelled: a Cancel whose answer was lost can be repeated. The first reason stays. It returns ErrNotFound if
// there is no such run, ErrNotStarted, ErrClosed, and ErrEnded if the request came too late: the run has ended in another way, or
// undoes its steps because it has failed. Without Compensate it returns ErrEnded also for a run that was asked to undo its steps
// before and is not stuck, because that was promised.
//
// There is no form of Cancel for a caller's transaction: it would lock the run's row, and hold up its worker, until that ends.
func (e *Engine) Cancel(ctx context.Context, id, reason string, options ...CancelOption) error {
	if err := e.checkFor(id); err != nil {
		return fmt.Errorf("cancel run %.255q: %w", id, err)
	}
	if len(reason) > maxReason || !utf8.ValidString(reason) {
		return fmt.Errorf("cancel run %.255q: the reason must be valid UTF-8 of at most %d bytes, this has %d and is valid: %t", id, maxReason, len(reason), utf8.ValidString(reason))
	}
	var chosen cancelOptions
	for _, option := range options {
		if option != nil {
			option(&chosen)
		}
	}
	why := &CancelledError{Reason: reason}
	living, found, err := e.cancelLine(ctx, id, why, chosen.compensate)
	if err != nil {
		return fmt.Errorf("cancel run %.255q: %w", id, outward(err))
	}
	if found.Ended || found.Asked {
		e.tellCancelled(living, why, found)
		return nil
	}
	if err := refusedCancel(found, chosen.compensate); err != nil {
		if living != id {
			err = fmt.Errorf("which continued as %q: %w", living, err)
		}
		return fmt.Errorf("cancel run %.255q: %w", id, err)
	}
	e.hintCancelled(living, found)
	return nil
}

// refusedCancel says why a cancellation has changed nothing; nil if there was nothing to change.
func refusedCancel(found *store.CancelledRun, compensate bool) error {
	switch {
	case found.Status == "":
		return ErrNotFound
	case found.Status == string(StatusCancelled), found.Compensating && found.AskedBefore && compensate:
		return nil
	case found.Compensating:
		return fmt.Errorf("%w: it is undoing its steps already", ErrEnded)
	case found.AskedBefore && !Status(found.Status).Final():
		return fmt.Errorf("%w: it has been asked to undo its steps", ErrEnded)
	default:
		return fmt.Errorf("%w: it is %s", ErrEnded, found.Status)
	}
}

// cancelLine cancels the run that id has become by continuing as new, which may continue once more before the statement has its row.
func (e *Engine) cancelLine(ctx context.Context, id string, why *CancelledError, compensate bool) (living string, found *store.CancelledRun, err error) {
	for living = id; ; living = found.Heir {
		next, err := e.cancelRun(ctx, living, why, compensate)
		switch {
		case err != nil:
			return living, nil, err
		case next.Status == "" && found != nil:
			return living, found, nil // the last of the line has ended, and retention has deleted it
		case next.Heir == "" || next.Heir == living:
			return living, next, nil
		}
		found = next
	}
}

func (e *Engine) cancelRun(ctx context.Context, id string, why *CancelledError, compensate bool) (*store.CancelledRun, error) {
	found := new(store.CancelledRun)
	err := e.patiently(ctx, func(b *pgx.Batch) { e.store.CancelRun(b, id, why.encode(), compensate, found) })
	return found, err
}

// tellCancelled has whoever executes the run, or waits for its end, learn of it.
func (e *Engine) tellCancelled(id string, why *CancelledError, did *store.CancelledRun) {
	if did.Ended {
		e.tellEnded(store.Run{ID: id, Workflow: did.Workflow, Status: string(StatusCancelled), Error: why.encode()})
	} else if did.Status != string(StatusRunning) {
		e.madeReady([]store.Named{{ID: id, Workflow: did.Workflow}})
	}
	e.stopCancelled(id, why, did)
	e.config.Notifier.Notify(e.cancelledOn, cancelledAnnouncement(id, did))
}

// hintCancelled has whoever executes a run that was found cancelled, or waits for its end, look at it: the answer to the statement that has
// cancelled it may have been lost.
func (e *Engine) hintCancelled(id string, found *store.CancelledRun) {
	ended := found.Status == string(StatusCancelled)
	if ended && e.watch.awaited(id) {
		e.watch.asked.add(id)
	}
	if ended {
		e.tellWaiting(id)
	}
	e.held.add(id)
	e.config.Notifier.Notify(e.cancelledOn, cancelledAnnouncement(id, &store.CancelledRun{Ended: ended}))
}

// cancelledAnnouncement is what workers are notified of a cancelled run. It never has the reason, which is
// for those to read who may read the table. Builds before this one take the run at its word: of one that has
// ended they need no reason, and for one that is asked to undo its steps they would put an empty one into its
// history, unless they are told nothing but to look for themselves.
func cancelledAnnouncement(id string, did *store.CancelledRun) string {
	if !did.Ended {
		return ""
	}
	text, err := json.Marshal(struct {
		namedRun
		Ended bool `json:"ended"`
	}{namedRun{id}, true})
	if err != nil || len(text) > bus.MaxPayload {
		return ""
	}
	return string(text)
}

// stopCancelled ends a run that is here, or lets it know, after the commit that cancelled it.
func (e *Engine) stopCancelled(id string, why *CancelledError, did *store.CancelledRun) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.cache.runs[id]
	switch {
	case r == nil:
	case did.Ended:
		e.dropLocked(r)
	default:
		r.askToCancel(why)
	}
}

// askToCancel ends what the run executes and has its goroutine look. A parked one is woken by being claimed.
func (r *run) askToCancel(why *CancelledError) {
	if r.asked.CompareAndSwap(nil, why) {
		r.stopWork()
	}
	r.poke()
}

// overtaken reports whether the end of the run was refused, with err, because it is to be cancelled. Then the run knows it from
// here on, as from a command, and can write again.
func (r *run) overtaken(err error) bool {
	if r.cancelled != nil || r.lost.Load() || !errors.Is(err, commit.ErrFenced) {
		return false
	}
	why := new([]byte)
	if err := r.insist(func(ctx context.Context) error {
		return r.engine.do(ctx, true, func(b *pgx.Batch) { r.engine.store.FindCancel(b, r.fence(), why) })
	}); err != nil {
		r.giveUp(err)
	}
	if *why == nil {
		return false
	}
	r.askToCancel(decodeCancelled(*why))
	r.cancelled = r.asked.Load()
	r.stream, r.pending = &commit.Stream{}, nil // what came before in the former one was carried out
	return true
}

// learnCancelled finds out why the run, as the database has just said, to whichever of its steps, is to be cancelled.
func (r *run) learnCancelled() {
	if r.asked.Load() != nil {
		return
	}
	why := new([]byte)
	if err := r.insist(func(ctx context.Context) error {
		return r.engine.do(ctx, true, func(b *pgx.Batch) { r.engine.store.LoadCancel(b, r.id, why) })
	}); err != nil {
		r.giveUp(err)
	}
	if *why == nil {
		r.giveUp(errInterrupted)
	}
	r.askToCancel(decodeCancelled(*why))
}

// heldPage is how many runs one look asks about.
const heldPage = 5000

// heldLoop looks, when it is asked to, which of the runs in memory here are cancelled or somebody else's by
// now: those that are named, or all.
func (e *Engine) heldLoop(ctx context.Context) {
	rounds := spacing{gap: 5 * time.Millisecond, share: 4, credit: 200 * time.Millisecond}
	again := retrying{}
	for again.wait(ctx, e.held.some, nil) {
		rounds.begin(time.Now())
		named, all := e.held.take()
		err := e.checkHeld(ctx, e.heldFences(keys(named), all))
		noteOutcome(ctx, e.reports.cancelled, err)
		if err != nil {
			e.held.putBack(named, all)
		}
		again.after(err != nil)
		rounds.rest(ctx)
	}
}

// heldFences returns those of the runs that are in memory here, or all that are.
func (e *Engine) heldFences(named []string, all bool) (fences []store.Fence) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if all {
		named = keys(e.cache.runs)
	}
	for _, id := range named {
		r := e.cache.runs[id]
		if r == nil {
			continue
		}
		fence := r.fence()
		if r.unproven {
			fence.Token-- // whoever looks before the commit would take the run for one that is forgotten
		}
		fences = append(fences, fence)
	}
	return fences
}

func (e *Engine) checkHeld(ctx context.Context, fences []store.Fence) error {
	for len(fences) > 0 {
		page := fences[:min(len(fences), heldPage)]
		fences = fences[len(page):]
		found := new([]store.Held)
		if err := e.doHinted(ctx, func(b *pgx.Batch) { e.store.HeldRuns(b, page, found) }); err != nil {
			return err
		}
		e.correctHeld(page, *found)
	}
	return nil
}

func (e *Engine) correctHeld(asked []store.Fence, found []store.Held) {
	tokens := make(map[string]int64, len(asked))
	for _, fence := range asked {
		tokens[fence.ID] = fence.Token
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, held := range found {
		r := e.cache.runs[held.ID]
		live := held.Status == string(StatusReady) || held.Status == string(StatusRunning) || held.Status == string(StatusWaiting)
		switch {
		case r == nil:
		case !live && held.Token > r.token, held.Token > r.token+1: // one more is a wake of ours that is under way
			e.dropLocked(r)
		case r.token == tokens[held.ID] && (held.Token < r.token || held.Worker != 0 && held.Worker != r.worker):
			// The database has lost its last commits: a failover, a restore, or a crash with synchronous_commit off.
			e.sayForgotten(r.fence(), r.definition.Name(), []store.Run{{Token: held.Token}})
			e.dropLocked(r)
		case live && held.Cancel != nil:
			r.askToCancel(decodeCancelled(held.Cancel))
		}
	}
}
