// Package rivertables creates and checks the tables of River that an own River client needs.
package rivertables

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// Migrate brings the River tables in schema to the version of the River this build has, creating the schema if it does not
// exist. Concurrent calls wait for one another, and for migrations of the library's own tables.
//
// River's migrator takes no lock and works on the pool. Here each of its migrations is a transaction of ours, which holds the
// lock and has our settings.
func Migrate(ctx context.Context, pool *pgxpool.Pool, schema string, logger *slog.Logger) error {
	river, err := newMigrator(pool, schema)
	if err != nil {
		return err
	}
	session, err := migrator.Open(ctx, pool, schema, logger)
	if err != nil {
		return fmt.Errorf("migrate River in schema %q: %w", schema, err)
	}
	defer session.Close()
	began := time.Now()
	var names []string
	for {
		applied, err := advance(ctx, session, river, schema)
		if err != nil {
			return fmt.Errorf("migrate River in schema %q: %w", schema, err)
		}
		if applied == nil {
			break
		}
		for _, version := range applied.Versions {
			names = append(names, nameOf(version.Version, version.Name))
		}
	}
	if len(names) > 0 {
		logger.InfoContext(ctx, "River's tables migrated", "schema", schema, "migrations", names, "duration", time.Since(began).Round(time.Millisecond))
	}
	return nil
}

func nameOf(version int, name string) string {
	return fmt.Sprintf("river_%03d_%s", version, strings.ReplaceAll(name, " ", "_"))
}

// advance applies the next migration, unless another process has, and returns nil if there is none: it finds that out without
// the lock.
func advance(ctx context.Context, session *migrator.Session, river *rivermigrate.Migrator[pgx.Tx], schema string) (applied *rivermigrate.MigrateResult, err error) {
	var readOnly, done bool
	err = session.Read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		if _, err := migrator.CheckOwner(ctx, tx, schema); err != nil {
			return err
		}
		if err := tx.QueryRow(ctx, "select current_setting('transaction_read_only') = 'on'").Scan(&readOnly); err != nil {
			return err
		}
		result, err := river.ValidateTx(ctx, tx, nil)
		done = err == nil && result.OK
		return err
	})
	if err != nil || done {
		return nil, err
	}
	if readOnly {
		return nil, errors.New("transactions are read-only here: migrate on the primary, as a role without default_transaction_read_only")
	}
	err = session.Step(ctx, func(ctx context.Context, tx pgx.Tx) error {
		there, err := migrator.CheckOwner(ctx, tx, schema)
		if err != nil {
			return err
		}
		if !there {
			if _, err := tx.Exec(ctx, migrator.CreateSchema(schema)); err != nil {
				return fmt.Errorf("create it: %w", err)
			}
		}
		// Not all in one transaction, for which it is deprecated: a value that one adds to a type may be used by the next only after
		// a commit.
		applied, err = river.MigrateTx(ctx, tx, rivermigrate.DirectionUp, &rivermigrate.MigrateOpts{MaxSteps: 1}) //nolint:staticcheck // one step a transaction is what Migrate does
		return err
	})
	return applied, err
}

func newMigrator(pool *pgxpool.Pool, schema string) (*rivermigrate.Migrator[pgx.Tx], error) {
	if err := sqlfile.CheckSchema(schema); err != nil {
		return nil, err
	}
	river, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: slog.New(slog.DiscardHandler), Schema: schema})
	if err != nil {
		return nil, fmt.Errorf("make River's migrator: %w", err)
	}
	return river, nil
}

// Check returns an error unless every River migration of this build is applied. Newer ones are River's own concern: its tables
// stay compatible with the release before.
func Check(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	river, err := newMigrator(pool, schema)
	if err != nil {
		return err
	}
	session, err := migrator.Open(ctx, pool, schema, nil)
	if err != nil {
		return fmt.Errorf("check River's tables in schema %q: %w", schema, err)
	}
	defer session.Close()
	var result *rivermigrate.ValidateResult
	err = session.Read(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		result, err = river.ValidateTx(ctx, tx, nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("check River's tables in schema %q: %w", schema, err)
	}
	if !result.OK {
		return fmt.Errorf("the River tables in schema %q are not those this build needs (%s): run romancy.Migrate first", schema, strings.Join(result.Messages, "; "))
	}
	return nil
}
