package store

import (
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
)

// Unexecuted is how many runs of a workflow are ready that no living worker executes.
type Unexecuted struct {
	Workflow string
	Runs     int64 // up to the limit
	Age      time.Duration
}

// UnexecutedPage is where a search for them has come to.
type UnexecutedPage struct {
	First bool   // it is this process that searches for the cluster
	Last  string // the last workflow that was examined
	Full  bool   // there may be more
	Found []Unexecuted
}

// FindUnexecuted examines limit workflows after page.Last that have ready runs, for those whose runs have been ready for grace and that no
// living worker executes. worker is who asks; without anyway it finds something only if it is the one that searches.
func (s *Store) FindUnexecuted(b *pgx.Batch, page *UnexecutedPage, worker int64, limit int, grace time.Duration, runs int, anyway bool) {
	b.Queue(s.queries.Get("FindUnexecuted"), worker, page.Last, limit, grace.Microseconds(), runs, anyway).Query(func(rows pgx.Rows) error {
		page.Found = nil
		var examined int
		var name *string
		var count, micros *int64
		_, err := pgx.ForEachRow(rows, []any{&page.First, &page.Last, &examined, &name, &count, &micros}, func() error {
			page.Full = examined == limit
			if name != nil {
				page.Found = append(page.Found, Unexecuted{*name, *count, bounds.Micros(*micros)})
			}
			return nil
		})
		return err
	})
}
