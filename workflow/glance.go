package workflow

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pace"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// glanceDelay is how long a glance waits for others who want one: River runs its sweeps at the same moment.
const glanceDelay = 10 * time.Millisecond

// glances answers, for all sweeps that begin at about the same time, with one statement whether there is anything for them to
// do: most of the time there is not.
type glances struct {
	pace pace.Pace
	mu   sync.Mutex
	next *sharedGlance // has not begun; nil: there is none
}

type sharedGlance struct {
	over chan struct{} // closed when seen is there
	seen store.Glance
}

// glance returns what there may be to sweep, which is everything if nobody has looked.
func (e *Engine) glance(ctx context.Context) store.Glance {
	e.glances.mu.Lock()
	shared, first := e.glances.next, false
	if shared == nil {
		first, shared = true, &sharedGlance{over: make(chan struct{}), seen: store.Everything()}
		e.glances.next = shared
	}
	e.glances.mu.Unlock()
	if first {
		select {
		case <-ctx.Done():
		case <-time.After(glanceDelay):
		}
		e.glances.mu.Lock()
		e.glances.next = nil // from here on it may be too old for others
		e.glances.mu.Unlock()
		e.fill(ctx, shared)
		close(shared.over)
	}
	select {
	case <-shared.over:
		return shared.seen
	case <-ctx.Done():
		return store.Everything()
	}
}

// fill fills in a glance, unless the last one was dear: while an old snapshot is open, sweeps begin at their own marks.
func (e *Engine) fill(ctx context.Context, shared *sharedGlance) {
	began := time.Now()
	if !e.glances.pace.Begin(began) {
		return
	}
	seen := new(store.Glance) // its own: an operation that is not waited for any more may still write to it
	err := e.do(ctx, true, func(b *pgx.Batch) { e.store.Glance(b, e.names, seen) })
	e.glances.pace.Took(time.Now(), time.Since(began))
	if err == nil {
		shared.seen = *seen
		e.clock.observe(seen.NowMicros, seen.Answered)
	}
}
