package outbox

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
)

// DeadLetter is an event that was given up.
type DeadLetter struct {
	Event
	// Seq numbers the events of the outbox in the order in which they were written.
	Seq int64
	// Attempts is how often a relay took it.
	Attempts int
	// LastError is what the last attempt failed with.
	LastError string
	// WrittenAt and DiedAt are instants of the server's clock.
	WrittenAt, DiedAt time.Time
}

// DeadLetters returns the oldest dead letters, at most limit of them (1 to 10,000). To see the next ones pass the last
// one seen, else nil.
func (r *Relay) DeadLetters(ctx context.Context, limit int, after *DeadLetter) ([]DeadLetter, error) {
	if err := bounds.Number("limit", limit, 1, bounds.MostPerBatch, ""); err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	var diedAt time.Time
	var seq int64
	if after != nil {
		if err := bounds.CheckInstant("after.DiedAt", after.DiedAt); err != nil {
			return nil, fmt.Errorf("list dead letters: %w", err)
		}
		diedAt, seq = after.DiedAt, after.Seq
	}
	var letters []DeadLetter
	err := r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
		b.Queue(r.queries.Get("DeadLetters"), diedAt, seq, limit).Query(func(rows pgx.Rows) (err error) {
			letters, err = pgx.CollectRows(rows, scanDeadLetter)
			return err
		})
	}))
	if err != nil {
		return nil, fmt.Errorf("list dead letters: %w", err)
	}
	return letters, nil
}

func scanDeadLetter(row pgx.CollectableRow) (DeadLetter, error) {
	var l DeadLetter
	var headers *string
	if err := row.Scan(&l.Seq, &l.ID, &l.Topic, &l.Key, &l.Payload, &headers, &l.Attempts, &l.LastError, &l.WrittenAt, &l.DiedAt); err != nil {
		return l, err
	}
	if headers != nil {
		// Headers that are no JSON object may be the very reason; they are not one for hiding the letter.
		_ = json.Unmarshal([]byte(*headers), &l.Headers)
	}
	return l, nil
}

// Requeue has the dead letters with the given event IDs published again, with no attempts counted, and returns how many
// there were, also together with an error: some hundred are one transaction. IDs without a dead letter are ignored. Later
// events of the same key, which did not wait, may have been published before.
func (r *Relay) Requeue(ctx context.Context, ids ...string) (int, error) {
	n, err := r.eachLetter(ctx, "RequeueDeadLetters", ids)
	if n > 0 {
		r.config.Logger.Info("outbox dead letters requeued", slog.Int("events", n))
		r.alarm.wake()
	}
	if err != nil {
		return n, fmt.Errorf("requeue dead letters: %w", err)
	}
	return n, nil
}

// DiscardDeadLetters deletes the dead letters with the given event IDs and returns how many there were, also together with
// an error: some hundred are one transaction. IDs without a dead letter are ignored.
func (r *Relay) DiscardDeadLetters(ctx context.Context, ids ...string) (int, error) {
	n, err := r.eachLetter(ctx, "DiscardDeadLetters", ids)
	if err != nil {
		return n, fmt.Errorf("discard dead letters: %w", err)
	}
	return n, nil
}

// eachLetter runs a query on all dead letters with the given IDs, a bounded number of them a transaction. An ID may have
// many.
func (r *Relay) eachLetter(ctx context.Context, query string, ids []string) (int, error) {
	var mistakes []error
	for i, id := range ids {
		if id != "" && checkName(id) != "" { // it would be an error of the database, or is no ID
			mistakes = append(mistakes, fmt.Errorf("ID %d of %d (%.40q) %s", i+1, len(ids), id, checkName(id)))
		}
	}
	if err := errors.Join(mistakes...); err != nil {
		return 0, err
	}
	total := 0
	for chunk := range slices.Chunk(ids, retainBatch) {
		for {
			n, err := r.exec(ctx, query, chunk, retainBatch)
			total += n
			if err != nil {
				return total, err
			}
			if n < retainBatch {
				break
			}
		}
	}
	return total, nil
}
