package bus

import (
	"context"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/jackc/pgx/v5"
)

// withRowErrors makes db report the error of a query when it is made, as database/sql does. Pgx reports it after the
// rows, where watermill-sql does not look: a subscriber that lost a race for its consumer group (40001, each time
// another one has acknowledged) would take the topic for empty and go to sleep. Other than native pgx, db is returned as
// it is.
func withRowErrors(db watermillsql.Beginner) watermillsql.Beginner {
	native, ok := db.(watermillsql.PgxBeginner)
	if !ok {
		return db
	}
	return watermillsql.BeginnerFromPgx(rowErrorConn{native.Conn})
}

type rowErrorConn struct{ watermillsql.Conn }

func (c rowErrorConn) BeginTx(ctx context.Context, options pgx.TxOptions) (pgx.Tx, error) {
	tx, err := c.Conn.BeginTx(ctx, options)
	if err != nil {
		return nil, err
	}
	return &rowErrorTx{Tx: tx}, nil
}

// rowErrorTx changes the first query, which is watermill-sql's. Whatever a handler does in the transaction comes later.
type rowErrorTx struct {
	pgx.Tx

	queried bool
}

func (t *rowErrorTx) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	rows, err := t.Tx.Query(ctx, sql, args...)
	if err != nil || t.queried {
		return rows, err
	}
	t.queried = true
	if rows.Next() {
		return &begunRows{Rows: rows, begun: true}, nil
	}
	return rows, rows.Err()
}

// begunRows are rows of which the first has been asked for already.
type begunRows struct {
	pgx.Rows

	begun bool
}

func (r *begunRows) Next() bool {
	if r.begun {
		r.begun = false
		return true
	}
	return r.Rows.Next()
}
