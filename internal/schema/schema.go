// Package schema creates and checks the tables this library owns.
package schema

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// Default is the schema used when the application names none.
const Default = "romancy"

// Version returns the version that Migrate brings a schema to.
func Version() int32 { return int32(len(embedded())) }

// Migrate brings schema to the version of this build, creating it if it does not exist. Concurrent calls wait for one another.
// It returns an error for a schema that belongs to a role of which the current one is no member, and for one that is not empty before
// the first migration. A newer schema is left alone; it is a *VersionError unless the schema says that this build can live with it.
func Migrate(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return MigrateWith(ctx, pool, schema, Options{Logger: slog.New(slog.DiscardHandler)})
}

// Options say how to migrate.
type Options struct {
	Logger   *slog.Logger // of what was done and what is waited for
	NonEmpty bool         // the first migration may find other objects in the schema
}

// MigrateWith is Migrate with options.
func MigrateWith(ctx context.Context, pool *pgxpool.Pool, schema string, options Options) error {
	return migrate(ctx, pool, schema, options, embedded())
}

func migrate(ctx context.Context, pool *pgxpool.Pool, schema string, options Options, migrations []migration) error {
	if err := sqlfile.CheckSchema(schema); err != nil {
		return err
	}
	session, err := migrator.Open(ctx, pool, schema, options.Logger)
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	defer session.Close()
	m := mover{session: session, schema: schema, nonEmpty: options.NonEmpty, migrations: migrations}
	defer m.tell(ctx, options.Logger, time.Now())
	for {
		done, err := m.advance(ctx)
		if _, wrong := err.(*VersionError); wrong { //nolint:errorlint // advance returns it as it is
			return err
		}
		if err != nil {
			return fmt.Errorf("migrate schema %q: %w", schema, err)
		}
		if done {
			return nil
		}
	}
}

// mover brings one schema from version to version.
type mover struct {
	session    *migrator.Session
	schema     string
	nonEmpty   bool // the schema may hold what is not ours
	migrations []migration
	collisions int
	applied    []string // the names of the migrations
	open       bool     // everybody may create in the schema
}

// tell logs what has been done.
func (m *mover) tell(ctx context.Context, logger *slog.Logger, began time.Time) {
	if len(m.applied) > 0 {
		logger.InfoContext(ctx, "schema migrated", "schema", m.schema, "migrations", m.applied, "duration", time.Since(began).Round(time.Millisecond))
	}
	if m.open {
		logger.WarnContext(ctx, "everybody who may connect may create objects in the schema, and so take names that later migrations use: "+
			"revoke create on it from public, or use a schema of its own", "schema", m.schema)
	}
}

// maxCollisions bounds how often what another process makes at the same time without our lock is tried again.
const maxCollisions = 10

// advance does the next thing there is to do, or says that there is none. It finds out without the lock, so that a process
// that has nothing to do waits for nobody, and finds out again when it has it.
func (m *mover) advance(ctx context.Context) (done bool, err error) {
	var found state
	read := func(ctx context.Context, tx pgx.Tx) (err error) {
		if _, err := migrator.CheckOwner(ctx, tx, m.schema); err != nil {
			return err
		}
		found, err = readState(ctx, tx, m.schema)
		return err
	}
	if err := m.session.Read(ctx, read); err != nil {
		return false, err
	}
	m.open = found.open
	want := int32(len(m.migrations))
	if found.version > want || found.version == want && found.ready {
		return true, found.accept(m.schema, want)
	}
	if err := found.check(m.schema); err != nil {
		return false, err
	}
	if !found.ready || found.rows == 0 {
		return false, m.makeVersionTable(ctx)
	}
	return false, m.apply(ctx, &m.migrations[found.version])
}

// makeVersionTable also tries again what another process has done meanwhile without our lock, as builds did before, or to make a
// schema that we would take for our own.
func (m *mover) makeVersionTable(ctx context.Context) error {
	err := m.session.Step(ctx, func(ctx context.Context, tx pgx.Tx) error {
		there, err := migrator.CheckOwner(ctx, tx, m.schema)
		if err != nil {
			return err
		}
		if !there {
			return script(ctx, tx.Conn(), migrator.CreateSchema(m.schema)+versionTable(m.schema))
		}
		found, err := readState(ctx, tx, m.schema)
		if err != nil {
			return err
		}
		if found.rows == 0 && !m.nonEmpty {
			if err := checkVacant(ctx, tx, m.schema); err != nil {
				return err
			}
		}
		return script(ctx, tx.Conn(), versionTable(m.schema))
	})
	if code := refusal.Code(err); m.collisions < maxCollisions && (code == "23505" || code == "42P06" || code == "42P07") {
		m.collisions++
		return nil // it is there now, which the next attempt finds
	}
	if err != nil {
		return fmt.Errorf("version table: %w", err)
	}
	return nil
}

// apply carries out one migration, unless another process has.
func (m *mover) apply(ctx context.Context, next *migration) error {
	applied := false
	step := func(ctx context.Context, tx pgx.Tx, change func() error) error {
		found, err := readState(ctx, tx, m.schema)
		if err != nil || found.version != next.version-1 {
			return err
		}
		if err := change(); err != nil {
			return fmt.Errorf("migration %s: %w", next.name, err)
		}
		applied = true // if it commits
		return record(ctx, tx, m.schema, next)
	}
	var err error
	if next.outside {
		err = m.session.Outside(ctx, func(ctx context.Context, tx pgx.Tx, free *migrator.Free) error {
			return step(ctx, tx, func() error { return oneByOne(ctx, tx, free, m.schema, next.statements(m.schema)) })
		})
	} else {
		err = m.session.Step(ctx, func(ctx context.Context, tx pgx.Tx) error {
			return step(ctx, tx, func() error { return script(ctx, tx.Conn(), next.sql(m.schema)) })
		})
	}
	if err == nil && applied {
		m.applied = append(m.applied, next.name)
	}
	return err
}

// record writes that next has been applied.
func record(ctx context.Context, tx pgx.Tx, schema string, next *migration) error {
	tag, err := tx.Exec(ctx, recordVersion(schema, next))
	if err != nil {
		return fmt.Errorf("migration %s: write its version: %w", next.name, err)
	}
	if tag.RowsAffected() != 1 {
		return fmt.Errorf("migration %s: %s.schema_version no longer holds version %d", next.name, schema, next.version-1)
	}
	return nil
}
