package outbox

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/sqlfile"
)

//go:embed queries/*.sql
var queryFiles embed.FS

func loadQueries(schema string) (sqlfile.Queries, error) {
	return sqlfile.Load(queryFiles, "queries", schema)
}

const (
	// lockPatience bounds how long the relay waits for a lock: while it does, it keeps a connection of the pool.
	lockPatience = time.Second
	// longest bounds a statement for which ctx sets no limit.
	longest = 30 * time.Second
)

// work is a transaction in one round trip.
type work struct {
	guard string        // its first statement: Guard or GuardClaim
	locks time.Duration // how long it waits for a lock; 0: lockPatience
	queue func(*pgx.Batch)
}

// sender is a pool or a connection.
type sender interface {
	SendBatch(ctx context.Context, batch *pgx.Batch) pgx.BatchResults
}

// transact carries out w. Each statement has a snapshot of its own, whatever isolation the host's sessions default to:
// ClaimBatch must see what TakeSlot waited for. Nor do other defaults of the role or the database matter: it may write, and
// the server gives a statement up when ctx does.
func transact(ctx context.Context, db sender, w work) error {
	limit := longest
	if deadline, ok := ctx.Deadline(); ok {
		limit = max(time.Until(deadline), time.Millisecond)
	}
	locks := w.locks
	if locks == 0 {
		locks = lockPatience
	}
	batch := &pgx.Batch{}
	batch.Queue("begin isolation level read committed read write")
	batch.Queue(w.guard, milliseconds(min(locks, limit)), milliseconds(limit))
	w.queue(batch)
	batch.Queue("commit")
	return db.SendBatch(ctx, batch).Close()
}

// milliseconds is d as a setting of PostgreSQL's, where 0 would mean no limit.
func milliseconds(d time.Duration) string { return fmt.Sprintf("%dms", max(d.Milliseconds(), 1)) }

// guarded is a transaction whose result must last.
func (r *Relay) guarded(queue func(*pgx.Batch)) work {
	return work{guard: r.queries.Get("Guard"), queue: queue}
}
