package workflow

import (
	"context"
	"encoding/json"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// watch tells those who wait for the end of runs, here or elsewhere.
type watch struct {
	engine *Engine
	asked  *tally // runs to look at

	mu      sync.Mutex
	waiters map[string]map[chan watched]int64 // and which number each has
	last    int64
	closed  bool
}

type watched struct {
	run store.Run
	err error
}

func newWatch(e *Engine) *watch {
	return &watch{engine: e, asked: newTally(), waiters: map[string]map[chan watched]int64{}}
}

// wait returns the run called id once it has ended or is stuck.
func (w *watch) wait(ctx context.Context, id string) (store.Run, error) {
	told := w.enter(id)
	if told == nil {
		return store.Run{}, ErrClosed
	}
	defer w.leave(id, told)

	// A run that executes here tells by itself. One that is parked here may have gone on elsewhere, and ended, unnoticed.
	w.engine.mu.Lock()
	held := w.engine.cache.runs[id]
	here := held != nil && held.phase == executing
	w.engine.mu.Unlock()
	if !here {
		w.asked.add(id)
	}
	select {
	case got := <-told:
		return got.run, got.err
	case <-ctx.Done():
		return store.Run{}, ctx.Err()
	}
}

// enter returns where the end of a run will be told; nil if nothing is told any more.
func (w *watch) enter(id string) chan watched {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return nil
	}
	if w.waiters[id] == nil {
		w.waiters[id] = map[chan watched]int64{}
	}
	told := make(chan watched, 1)
	w.last++
	w.waiters[id][told] = w.last
	return told
}

func (w *watch) leave(id string, told chan watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters[id], told)
	if len(w.waiters[id]) == 0 {
		delete(w.waiters, id)
	}
}

// everybody is a number that no one who waits has yet.
const everybody = math.MaxInt64

// newest returns the number of who has come to wait last.
func (w *watch) newest() int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.last
}

// tell tells those who wait for a run and have a number up to newest. Who has come later may wait for what has become of the run since:
// it may have been started, or retried.
func (w *watch) tell(id string, what watched, newest int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for told, number := range w.waiters[id] {
		if number > newest {
			continue
		}
		select {
		case told <- what:
		default: // told before
		}
	}
}

func (w *watch) awaited(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.waiters[id]) > 0
}

func (w *watch) all() []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return keys(w.waiters)
}

func (w *watch) close() {
	w.mu.Lock()
	w.closed = true
	w.mu.Unlock()
	for _, id := range w.all() {
		w.tell(id, watched{err: ErrClosed}, everybody)
	}
}

// loop looks at runs that somebody waits for: those it is asked about, and from time to time all of them.
func (w *watch) loop(ctx context.Context) {
	rounds := spacing{gap: time.Millisecond, share: 1, credit: 200 * time.Millisecond}
	for {
		var ids []string
		select {
		case <-ctx.Done():
			return
		case <-time.After(w.engine.fallback()):
			ids = w.all()
		case <-w.asked.some:
			counts, more := w.asked.take()
			if ids = keys(counts); more {
				ids = w.all()
			}
		}
		rounds.begin(time.Now())
		for len(ids) > 0 {
			page := ids[:min(len(ids), maxTally)]
			ids = ids[len(page):]
			w.lookAt(ctx, page)
		}
		rounds.rest(ctx)
	}
}

func (w *watch) lookAt(ctx context.Context, ids []string) {
	found, newest := new([]store.Run), w.newest()
	err := w.engine.doHinted(ctx, func(b *pgx.Batch) { w.engine.store.QueueFindRuns(b, ids, found) })
	if noteOutcome(ctx, w.engine.reports.results, err); err != nil {
		return
	}
	exists := make(map[string]bool, len(*found))
	for _, run := range *found {
		exists[run.ID] = true
		if status := Status(run.Status); status.Final() || status == StatusStuck {
			w.tell(run.ID, watched{run: run}, newest)
		}
	}
	for _, id := range ids {
		if !exists[id] {
			w.tell(id, watched{err: ErrNotFound}, newest)
		}
	}
}

// tellEnded tells those who wait for a run, in this process and in others. If the run can be retried it may have been by now, so the row
// is looked at.
func (e *Engine) tellEnded(run store.Run) {
	e.metrics.end(run)
	switch status := Status(run.Status); {
	case status == StatusCompleted, status == StatusContinued:
		e.watch.tell(run.ID, watched{run: run}, everybody)
	case e.watch.awaited(run.ID):
		e.watch.asked.add(run.ID)
	}
	e.tellWaiting(run.ID)
}

// tellWaiting tells those in other processes who wait for the end of a run.
func (e *Engine) tellWaiting(id string) {
	text, err := json.Marshal(namedRun{InstanceID: id})
	if err != nil {
		return // a string always encodes
	}
	e.config.Notifier.Notify(e.endedOn, string(text))
}
