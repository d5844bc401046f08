// Package horizon finds out who keeps PostgreSQL from removing deleted rows. Whatever is deleted or changed stays in tables
// and indexes until the oldest snapshot is newer, and a queue in a table slows down with every row that passes through it.
package horizon

import (
	"context"
	"embed"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/clamp"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

//go:embed queries/*.sql
var files embed.FS

// Kind is what can hold an old snapshot.
type Kind string

// The kinds of holders.
const (
	Session             Kind = "session"              // a transaction that has been open for long
	PreparedTransaction Kind = "prepared transaction" // PREPARE TRANSACTION without its second half
	ReplicationSlot     Kind = "replication slot"     // of a standby with hot_standby_feedback, which may be gone
	Standby             Kind = "standby"              // a query on a standby with hot_standby_feedback
)

// Holder is who has the oldest snapshot.
type Holder struct {
	Kind         Kind
	PID          int32         // of the session, of the standby's sender, of an active slot; else 0
	Name         string        // application_name, or the name of the slot or of the prepared transaction
	Role         string        // whose it is; empty for a slot
	State        string        // as in pg_stat_activity ("idle in transaction", say), pg_stat_replication; of a slot, whether it is active
	Statement    string        // of ours, which a session executed last; empty for others
	Age          time.Duration // since the transaction began; of slots and standbys, since this process first saw them hold this snapshot
	Transactions int64         // how many have begun since

	horizon string // the xid it holds
}

// Reading is one look.
type Reading struct {
	Oldest *Holder // nil: nobody holds anything, as far as this role can see
	Hidden int     // sessions of the database that this role may not look at: grant it pg_read_all_stats
	At     time.Time
}

// Querier is a pool, a connection or a transaction.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

func loadQuery() (string, error) {
	queries, err := sqlfile.Load(files, "queries", "romancy") // no table of ours is in it
	if err != nil {
		return "", err
	}
	return queries.Get("OldestSnapshot"), nil
}

// look asks who holds the oldest snapshot of the database that db is connected to, the asking session excepted.
func look(ctx context.Context, db Querier, query string) (Reading, error) {
	reading := Reading{At: time.Now()}
	var kind, name, role, state, text, horizon *string
	var pid *int32
	var transactions, micros *int64
	err := db.QueryRow(ctx, query).Scan(&reading.Hidden, &kind, &pid, &name, &role, &state, &text, &transactions, &horizon, &micros)
	if err != nil {
		return Reading{}, fmt.Errorf("look for the oldest snapshot: %w", refusal.Public(err))
	}
	if kind != nil {
		reading.Oldest = &Holder{
			Kind: Kind(*kind), PID: orZero(pid), Name: orZero(name), Role: orZero(role), State: orZero(state), Statement: orZero(text),
			Age: clamp.Micros(orZero(micros)), Transactions: orZero(transactions), horizon: orZero(horizon),
		}
	}
	return reading, nil
}

func orZero[T any](value *T) T {
	if value == nil {
		var zero T
		return zero
	}
	return *value
}
