package workflow

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Runs that wait for a moment and are in no worker's memory, because they were evicted, begin later, or were parked by a worker
// that is gone, are cold. Every worker looks for the deadlines that come soon, each FallbackInterval, and keeps those in
// memory: however many runs sleep for a month, what is kept is what will be due before the next look or the one after.

const (
	// maxArmed is how many deadlines one look takes.
	maxArmed = 10_000
	// relook is the id of the moment in the heap when there may be more than that. No run has it.
	relook = ""
)

// ahead is how long before it is due a deadline of a cold run is kept in memory. One FallbackInterval would do if each look
// came on time and succeeded.
func (e *Engine) ahead() time.Duration { return 2 * e.config.FallbackInterval }

func (e *Engine) soon(at time.Time) bool { return time.Until(at) <= e.ahead() }

// armCold has a cold run claimed here when it is due, if that is soon and this process executes runs.
func (e *Engine) armCold(id string, token int64, until time.Duration) {
	if !e.executes() {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.armColdLocked(id, token, time.Now().Add(until))
}

func (e *Engine) armColdLocked(id string, token int64, at time.Time) {
	if e.cache.cold[id] != token && e.soon(at) {
		e.cache.cold[id] = token
		e.pushDeadlineLocked(id, token, at)
	}
}

// lookAhead arms the deadlines that come soon of parked runs that no live worker holds in memory. River's leader, which sweeps
// those that have passed, may be the worker that has just died.
func (e *Engine) lookAhead(ctx context.Context) (int, error) { return e.armNext(ctx, maxArmed) }

// laterLoop looks ahead when somebody says that there is something to find.
func (e *Engine) laterLoop(ctx context.Context) {
	rounds := spacing{gap: 5 * time.Millisecond, share: 4, credit: 200 * time.Millisecond} // anybody can say so
	again := retrying{}
	for again.wait(ctx, e.laters, nil) {
		rounds.begin(time.Now())
		_, err := e.lookAhead(ctx)
		noteOutcome(ctx, e.reports.timers, err)
		if again.after(err != nil); err != nil {
			e.laters.give()
		}
		rounds.rest(ctx)
	}
}

// armNext arms the first of those deadlines, up to limit, and has somebody look again in time if that may not be all.
func (e *Engine) armNext(ctx context.Context, limit int) (int, error) {
	asked := new([]store.Deadline) // its own: an operation that is not waited for any more may still write to it
	mark := e.deadlineMark()
	if err := e.do(ctx, true, func(b *pgx.Batch) {
		e.store.ColdDeadlines(b, e.names, e.ahead(), limit, mark, asked)
	}); err != nil {
		return 0, err
	}
	found, now := *asked, time.Now()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, due := range found {
		if e.cache.runs[due.ID] == nil {
			e.armColdLocked(due.ID, due.Token, now.Add(due.Until))
		}
	}
	if len(found) < limit {
		return len(found), nil
	}
	// When half of these are due there is still time for the others; and what is overdue is not asked for again and again.
	again := now.Add(max(found[len(found)/2].Until, unwellInterval))
	if e.cache.relook.IsZero() || again.Before(e.cache.relook) {
		e.cache.relook = again
		e.pushDeadlineLocked(relook, 0, again)
	}
	return len(found), nil
}

// relookLocked has somebody look again, unless an earlier moment has taken the place of this one.
func (e *Engine) relookLocked(at time.Time) {
	if at.Equal(e.cache.relook) {
		e.cache.relook = time.Time{}
		e.takeovers.give()
	}
}
