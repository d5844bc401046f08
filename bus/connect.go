package bus

import (
	"context"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/dial"
)

// connect makes a connection of our own beside the pool. suffix tells it from the host's in pg_stat_activity.
func connect(ctx context.Context, pool *pgxpool.Pool, suffix string) (*pgx.Conn, error) {
	return dial.Beside(ctx, pool, suffix, func(cfg *pgx.ConnConfig) {
		// With a handler of the host's, WaitForNotification would never see a notification.
		cfg.OnNotification = nil
		// Only a deadline ends a wait and leaves the connection usable.
		cfg.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
			return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn()}
		}
	})
}
