package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
)

// Ready is how many runs of a workflow wait for a worker.
type Ready struct {
	Workflow string
	Runs     int64 // up to the limit
	Age      time.Duration
}

// CountReady counts the ready runs of each workflow, up to limit, and says how long the oldest has been ready.
func (s *Store) CountReady(ctx context.Context, db Querier, workflows []string, limit int) ([]Ready, error) {
	rows, err := db.Query(ctx, s.queries.Get("CountReady"), workflows, limit)
	if err != nil {
		return nil, refusal.Public(err)
	}
	return refusal.Answer(pgx.CollectRows(rows, func(row pgx.CollectableRow) (Ready, error) {
		var ready Ready
		var micros int64
		err := row.Scan(&ready.Workflow, &ready.Runs, &micros)
		ready.Age = bounds.Micros(micros)
		return ready, err
	}))
}

// AdoptTrace gives a run of this owner a trace, unless it has one.
func (s *Store) AdoptTrace(b *pgx.Batch, run Fence, trace []byte) {
	b.Queue(s.queries.Get("AdoptTrace"), run.ID, run.Token, text(trace))
}
