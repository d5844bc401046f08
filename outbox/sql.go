package outbox

import (
	"context"
	"embed"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/sqlfile"
)

//go:embed queries/*.sql
var queryFiles embed.FS

func loadQueries(schema string) (sqlfile.Queries, error) {
	return sqlfile.Load(queryFiles, "queries", schema)
}

// transact runs what queue adds as one transaction in one round trip. Each statement has a snapshot of its own, whatever
// isolation the host's sessions default to: ClaimBatch must see what TakeSlot waited for.
func transact(ctx context.Context, pool *pgxpool.Pool, guard string, queue func(*pgx.Batch)) error {
	batch := &pgx.Batch{}
	batch.Queue("begin isolation level read committed read write")
	batch.Queue(guard)
	queue(batch)
	batch.Queue("commit")
	return pool.SendBatch(ctx, batch).Close()
}
