package migrator

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/outage"
)

// longestPoll lies between two polls of what a long statement waits for.
const longestPoll = 30 * time.Second

// Free is a connection for statements that refuse to be executed in a transaction.
type Free struct {
	session *Session
	conn    *pgx.Conn
	waits   *outage.Reporter
}

// Outside is Step for statements that refuse to be executed in a transaction: they are sent on free, one by one, while tx holds
// the lock and does nothing, so that CREATE INDEX CONCURRENTLY does not wait for it. What work writes in tx after them is
// committed only if the lock was held all the time.
func (s *Session) Outside(ctx context.Context, work func(ctx context.Context, tx pgx.Tx, free *Free) error) error {
	nothing := func(context.Context, pgx.Tx) error { return nil } // tx must lock no table that free needs
	return s.locked(ctx, nothing, func(ctx context.Context, tx pgx.Tx) error {
		conn, err := s.free(ctx)
		if err != nil {
			return err
		}
		defer dial.HangUp(conn)
		waits := outage.New(s.logger, "a migration waits for a transaction that is open", "the transactions that the migration waited for are over")
		return work(ctx, tx, &Free{session: s, conn: conn, waits: waits})
	})
}

// free returns a connection whose session has the settings of a migration, if that session is certainly ours. A pooler tells its
// clients another process id than the server's; what were set there would be left behind for others.
func (s *Session) free(ctx context.Context) (*pgx.Conn, error) {
	conn, err := connect(ctx, s.pool)
	if err != nil {
		return nil, err
	}
	var pid int64
	if err = conn.QueryRow(ctx, "select pg_catalog.pg_backend_pid()").Scan(&pid); err == nil && pid == int64(conn.PgConn().PID()) {
		_, err = conn.PgConn().Exec(ctx, settings("session")).ReadAll()
	}
	if err != nil {
		dial.HangUp(conn)
		return nil, err
	}
	return conn, nil
}

// Exec carries out one statement, and says for whom it waits once it has found it waiting for the same transaction twice. If ctx
// ends meanwhile, the error says it.
func (f *Free) Exec(ctx context.Context, statement string) error {
	result := make(chan error, 1)
	go func() {
		_, err := f.conn.Exec(ctx, statement)
		result <- err
	}()
	var waited *openError
	for pause := silence; ; pause = min(2*pause, longestPoll) {
		select {
		case err := <-result:
			return f.over(ctx, err, waited)
		case <-time.After(pause):
		}
		found := f.waitsFor(ctx, statement)
		switch {
		case ctx.Err() != nil: // what was found before is what it has waited for
			continue
		case found == nil:
			f.waits.Succeeded(ctx)
		case waited != nil && found.pid == waited.pid && found.since.Equal(waited.since):
			f.waits.Failed(ctx, found, "schema", f.session.schema, "pid", found.pid, "application_name", found.application,
				"client", found.address, "its_transaction_began", found.since.UTC().Format(time.RFC3339))
		default:
			pause = silence / 2 // once more, a second from now
		}
		waited = found
	}
}

func (f *Free) over(ctx context.Context, err error, waited *openError) error {
	if err == nil {
		f.waits.Succeeded(ctx)
	} else if ctx.Err() != nil && waited != nil {
		return fmt.Errorf("%w: %w", err, waited)
	}
	return err
}

// openError says which transaction a statement waits for.
type openError struct {
	pid         int32
	application string
	address     string
	since       time.Time
}

func (e *openError) Error() string {
	if e.pid == 0 {
		return "it waits for a prepared transaction (see pg_prepared_xacts): commit it or roll it back"
	}
	return fmt.Sprintf("it waits for the transaction of pid %d (application_name %q), open since %s: end it, or wait",
		e.pid, e.application, e.since.UTC().Format(time.RFC3339))
}

// waitsFor returns whose transaction statement waits for, the oldest if there are several, and nil if none is found. It is asked on
// a connection of its own: if CREATE INDEX CONCURRENTLY came upon a snapshot of the transaction that holds the lock, it would
// wait for that transaction, without end. The statement is known by its text: behind a pooler, nobody tells us its process id.
func (f *Free) waitsFor(ctx context.Context, statement string) *openError {
	watcher, err := Open(ctx, f.session.pool, f.session.schema, f.session.logger)
	if err != nil {
		return nil // no connection is to be had: the statement is none the worse for it
	}
	defer watcher.Close()
	found := &openError{}
	err = watcher.Read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		return tx.QueryRow(ctx, `select blocking, coalesce(b.application_name, ''), coalesce(host(b.client_addr), ''), coalesce(b.xact_start, 'epoch')
			from pg_stat_activity a cross join lateral unnest(pg_blocking_pids(a.pid)) blocking left join pg_stat_activity b on b.pid = blocking
			where a.datname = current_database() and a.state = 'active' and left(a.query, 200) = left($1::text, 200)
			order by b.xact_start limit 1`, statement).Scan(&found.pid, &found.application, &found.address, &found.since)
	})
	if err != nil {
		return nil
	}
	return found
}
