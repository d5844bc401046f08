package outbox

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
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

// transact carries out w. Each statement has a snapshot of its own, whatever isolation the host's sessions default to:
// ClaimBatch must see what TakeSlot waited for. Nor do other defaults of the role or the database matter: it may write, and
// the server gives a statement up when ctx does. After an error the session may be left in a transaction.
func transact(ctx context.Context, conn *pgx.Conn, w work) error {
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
	queue := &pgx.Batch{}
	w.queue(queue)
	first := unprepared(conn, queue)
	if len(first) > 0 {
		// The driver prepares before it sends anything, and who prepares a statement waits for the locks of its tables: that
		// must be within the limits, too.
		if err := conn.SendBatch(ctx, batch).Close(); err != nil {
			return refusal.Public(err)
		}
		batch = &pgx.Batch{}
	}
	batch.QueuedQueries = append(batch.QueuedQueries, queue.QueuedQueries...)
	batch.Queue("commit")
	if err := conn.SendBatch(ctx, batch).Close(); err != nil {
		return refusal.Public(err)
	}
	for _, sql := range first {
		prepared(conn)[sql] = struct{}{}
	}
	return nil
}

// unprepared returns the statements of batch that this session has not executed yet, if it prepares statements at all.
func unprepared(conn *pgx.Conn, batch *pgx.Batch) []string {
	if mode := conn.Config().DefaultQueryExecMode; mode != pgx.QueryExecModeCacheStatement && mode != pgx.QueryExecModeCacheDescribe {
		return nil
	}
	var unknown []string
	known := prepared(conn)
	for _, queued := range batch.QueuedQueries {
		if _, ok := known[queued.SQL]; !ok {
			unknown = append(unknown, queued.SQL)
		}
	}
	return unknown
}

// prepared is what of ours a session has prepared, by text. It is kept with the session.
func prepared(conn *pgx.Conn) map[string]struct{} {
	const key = "romancy.outbox.prepared"
	of := conn.PgConn().CustomData()
	known, ok := of[key].(map[string]struct{})
	if !ok {
		known = map[string]struct{}{}
		of[key] = known
	}
	return known
}

// rollback ends the transaction that transact has left behind with err, and reports whether the session is of use still.
func rollback(ctx context.Context, conn *pgx.Conn, err error) bool {
	if unfit(err) || conn.IsClosed() {
		return false
	}
	_, rollbackErr := conn.Exec(ctx, "rollback")
	return rollbackErr == nil
}

// milliseconds is d as a setting of PostgreSQL's, where 0 would mean no limit.
func milliseconds(d time.Duration) string { return fmt.Sprintf("%dms", max(d.Milliseconds(), 1)) }

// guarded is a transaction whose result must last.
func (r *Relay) guarded(queue func(*pgx.Batch)) work {
	return work{guard: r.queries.Get("Guard"), queue: queue}
}
