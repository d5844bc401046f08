package migrator

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// silence is how long a wait is nothing to speak of: processes that are deployed together wait for one another.
const silence = time.Second

// LockKey is the key of the advisory lock that a migration of schema holds.
func LockKey(schema string) int64 {
	hash := fnv.New64a()
	_, _ = hash.Write([]byte("romancy migration " + schema))
	return int64(hash.Sum64())
}

// heldError says who holds the lock.
type heldError struct {
	pid         int32
	application string
	address     string
	since       time.Time
}

func (e *heldError) Error() string {
	if e.pid == 0 {
		return "another migration was going on"
	}
	return fmt.Sprintf("another migration is going on (pid %d, application_name %q)", e.pid, e.application)
}

// lock returns a *heldError if another transaction holds the lock.
func lock(ctx context.Context, tx pgx.Tx, schema string) error {
	key := LockKey(schema)
	var locked bool
	if err := tx.QueryRow(ctx, "select pg_try_advisory_xact_lock($1::bigint)", key).Scan(&locked); err != nil {
		return fmt.Errorf("lock: %w", err)
	}
	if locked {
		return nil
	}
	held := &heldError{}
	err := tx.QueryRow(ctx, `select l.pid, coalesce(a.application_name, ''), coalesce(host(a.client_addr), ''), coalesce(a.xact_start, now())
		from pg_locks l left join pg_stat_activity a on a.pid = l.pid
		where l.locktype = 'advisory' and l.granted and l.objsubid = 1
			and l.database = (select oid from pg_database where datname = current_database())
			and (l.classid::bigint << 32 | l.objid::bigint) = $1::bigint`, key).Scan(&held.pid, &held.application, &held.address, &held.since)
	if err != nil && !errors.Is(err, pgx.ErrNoRows) { // no rows: it has just been released
		return fmt.Errorf("who holds the lock: %w", err)
	}
	return held
}

// wait says that a migration waits, once it has for a while.
type wait struct {
	began  time.Time
	lock   *outage.Reporter
	tables *outage.Reporter
	schema string
}

func newWait(logger *slog.Logger, schema string) *wait {
	return &wait{
		schema: schema,
		lock:   outage.New(logger, "waiting for another migration", "the other migration is over"),
		tables: outage.New(logger, "a migration waits for tables that others have locked", "the tables were free"),
	}
}

func (w *wait) held(ctx context.Context, held *heldError) {
	if w.began.IsZero() {
		w.began = time.Now()
	}
	if time.Since(w.began) < silence {
		return
	}
	w.lock.Failed(ctx, held, "schema", w.schema, "pid", held.pid, "application_name", held.application, "client", held.address,
		"its_transaction_began", held.since.UTC().Format(time.RFC3339))
}

// ended is called when the lock is ours.
func (w *wait) ended(ctx context.Context) {
	w.began = time.Time{}
	w.lock.Succeeded(ctx)
}

// unblocked is called when a transaction has ended in another way than by waiting.
func (w *wait) unblocked(ctx context.Context, err error) {
	if err == nil {
		w.tables.Succeeded(ctx)
	}
}

// oldestTransaction is asked for outside of the transactions that pin what names mean.
var oldestTransaction = sqlfile.MustPin(`select pid, application_name, xact_start from pg_stat_activity
	where datname = current_database() and pid <> pg_backend_pid() and xact_start is not null
	order by xact_start limit 1`)

// explain says that tables are locked, and which transaction has been open for longest: it is likely to be the one.
func (s *Session) explain(ctx context.Context, w *wait, refused error) {
	var pid int32
	var application string
	var since time.Time
	err := s.conn.QueryRow(ctx, oldestTransaction).Scan(&pid, &application, &since)
	attrs := []any{"schema", w.schema}
	if err == nil {
		attrs = append(attrs, "oldest_transaction_pid", pid, "application_name", application, "since", since.UTC().Format(time.RFC3339))
	}
	w.tables.Failed(ctx, refused, attrs...)
}
