package workflow

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// ErrWorkersDied is what a run is stuck with that Config.MaxDeaths workers in a row have died with: errors.Is of what Result
// returns, or of RunInfo.Err, tells. Engine.Retry lets it go on.
var ErrWorkersDied = NewError("workers_died", "the workers that executed the run died")

func deadly(deaths int) error {
	return NewError(ErrWorkersDied.Type, fmt.Sprintf("%d workers in a row died, or lost their leases and have not come back, while they executed this run and before anything more of it "+
		"was recorded, so it is not executed again: find out what its next step does to the process, then call Engine.Retry", deaths))
}

// takeOver lets the runs of workers go on whose lease has run out, those excepted that have had too many such workers.
func (e *Engine) takeOver(ctx context.Context) (total int, err error) {
	cause := describe(deadly(e.config.MaxDeaths)).encode()
	for {
		began := time.Now()
		full := e.owners.Begin(began)
		taken := new([]store.TakenOver)
		err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.TakeOver(b, e.config.MaxWorkflowsPerBatch, full, e.config.MaxDeaths, cause, taken)
		})
		if full {
			e.owners.Took(time.Now(), time.Since(began))
		}
		if err != nil {
			return total, err
		}
		total += e.takenOver(ctx, *taken, cause)
		if len(*taken) < e.config.MaxWorkflowsPerBatch {
			break
		}
	}
	if total > 0 {
		e.logger.InfoContext(ctx, "took over the runs of workers whose lease had run out", "runs", total)
	}
	return total, nil
}

// takenOver tells of runs whose worker has died. It returns how many go on.
func (e *Engine) takenOver(ctx context.Context, runs []store.TakenOver, cause []byte) (total int) {
	var ready []store.Named
	for _, run := range runs {
		switch {
		case run.Stuck:
			e.about(run.ID, run.Workflow).ErrorContext(ctx, "run is stuck", "error", decodeFailure(cause).Message, "remedy", stuckRemedy)
			e.tellEnded(store.Run{ID: run.ID, Workflow: run.Workflow, Status: string(StatusStuck), Error: cause})
			continue
		case run.Until != nil:
			e.armLater(run)
		default:
			ready = append(ready, run.Named)
		}
		total++
	}
	e.madeReady(ready)
	return total
}

// armLater has a run claimed here when its wait is over, if this process knows its workflow. The sweeps do it for others.
func (e *Engine) armLater(run store.TakenOver) {
	if _, known := e.definitions[run.Workflow]; known {
		e.armCold(run.ID, run.Token, *run.Until)
	}
}
