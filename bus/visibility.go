package bus

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
)

// visibilityTimeout bounds one question, the wait for a connection of the pool included.
const visibilityTimeout = time.Second

// visibility tells when a look for messages is worth it. Watermill-sql's default schema hides a message as long as any
// transaction of the cluster that began to write before it is open, and no notification tells when that ends.
type visibility struct {
	db      watermillsql.ContextExecutor
	since   time.Time // when it became a question; zero: not yet
	target  uint64    // once all before it can be seen, everything can that was committed then
	horizon uint64    // what is before it could be seen by the last look
}

// forget begins anew: something may have been committed since.
func (v *visibility) forget() { *v = visibility{db: v.db} }

// look asks what a look that begins now sees. It is settled if that is all that was committed when it became a question. It
// is worth it, too, if that is more than the last look saw: whoever waited for all could wait for a transaction that ends
// only when what is visible by now has been handled.
func (v *visibility) look(ctx context.Context) (worth, settled bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, visibilityTimeout)
	defer cancel()
	oldest, next, err := v.ask(ctx)
	if err != nil {
		return false, false, fmt.Errorf("ask what is visible: %w", err)
	}
	if v.target == 0 {
		v.target = next
	}
	worth = oldest > v.horizon
	settled = oldest >= v.target
	if worth || settled {
		v.horizon = oldest
	}
	return worth || settled, settled, nil
}

func (v *visibility) ask(ctx context.Context) (oldest, next uint64, err error) {
	rows, err := v.db.QueryContext(ctx, queries.Get("Visibility"))
	if err != nil {
		return 0, 0, err
	}
	defer func() { err = errors.Join(err, rows.Close()) }()
	if !rows.Next() {
		return 0, 0, errors.New("no answer") // pgx has the reason in its rows, where watermill-sql's type hides it
	}
	var texts [2]string
	if err := rows.Scan(&texts[0], &texts[1]); err != nil {
		return 0, 0, err
	}
	if oldest, err = strconv.ParseUint(texts[0], 10, 64); err != nil {
		return 0, 0, err
	}
	next, err = strconv.ParseUint(texts[1], 10, 64)
	return oldest, next, err
}
