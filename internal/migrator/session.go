// Package migrator changes tables under a lock that cannot outlive its holder.
//
// The lock is a transaction's: it ends with the transaction, whatever ends that. A lock of a session would stay on the server
// connection of a pooler in transaction mode when its client is gone, and be waited for until somebody ended that connection.
package migrator

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// firstPause and longestPause lie between two attempts. The lock is polled, not waited for in one statement: CREATE INDEX
	// CONCURRENTLY waits for every statement that is executing, so the two would wait for each other.
	firstPause   = 20 * time.Millisecond
	longestPause = 500 * time.Millisecond
	// lockPause lies between two attempts to lock a table, and lets those that queued do their work.
	lockPause = time.Second
)

// Session migrates one schema on a connection of its own. It is for one goroutine.
type Session struct {
	pool   *pgxpool.Pool
	schema string
	logger *slog.Logger
	conn   *pgx.Conn
}

// Open connects beside pool, whose connections it leaves alone: all of them may be in use.
func Open(ctx context.Context, pool *pgxpool.Pool, schema string, logger *slog.Logger) (*Session, error) {
	conn, err := connect(ctx, pool)
	if err != nil {
		return nil, err
	}
	return &Session{pool: pool, schema: schema, logger: logger, conn: conn}, nil
}

// Close hangs up.
func (s *Session) Close() { dial.HangUp(s.conn) }

// connect prepares no statements: behind a pooler the next one may reach a server connection that does not know them. In the
// extended protocol, moreover, the last query of a transaction keeps its snapshot as long as its portal is there, and CREATE
// INDEX CONCURRENTLY would wait for the transaction that holds our lock, without end.
func connect(ctx context.Context, pool *pgxpool.Pool) (*pgx.Conn, error) {
	return dial.Beside(ctx, pool, " migrate", func(config *pgx.ConnConfig) {
		config.DefaultQueryExecMode = pgx.QueryExecModeSimpleProtocol
		config.StatementCacheCapacity, config.DescriptionCacheCapacity = 0, 0
	})
}

// Read carries out work in a transaction that does not hold the lock and is rolled back.
func (s *Session) Read(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error {
	return s.transaction(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if err := work(ctx, tx); err != nil {
			return err
		}
		return errRollBack
	})
}

// Step carries out work in one transaction, which holds the lock, and commits. It waits for another migration, and starts over
// when a table stays locked by others, for as long as ctx lets it; work may therefore be called several times.
func (s *Session) Step(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error {
	return s.locked(ctx, s.interruptVacuums, work)
}

// locked is Step whose transaction begins with unblock if a table was locked by others in the attempt before.
func (s *Session) locked(ctx context.Context, unblock, work func(ctx context.Context, tx pgx.Tx) error) error {
	wait := newWait(s.logger, s.schema)
	again := false
	for pause := firstPause; ; pause = min(2*pause, longestPause) {
		err := s.transaction(ctx, func(ctx context.Context, tx pgx.Tx) error {
			if err := lock(ctx, tx, s.schema); err != nil {
				return err
			}
			wait.ended(ctx)
			if again {
				if err := unblock(ctx, tx); err != nil {
					return err
				}
			}
			return work(ctx, tx)
		})
		held := (*heldError)(nil)
		switch {
		case errors.As(err, &held):
			wait.held(ctx, held)
		case blocked(err):
			s.explain(ctx, wait, err)
			again = true
			pause = lockPause
		default:
			wait.unblocked(ctx, err)
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", context.Cause(ctx), err)
		case <-time.After(pause):
		}
	}
}

// errRollBack ends a transaction that has only read.
var errRollBack = errors.New("roll back")

func (s *Session) transaction(ctx context.Context, work func(ctx context.Context, tx pgx.Tx) error) error {
	// A snapshot that lasts, as a default of repeatable read makes it, would not see what another migration has done.
	tx, err := s.conn.BeginTx(ctx, pgx.TxOptions{IsoLevel: pgx.ReadCommitted})
	if err != nil {
		return fmt.Errorf("begin: %w", err)
	}
	err = prepare(ctx, tx)
	if err == nil {
		err = work(ctx, tx)
	}
	if err == nil {
		return tx.Commit(ctx)
	}
	// If it cannot be rolled back, pgx closes the connection, which rolls back as well.
	if rollBackErr := tx.Rollback(ctx); errors.Is(err, errRollBack) {
		return rollBackErr
	}
	return err
}

func prepare(ctx context.Context, tx pgx.Tx) error {
	if _, err := tx.Conn().PgConn().Exec(ctx, settings("local")+";\n"+patience).ReadAll(); err != nil {
		return fmt.Errorf("settings of the transaction: %w", err)
	}
	return nil
}

// settings makes names mean what we mean, takes away the limits that a role, a database or a pool may have set for ordinary
// work, and has the server notice during a long statement that its client is gone, where its platform can. The scope is local,
// for a transaction, or session. transaction_timeout is there from PostgreSQL 17 on.
func settings(scope string) string {
	return fmt.Sprintf(`set %[1]s search_path = pg_catalog, pg_temp;
set %[1]s standard_conforming_strings = on;
set %[1]s lock_timeout = 0;
select set_config(name, '0', %[2]t) from pg_settings
where name in ('statement_timeout', 'idle_in_transaction_session_timeout', 'transaction_timeout');
do $romancy$ begin
    perform set_config('client_connection_check_interval', '2s', %[2]t);
exception when others then null;
end $romancy$`,
		scope, scope == "local")
}

// patience bounds how long a statement of a transaction waits for a lock on a table: then the transaction is rolled back and tried
// again. Whoever needs a table that we have locked or wait for queues behind us, heartbeats included. And if one of them holds what we
// wait for, that is a deadlock, which PostgreSQL ends at the cost of the one whose deadlock_timeout is over first. So that it is
// never the application's, we give up before: a quarter leaves room for a migration that waits for three tables in turn.
const patience = `select set_config('lock_timeout', greatest(1, least(500, setting::int / 4))::text, true)
from pg_settings where name = 'deadlock_timeout'`

// blocked reports whether err says that others hold a lock on a table: a deadlock is one, too, of which PostgreSQL has ended one
// side.
func blocked(err error) bool {
	return refusal.Held(err) || refusal.Conflict(err)
}
