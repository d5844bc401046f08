package outbox

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/clamp"
)

// mostCounted bounds what Stats reads.
const mostCounted = 1_000_000

// Stats is a snapshot of an outbox and of one relay. Counts of events end at a million.
type Stats struct {
	// Pending counts the events not delivered yet, dead letters excepted.
	Pending int64
	// Waiting counts those of them that are in backoff, or held behind one that is.
	Waiting int64
	// DeadLetters counts the events given up.
	DeadLetters int64
	// OldestAge is the age of the oldest pending event by the server's clock, 0 if there is none.
	OldestAge time.Duration

	// Published and Failed count this relay's attempts since Start.
	Published, Failed int64
	// LeasesLost counts the batches since Start that were another relay's before this one could settle them, and Unsettled
	// those of their events that this relay had published: the other one publishes them again.
	LeasesLost, Unsettled int64
	// Late counts calls of the publisher that have exceeded PublishTimeout and not returned. Each occupies one of Lanes.
	Late int
}

// Stats counts. It reads one index entry for every undelivered event, so it is for a person or a metrics reader, not for
// a loop.
func (r *Relay) Stats(ctx context.Context) (Stats, error) {
	var s Stats
	var oldest *float64
	err := r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
		b.Queue(r.queries.Get("Stats"), mostCounted).QueryRow(func(row pgx.Row) error {
			return row.Scan(&s.Pending, &s.Waiting, &s.DeadLetters, &oldest)
		})
	}))
	if err != nil {
		return Stats{}, fmt.Errorf("outbox statistics: %w", err)
	}
	if oldest != nil {
		s.OldestAge = clamp.Millis(*oldest)
	}
	s.LeasesLost, s.Unsettled = r.lost.Load(), r.unsettled.Load()
	s.Published, s.Failed, s.Late = r.published.Load(), r.failed.Load(), int(r.late.Load())
	return s, nil
}
