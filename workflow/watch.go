package workflow

import (
	"context"
	"encoding/json"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// watch tells those who wait for the end of runs, here or elsewhere.
type watch struct {
	engine *Engine
	asked  *tally // runs to look at

	mu      sync.Mutex
	waiters map[string]map[chan watched]bool
	closed  bool
}

type watched struct {
	run store.Run
	err error
}

func newWatch(e *Engine) *watch {
	return &watch{engine: e, asked: newTally(), waiters: map[string]map[chan watched]bool{}}
}

// wait returns the run called id once it has ended or is stuck.
func (w *watch) wait(ctx context.Context, id string) (store.Run, error) {
	told := make(chan watched, 1)
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return store.Run{}, ErrClosed
	}
	if w.waiters[id] == nil {
		w.waiters[id] = map[chan watched]bool{}
	}
	w.waiters[id][told] = true
	w.mu.Unlock()
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

func (w *watch) leave(id string, told chan watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.waiters[id], told)
	if len(w.waiters[id]) == 0 {
		delete(w.waiters, id)
	}
}

func (w *watch) tell(id string, what watched) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for told := range w.waiters[id] {
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
		w.tell(id, watched{err: ErrClosed})
	}
}

// loop looks at runs that somebody waits for: those it is asked about, and from time to time all of them.
func (w *watch) loop(ctx context.Context) {
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
		for len(ids) > 0 {
			page := ids[:min(len(ids), maxTally)]
			ids = ids[len(page):]
			w.lookAt(ctx, page)
		}
	}
}

func (w *watch) lookAt(ctx context.Context, ids []string) {
	found := new([]store.Run)
	err := w.engine.do(ctx, true, func(b *pgx.Batch) { w.engine.store.QueueFindRuns(b, ids, found) })
	if noteOutcome(ctx, w.engine.reports.results, err); err != nil {
		return
	}
	exists := make(map[string]bool, len(*found))
	for _, run := range *found {
		exists[run.ID] = true
		if status := Status(run.Status); status.Final() || status == StatusStuck {
			w.tell(run.ID, watched{run: run})
		}
	}
	for _, id := range ids {
		if !exists[id] {
			w.tell(id, watched{err: ErrNotFound})
		}
	}
}

type endedPayload struct {
	InstanceID string `json:"instance_id"`
}

// tellEnded tells those who wait for a run, in this process and in others.
func (e *Engine) tellEnded(run store.Run) {
	e.metrics.end(run)
	e.watch.tell(run.ID, watched{run: run})
	text, err := json.Marshal(endedPayload{InstanceID: run.ID})
	if err != nil {
		return // a string always encodes
	}
	e.config.Notifier.Notify(e.endedOn, string(text))
}

func (e *Engine) heardEnded(notification bus.Notification) {
	if notification.CatchUp {
		e.watch.asked.tooMany()
		return
	}
	var payload endedPayload
	if err := refusal.Decoding(json.Unmarshal([]byte(notification.Payload), &payload)); err != nil {
		e.logger.Warn("foreign payload ignored", "channel", notification.Channel, "error", err)
		return
	}
	if e.watch.awaited(payload.InstanceID) {
		e.watch.asked.add(payload.InstanceID)
	}
}
