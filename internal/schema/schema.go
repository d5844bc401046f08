// Package schema creates and checks the tables this library owns.
package schema

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io/fs"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/jackc/tern/v2/migrate"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// Default is the schema used when the application names none.
const Default = "romancy"

//go:embed migrations/*.sql
var migrations embed.FS

// VersionError says that the database's schema is not the one this build works with.
type VersionError struct {
	Schema string
	Found  int32 // 0: the schema has never been migrated
	Want   int32
}

func (e *VersionError) Error() string {
	switch {
	case e.Found > e.Want:
		return fmt.Sprintf("schema %q is at version %d, newer than version %d that this build knows: deploy a build at least as new as the one that migrated it", e.Schema, e.Found, e.Want)
	case e.Found == 0:
		return fmt.Sprintf("schema %q has no tables yet (want version %d): run romancy.Migrate first", e.Schema, e.Want)
	default:
		return fmt.Sprintf("schema %q is at version %d, older than version %d that this build needs: run romancy.Migrate first", e.Schema, e.Found, e.Want)
	}
}

func versionTable(schema string) string { return schema + ".schema_version" }

// Version returns the version that Migrate brings a schema to.
func Version() int32 {
	files, err := fs.Glob(migrations, "migrations/*.sql")
	if err != nil {
		panic(err) // the pattern is a constant
	}
	return int32(len(files))
}

// Migrate brings schema to the version of this build, creating it if it does not exist. Concurrent calls wait for one
// another (tern holds a session advisory lock). It returns a *VersionError if the schema is newer than this build, and
// changes nothing then.
func Migrate(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	if err := sqlfile.CheckSchema(schema); err != nil {
		return err
	}
	// A connection of its own, not the pool's: tern ends each migration with RESET ALL, which would undo what the host's
	// AfterConnect has set.
	conn, err := dial.Beside(ctx, pool, " migrate", nil)
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	defer dial.HangUp(conn)

	if err := createSchema(ctx, conn, schema); err != nil {
		return fmt.Errorf("migrate schema %q: create it: %w", schema, err)
	}
	migrator, err := migrate.NewMigrator(ctx, conn, versionTable(schema))
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	found, err := migrator.GetCurrentVersion(ctx)
	if err != nil {
		return fmt.Errorf("migrate schema %q: read its version: %w", schema, err)
	}
	if found > Version() {
		return &VersionError{Schema: schema, Found: found, Want: Version()}
	}
	migrator.Data["schema"] = schema
	files, err := fs.Sub(migrations, "migrations")
	if err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	if err := migrator.LoadMigrations(files); err != nil {
		return fmt.Errorf("migrate schema %q: load: %w", schema, err)
	}
	if err := migrator.Migrate(ctx); err != nil {
		return fmt.Errorf("migrate schema %q: %w", schema, err)
	}
	return nil
}

// createSchema tolerates a concurrent creator: CREATE SCHEMA IF NOT EXISTS can still lose the race on the catalogue's
// unique index.
func createSchema(ctx context.Context, conn *pgx.Conn, schema string) error {
	_, err := conn.Exec(ctx, "create schema if not exists "+schema)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "23505" || pgErr.Code == "42P06") {
		return nil
	}
	return err
}

// Check returns a *VersionError unless schema is exactly at the version of this build.
func Check(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	if err := sqlfile.CheckSchema(schema); err != nil {
		return err
	}
	var found int32
	err := pool.QueryRow(ctx, "select version from "+versionTable(schema)).Scan(&found)
	var pgErr *pgconn.PgError
	if errors.As(err, &pgErr) && (pgErr.Code == "42P01" || pgErr.Code == "3F000") {
		found, err = 0, nil
	}
	if err != nil {
		return fmt.Errorf("read the version of schema %q: %w", schema, err)
	}
	if found != Version() {
		return &VersionError{Schema: schema, Found: found, Want: Version()}
	}
	return nil
}
