package migrator

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// interruptVacuums locks the tables of the schema that are being vacuumed, in a mode that keeps nobody from reading or writing, and
// waits for so long that PostgreSQL ends an automatic vacuum for it. It does that only for those who wait for longer than
// deadlock_timeout, which a migration never does otherwise. The tables stay locked in tx, so that no other vacuum begins. One
// that is not automatic is left alone: perhaps the table is not needed.
func (s *Session) interruptVacuums(ctx context.Context, tx pgx.Tx) error {
	rows, err := tx.Query(ctx, `select format('lock table %I.%I in share update exclusive mode', n.nspname, c.relname)
		from pg_locks l join pg_class c on c.oid = l.relation join pg_namespace n on n.oid = c.relnamespace
		where l.locktype = 'relation' and l.database = (select oid from pg_database where datname = current_database())
			and l.granted and l.mode = 'ShareUpdateExclusiveLock' and l.pid <> pg_backend_pid()
			and n.nspname = $1::text and c.relkind = 'r' order by c.relname`, s.schema)
	if err != nil {
		return fmt.Errorf("tables that are being vacuumed: %w", err)
	}
	statements, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("tables that are being vacuumed: %w", err)
	}
	for _, statement := range statements {
		err := pgx.BeginFunc(ctx, tx, func(part pgx.Tx) error {
			if _, err := part.Exec(ctx, beyondDeadlocks); err != nil {
				return err
			}
			_, err := part.Exec(ctx, statement)
			return err
		})
		if err != nil && !blocked(err) {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	if len(statements) > 0 {
		_, err = tx.Exec(ctx, patience)
	}
	return err
}

// beyondDeadlocks lets statements wait until after PostgreSQL has searched for deadlocks and interrupted automatic vacuums.
const beyondDeadlocks = `select set_config('lock_timeout', (setting::int + 500)::text, true)
from pg_settings where name = 'deadlock_timeout'`
