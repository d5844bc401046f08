package bus

import (
	"context"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgconn/ctxwatch"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
)

// commandTimeout bounds SET, LISTEN and UNLISTEN, none of which waits for anybody.
const commandTimeout = 5 * time.Second

// sessionSettings let the server end a session whose process no longer reads (it would hold back vacuum in the whole
// database), and keep it from ending one that is merely quiet. They are SET, not startup parameters, which poolers refuse.
var sessionSettings = []string{
	"SET tcp_user_timeout = '30s'",
	"SET tcp_keepalives_idle = '10s'",
	"SET tcp_keepalives_interval = '5s'",
	"SET tcp_keepalives_count = 3",
	"SET idle_session_timeout = 0",
}

// connect makes a connection of our own beside the pool. suffix tells it from the host's in pg_stat_activity.
func connect(ctx context.Context, pool *pgxpool.Pool, suffix string) (*pgx.Conn, error) {
	return dial.Beside(ctx, pool, suffix, undisturbed)
}

// undisturbed makes a connection's notifications ours alone.
func undisturbed(cfg *pgx.ConnConfig) {
	// With a handler of the host's, WaitForNotification would never see a notification.
	cfg.OnNotification = nil
	// Only a deadline ends a wait and leaves the connection usable.
	cfg.BuildContextWatcherHandler = func(conn *pgconn.PgConn) ctxwatch.Handler {
		return &pgconn.DeadlineContextWatcherHandler{Conn: conn.Conn()}
	}
}

// dial makes the connection that listens, or, without a pool, one of the same kind.
func (l *Listener) dial(ctx context.Context, suffix string) (*pgx.Conn, error) {
	switch {
	case l.cfg.Connect != nil:
		return refusal.Answer(l.cfg.Connect(ctx))
	case l.url != nil:
		return dial.With(ctx, l.url(), suffix, undisturbed)
	}
	return connect(ctx, l.cfg.Pool, suffix)
}

// setSession applies the settings. A server that does not know one, or cannot do it on its platform, is no reason to go
// without notifications.
func setSession(ctx context.Context, conn *pgx.Conn, settings []string) error {
	_, err := command(ctx, conn, strings.Join(settings, "; "))
	if !refusal.Said(err) {
		return err
	}
	for _, setting := range settings {
		if _, err := command(ctx, conn, setting); err != nil && !refusal.Said(err) {
			return err
		}
	}
	return nil
}

// command sends SQL by the simple protocol, several statements as one transaction, and returns the value that the last one
// selects, if any.
func command(ctx context.Context, conn *pgx.Conn, sql string) (value string, err error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	results, err := conn.PgConn().Exec(ctx, sql).ReadAll()
	if err != nil {
		return "", refusal.Public(err)
	}
	for _, result := range results {
		if len(result.Rows) > 0 {
			value = string(result.Rows[0][0])
		}
	}
	return value, nil
}
