package outbox

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

const (
	// retainBatch is how many dead letters one statement changes: small enough to keep nobody waiting.
	retainBatch = 500
	// strandedKeys is how many keys with waiting events one look examines.
	strandedKeys = 1000
)

// Retain deletes the dead letters that are older than DeadLetterRetention, some hundred a transaction, and returns how
// many it deleted, also together with an error. Without a DeadLetterRetention it does nothing. Undelivered events are
// never deleted.
func (r *Relay) Retain(ctx context.Context) (int, error) {
	if r.config.DeadLetterRetention == 0 {
		return 0, nil
	}
	total := 0
	for {
		n, err := r.exec(ctx, "DeleteOldDeadLetters", r.config.DeadLetterRetention.Milliseconds(), retainBatch)
		total += n
		if err != nil {
			return total, fmt.Errorf("delete old dead letters of the outbox: %w", err)
		}
		if n < retainBatch {
			return total, nil
		}
	}
}

// exec runs one query and returns the number of rows affected.
func (r *Relay) exec(ctx context.Context, query string, args ...any) (int, error) {
	var n int
	err := r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
		b.Queue(r.queries.Get(query), args...).Exec(func(tag pgconn.CommandTag) error {
			n = int(tag.RowsAffected())
			return nil
		})
	}))
	if err != nil {
		return 0, err
	}
	return n, nil
}

// strandedCursor remembers the last key examined, so that many failing keys are gone through in turns.
type strandedCursor struct {
	mu  sync.Mutex
	key string
}

// restoreSlots makes slots that are missing. Without them nothing is ever taken.
func (r *Relay) restoreSlots(ctx context.Context) error {
	made, err := r.exec(ctx, "RestoreSlots")
	if made > 0 {
		r.config.Logger.WarnContext(ctx, "rows of outbox_slots were missing and are made again: without them no event is published; whoever empties the tables should leave that one",
			slog.Int("slots", made))
		r.alarm.wake()
	}
	return err
}

// releaseStranded makes events ready that wait for a predecessor which is no longer there.
func (r *Relay) releaseStranded(ctx context.Context) error {
	r.stranded.mu.Lock()
	defer r.stranded.mu.Unlock()
	var last *string
	var released int
	err := r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
		b.Queue(r.queries.Get("ReleaseStranded"), r.stranded.key, strandedKeys).QueryRow(func(row pgx.Row) error {
			return row.Scan(&last, &released)
		})
	}))
	if err != nil {
		return err
	}
	r.stranded.key = ""
	if last != nil {
		r.stranded.key = *last
	}
	if released > 0 {
		r.config.Logger.Debug("outbox events that waited for a removed one are ready", slog.Int("keys", released))
		r.alarm.wake()
	}
	return nil
}
