package outbox

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// lowEvery is after how many delivered events the low-water marks are raised: a claim reads about that many index
	// entries of delivered ones in vain, as long as an old snapshot keeps them.
	lowEvery = 1000
	// lowGap is the least time between two attempts. While transactions that may have written events stay open it doubles.
	lowGap = 250 * time.Millisecond
)

// lowMarks is what a relay knows about the low-water marks of the slots. The marks themselves are in the database, for all
// relays.
type lowMarks struct {
	wanted chan struct{} // one token: there is something to be gained

	mu      sync.Mutex
	highest int64 // of the ids delivered
	count   int   // delivered since the last token

	// Of raiseLowMarks alone.
	asked   int64    // highest when writers were asked for
	writers []string // the open ones then, as far as they still are
	safe    int64    // all writers of the time when this id existed have ended
}

func newLowMarks() lowMarks { return lowMarks{wanted: make(chan struct{}, 1)} }

// note takes note of delivered events.
func (m *lowMarks) note(ids []int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		m.highest = max(m.highest, id)
	}
	if m.count += len(ids); m.count < lowEvery {
		return
	}
	m.count = 0
	select {
	case m.wanted <- struct{}{}:
	default:
	}
}

func (m *lowMarks) delivered() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.highest
}

// ended takes the writers open now and raises safe if all of an earlier time have ended. delivered was read before them.
func (m *lowMarks) ended(delivered int64, open []string) {
	m.writers = slices.DeleteFunc(m.writers, func(writer string) bool { return !slices.Contains(open, writer) })
	if len(m.writers) > 0 {
		return
	}
	m.safe = max(m.safe, m.asked)
	m.asked, m.writers = delivered, open
	if len(open) == 0 {
		m.safe = max(m.safe, delivered)
	}
}

// raiseLowMarks raises the marks after every lowEvery events, up to what was delivered by then.
func (r *Relay) raiseLowMarks() {
	for {
		select {
		case <-r.run.Done():
			return
		case <-r.low.wanted:
		}
		target := r.low.delivered()
		for gap, done := lowGap, false; !done; {
			var behind int
			err := r.caring("raise the low-water marks", func(ctx context.Context) (err error) {
				behind, err = r.raiseLow(ctx)
				return err
			})
			done = err == nil && behind == 0 && r.low.safe >= target
			select {
			case <-r.run.Done():
				return
			case <-time.After(gap):
			}
			select {
			case <-r.low.wanted:
				target, gap, done = r.low.delivered(), lowGap, false
			default:
				gap = min(2*gap, r.config.FallbackInterval)
				if err != nil {
					gap = min(gap, errorBackoffMost)
				}
			}
		}
	}
}

// raiseLow is one attempt. It returns how many marks could have risen but for a change of their slots at that moment.
func (r *Relay) raiseLow(ctx context.Context) (behind int, err error) {
	delivered := r.low.delivered()
	var open []string
	err = r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
		b.Queue(r.queries.Get("OpenWriters")).Query(func(rows pgx.Rows) (err error) {
			open, err = pgx.CollectRows(rows, pgx.RowTo[string])
			return err
		})
	}))
	if err != nil {
		return 0, err
	}
	r.low.ended(delivered, open)
	_, behind, err = r.moveLow(ctx, r.low.safe, false)
	return behind, err
}

// moveLow returns how many marks it has moved, and how many it should have.
func (r *Relay) moveLow(ctx context.Context, safe int64, check bool) (moved, behind int, err error) {
	err = r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
		b.Queue(r.queries.Get("MoveLow"), safe, check).QueryRow(func(row pgx.Row) error { return row.Scan(&moved, &behind) })
	}))
	return moved, behind, err
}

// checkLowMarks lowers marks that are too high, because somebody made events ready by hand.
func (r *Relay) checkLowMarks(ctx context.Context) error {
	lowered, _, err := r.moveLow(ctx, 0, true)
	if lowered > 0 {
		r.config.Logger.Info("outbox relay found events below its low-water marks: did somebody change them by hand?", slog.Int("slots", lowered))
		r.alarm.wake()
	}
	return err
}
