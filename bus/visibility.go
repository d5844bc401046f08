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

// visibility tells when messages that are committed can be seen. Watermill-sql's default schema hides a message as long
// as any transaction of the cluster that began to write before it is open, and no notification tells when that ends.
type visibility struct {
	db     watermillsql.ContextExecutor
	target uint64 // what reached is about; 0 before it was called
}

// forget begins anew: something may have been committed since.
func (v *visibility) forget() { v.target = 0 }

// reached reports whether a look that begins now sees all that was committed when reached was called for the first time
// since forget.
func (v *visibility) reached(ctx context.Context) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, visibilityTimeout)
	defer cancel()
	oldest, next, err := v.ask(ctx)
	if err != nil {
		return false, fmt.Errorf("ask what is visible: %w", err)
	}
	if v.target == 0 {
		v.target = next
	}
	return oldest >= v.target, nil
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
