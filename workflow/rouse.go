package workflow

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// rousePage is how many runs one statement makes ready.
const rousePage = 1000

// rousing holds the parked runs that have left this worker's memory although there was a reason to poll for them, or that a wake
// without an answer has left in doubt. They are made ready, and poll for themselves wherever they are executed next.
type rousing struct {
	some signal

	mu   sync.Mutex
	runs map[string]store.Fence
}

func newRousing() *rousing { return &rousing{some: newSignal(), runs: map[string]store.Fence{}} }

func (s *rousing) add(fences ...store.Fence) {
	if len(fences) == 0 {
		return
	}
	s.mu.Lock()
	for _, fence := range fences {
		if known, there := s.runs[fence.ID]; !there || known.Token <= fence.Token {
			s.runs[fence.ID] = fence
		}
	}
	s.mu.Unlock()
	s.some.give()
}

// take removes up to rousePage runs, all parked by the same worker id: this worker may have had another before.
func (s *rousing) take() (fences []store.Fence) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for id, fence := range s.runs {
		if len(fences) == rousePage {
			break
		}
		if len(fences) == 0 || fences[0].Worker == fence.Worker {
			fences = append(fences, fence)
			delete(s.runs, id)
		}
	}
	if len(s.runs) > 0 {
		s.some.give()
	}
	return fences
}

// rouseLoop makes runs ready that have a reason to be polled for and are in nobody's memory.
func (e *Engine) rouseLoop(ctx context.Context) {
	again := retrying{}
	for again.wait(ctx, e.rousing.some, nil) {
		fences := e.rousing.take()
		if len(fences) == 0 {
			continue
		}
		ready, held := new([]store.Named), new([]string)
		err := e.do(ctx, true, func(b *pgx.Batch) { e.store.RouseRuns(b, fences, ready, held) })
		switch {
		case errors.Is(err, commit.ErrClosed), ctx.Err() != nil:
			return
		case err != nil:
			e.reports.rousing.Failed(ctx, err, "runs", len(fences))
			e.rousing.add(fences...)
		default:
			e.reports.rousing.Succeeded(ctx)
			e.madeReady(*ready)
			e.rousing.add(among(fences, *held)...)
			if len(*ready)+len(*held) < len(fences) {
				e.orphans.give() // a wake that was given up may have been carried out after all, and nobody executes that run
			}
		}
		again.after(err != nil || len(*held) > 0)
	}
}

func among(fences []store.Fence, ids []string) (found []store.Fence) {
	names := make(map[string]bool, len(ids))
	for _, id := range ids {
		names[id] = true
	}
	for _, fence := range fences {
		if names[fence.ID] {
			found = append(found, fence)
		}
	}
	return found
}

// retrying spaces the rounds of a loop whose last round has left something to try again.
type retrying struct{ pause time.Duration }

// wait returns when one of the signals has been given, after the pause that the last round has earned. It reports false when ctx has ended.
func (a *retrying) wait(ctx context.Context, some, others signal) bool {
	if a.pause > 0 {
		select {
		case <-ctx.Done():
			return false
		case <-time.After(a.pause):
		}
	}
	select {
	case <-ctx.Done():
		return false
	case <-some:
	case <-others:
	}
	return true
}

// after follows a round. left: what it has left is in the queue again.
func (a *retrying) after(left bool) {
	if !left {
		a.pause = 0
		return
	}
	a.pause = min(max(2*a.pause, pollAgain), pollAgainAtMost)
}

// letting counts the runs that have left this worker's memory while the database still says that it holds them: until it says
// otherwise, sweeps leave them to this worker.
type letting struct {
	mu      sync.Mutex
	last    int64
	pending map[int64]bool
}

func (l *letting) begin() (number int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.pending == nil {
		l.pending = map[int64]bool{}
	}
	l.last++
	l.pending[l.last] = true
	return l.last
}

func (l *letting) end(number int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.pending, number)
}

// wait returns when nothing is pending any more that has begun before.
func (l *letting) wait(ctx context.Context) error {
	l.mu.Lock()
	last := l.last
	l.mu.Unlock()
	for l.older(last) {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(time.Millisecond):
		}
	}
	return nil
}

func (l *letting) older(last int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	for number := range l.pending {
		if number <= last {
			return true
		}
	}
	return false
}
