package riverjobs

import (
	"context"
	"fmt"
	"hash/fnv"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// Migrate brings the River tables in schemaName to the version of the River this build has, creating the schema if it
// does not exist. An application that has a River client of its own does not need it. Concurrent calls wait for one
// another, bounded by ctx.
func Migrate(ctx context.Context, pool *pgxpool.Pool, schemaName string) error {
	migrator, err := newMigrator(pool, schemaName)
	if err != nil {
		return err
	}
	unlock, err := lockMigration(ctx, pool, schemaName)
	if err != nil {
		return fmt.Errorf("migrate River in schema %q: %w", schemaName, err)
	}
	defer unlock()
	if _, err := pool.Exec(ctx, "create schema if not exists "+schemaName); err != nil {
		return fmt.Errorf("migrate River in schema %q: create it: %w", schemaName, err)
	}
	if _, err := migrator.Migrate(ctx, rivermigrate.DirectionUp, nil); err != nil {
		return fmt.Errorf("migrate River in schema %q: %w", schemaName, err)
	}
	return nil
}

func newMigrator(pool *pgxpool.Pool, schemaName string) (*rivermigrate.Migrator[pgx.Tx], error) {
	if err := sqlfile.CheckSchema(schemaName); err != nil {
		return nil, err
	}
	migrator, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{
		Logger: slog.New(quiet{slog.Default().Handler(), nil}),
		Schema: schemaName,
	})
	if err != nil {
		return nil, fmt.Errorf("riverjobs: %w", err)
	}
	return migrator, nil
}

// checkMigrated returns an error unless every River migration of this build is applied. Newer ones are River's own
// concern: its tables stay compatible with the release before.
func checkMigrated(ctx context.Context, pool *pgxpool.Pool, schemaName string) error {
	migrator, err := newMigrator(pool, schemaName)
	if err != nil {
		return err
	}
	result, err := migrator.Validate(ctx, nil)
	if err != nil {
		return fmt.Errorf("riverjobs: check River's tables in schema %q: %w", schemaName, err)
	}
	if !result.OK {
		return fmt.Errorf("riverjobs: the River tables in schema %q are not those this build needs (%s): run romancy.Migrate first", schemaName, strings.Join(result.Messages, "; "))
	}
	return nil
}

// lockMigration takes a session lock on a connection of its own, because rivermigrate takes none: two processes that
// migrate at once would fail on each other's tables. It tries again and again instead of waiting in one statement,
// whose snapshot a CREATE INDEX CONCURRENTLY of the other process would wait for.
func lockMigration(ctx context.Context, pool *pgxpool.Pool, schemaName string) (unlock func(), err error) {
	conn, err := dial.Beside(ctx, pool, " migrate", nil)
	if err != nil {
		return nil, err
	}
	unlock = func() { dial.HangUp(conn) } // the end of the session releases the lock
	hash := fnv.New64a()
	_, _ = hash.Write([]byte("romancy river migration " + schemaName))
	for {
		var locked bool
		if err := conn.QueryRow(ctx, "select pg_try_advisory_lock($1::bigint)", int64(hash.Sum64())).Scan(&locked); err != nil {
			unlock()
			return nil, fmt.Errorf("lock: %w", err)
		}
		if locked {
			return unlock, nil
		}
		select {
		case <-ctx.Done():
			unlock()
			return nil, fmt.Errorf("wait for another migration: %w", context.Cause(ctx))
		case <-time.After(50 * time.Millisecond):
		}
	}
}
