package workflow

import (
	"context"
	"fmt"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/pace"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// unexecutedGrace is how long a run must have been ready: during a deploy there may be no worker for a moment.
	unexecutedGrace = time.Minute
	// What one statement examines: so many workflows, and of each that nobody executes so many runs.
	unexecutedNames, unexecutedRuns = 20, 1000
	// examinedNames is how many workflows one search examines, maxUnexecuted how many it reports.
	examinedNames, maxUnexecuted = 1000, 100
)

// UnexecutedRuns are runs of a workflow that are ready and that no living worker has the code for.
type UnexecutedRuns struct {
	Workflow string
	Runs     int           // counted up to 1,000
	Oldest   time.Duration // how long the oldest of those counted has been ready
}

// unexecuted is what the last search has found.
type unexecuted struct {
	pace pace.Pace

	mu      sync.Mutex
	found   []UnexecutedRuns
	reports map[string]*outage.Reporter // of the workflows found; of the loop alone
}

func (u *unexecuted) last() []UnexecutedRuns {
	u.mu.Lock()
	defer u.mu.Unlock()
	return slices.Clone(u.found)
}

// unexecutedLoop searches, each fallback interval, for runs that no living worker executes.
func (e *Engine) unexecutedLoop(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(e.config.FallbackInterval):
		}
		noteOutcome(ctx, e.reports.unexecuted, e.searchUnexecuted(ctx))
	}
}

// searchUnexecuted warns of what it finds, unless another process is to. It searches less often while an old snapshot makes that
// expensive.
func (e *Engine) searchUnexecuted(ctx context.Context) error {
	worker := int64(math.MaxInt64)
	if e.executes() {
		worker = e.lease.ID()
	}
	began := time.Now()
	if worker == 0 || !e.unexecuted.pace.Begin(began) {
		return nil
	}
	found, first, err := e.findUnexecuted(ctx, worker)
	e.unexecuted.pace.Took(time.Now(), time.Since(began))
	if err == nil {
		e.noteUnexecuted(ctx, found, first)
	}
	return err
}

func (e *Engine) findUnexecuted(ctx context.Context, worker int64) (found []UnexecutedRuns, first bool, err error) {
	page := &store.UnexecutedPage{Full: true}
	for examined := 0; page.Full && examined < examinedNames && len(found) < maxUnexecuted; examined += unexecutedNames {
		next := &store.UnexecutedPage{Last: page.Last}
		if err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.FindUnexecuted(b, next, worker, unexecutedNames, unexecutedGrace, unexecutedRuns, len(e.unexecuted.reports) > 0)
		}); err != nil {
			return nil, false, err
		}
		for _, runs := range next.Found {
			found = append(found, UnexecutedRuns{Workflow: runs.Workflow, Runs: int(runs.Runs), Oldest: runs.Age})
		}
		page = next
	}
	return found[:min(len(found), maxUnexecuted)], page.First, nil
}

// noteUnexecuted keeps what was found for Status and the metrics, and warns of it. When another process has begun to search, that
// warns, and this one only says that what it has warned of is over.
func (e *Engine) noteUnexecuted(ctx context.Context, found []UnexecutedRuns, first bool) {
	u := &e.unexecuted
	u.mu.Lock()
	if u.found = nil; first {
		u.found = found
	}
	u.mu.Unlock()
	before := u.reports
	u.reports = make(map[string]*outage.Reporter, len(found))
	for _, runs := range found {
		report := before[runs.Workflow]
		switch {
		case !first && report == nil:
			continue
		case !first:
			u.reports[runs.Workflow] = report
			continue
		case report == nil:
			report = outage.New(e.logger.With("workflow", runs.Workflow),
				"runs are ready whose workflow no living worker executes", "no run waits for this workflow's worker any more")
		}
		u.reports[runs.Workflow] = report
		report.Failed(ctx, fmt.Errorf("no living worker has the workflow %q", runs.Workflow),
			"runs", runs.Runs, "oldest", runs.Oldest.Round(time.Second),
			"remedy", "start a worker that has this workflow (WithWorkflows, or Config.Workflows), or cancel the runs")
	}
	for name, report := range before {
		if u.reports[name] == nil {
			report.Succeeded(ctx)
		}
	}
}
