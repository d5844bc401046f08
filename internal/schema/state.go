package schema

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// VersionError says that the database's schema is not one that this build works with.
type VersionError struct {
	Schema string
	Found  int32 // 0: the schema has never been migrated
	Want   int32
	// Oldest is set if the schema is newer than this build: builds that know a version below it cannot work with the schema.
	Oldest int32
}

func (e *VersionError) Error() string {
	switch {
	case e.Found > e.Want:
		return fmt.Sprintf("schema %q is at version %d, newer than version %d that this build knows, and says that only builds that know version %d work with it: deploy a build at least as new as that", e.Schema, e.Found, e.Want, e.Oldest)
	case e.Found == 0:
		return fmt.Sprintf("schema %q has no tables yet (want version %d): run romancy.Migrate first", e.Schema, e.Want)
	default:
		return fmt.Sprintf("schema %q is at version %d, older than version %d that this build needs: run romancy.Migrate first", e.Schema, e.Found, e.Want)
	}
}

// recorded is what the version table holds.
type recorded struct {
	version    int32 // 0: no table, or no row
	compatible int32 // the oldest version whose builds work with the schema
	rows       int32
}

// readVersion works on the table as it was made before it had a column for compatibility, too: those schemas are for builds of
// exactly their version.
var readVersion = sqlfile.MustPin(`select coalesce(max(version), 0), coalesce(max((to_jsonb(v) ->> 'compatible_since')::int4), max(version), 0), count(*)
	from romancy.schema_version v`)

func (r *recorded) read(ctx context.Context, schema string, query func(ctx context.Context, sql string, args ...any) pgx.Row) error {
	if err := query(ctx, sqlfile.Qualify(readVersion, schema)).Scan(&r.version, &r.compatible, &r.rows); err != nil {
		return err
	}
	if r.rows > 1 {
		return fmt.Errorf("%s.schema_version has %d rows: delete all but the one that is right", schema, r.rows)
	}
	return nil
}

// accept returns a *VersionError unless builds that know version want work with the schema.
func (r *recorded) accept(schema string, want int32) error {
	switch {
	case r.version == want, r.version > want && r.compatible <= want:
		return nil
	case r.version > want:
		return &VersionError{Schema: schema, Found: r.version, Want: want, Oldest: r.compatible}
	default:
		return &VersionError{Schema: schema, Found: r.version, Want: want}
	}
}

// Check returns a *VersionError unless schema is at the version of this build, or at a newer one that says that this build can
// live with it.
func Check(ctx context.Context, pool *pgxpool.Pool, schema string) error {
	return check(ctx, pool, schema, Version())
}

func check(ctx context.Context, pool *pgxpool.Pool, schema string, want int32) error {
	if err := sqlfile.CheckSchema(schema); err != nil {
		return err
	}
	var found recorded
	err := found.read(ctx, schema, pool.QueryRow)
	if code := refusal.Code(err); code == "42P01" || code == "3F000" {
		found, err = recorded{}, nil
	}
	if err != nil {
		return fmt.Errorf("read the version of schema %q: %w", schema, err)
	}
	return found.accept(schema, want)
}

// state is what a migration finds.
type state struct {
	recorded
	schemaThere bool
	tableThere  bool
	ready       bool // the version table has a key and says what older builds can live with
	tablesThere bool // of the first migration
	open        bool // everybody may create in the schema
	readOnly    bool
	standby     bool
}

func readState(ctx context.Context, tx pgx.Tx, schema string) (state, error) {
	var s state
	err := tx.QueryRow(ctx, `select n.oid is not null, v.oid is not null, t.oid is not null,
			exists (select from pg_index where indrelid = v.oid and indisprimary)
			and exists (select from pg_attribute where attrelid = v.oid and attname = 'compatible_since' and not attisdropped),
			coalesce(has_schema_privilege('public', n.oid, 'create'), false),
			current_setting('transaction_read_only') = 'on', pg_is_in_recovery()
		from (values ($1::text)) given (name)
		left join pg_namespace n on n.nspname = given.name
		left join pg_class v on v.relnamespace = n.oid and v.relname = 'schema_version'
		left join pg_class t on t.relnamespace = n.oid and t.relname = 'instances'`, schema).
		Scan(&s.schemaThere, &s.tableThere, &s.tablesThere, &s.ready, &s.open, &s.readOnly, &s.standby)
	if err == nil && s.tableThere {
		err = s.read(ctx, schema, tx.QueryRow)
	}
	if err != nil {
		return s, fmt.Errorf("read the version: %w", err)
	}
	return s, nil
}

// check returns why the schema cannot be changed, or nil.
func (s *state) check(schema string) error {
	switch {
	case s.standby:
		return errors.New("the server is a standby, which is read-only: migrate on the primary")
	case s.readOnly:
		return errors.New("transactions are read-only here: end default_transaction_read_only of the role, the database or the server, or migrate as a role that may write")
	case s.rows == 0 && s.tablesThere:
		return fmt.Errorf("%[1]s.schema_version is empty or missing, but there are tables: restore it, or insert the version that the tables have: insert into %[1]s.schema_version (version) values (...)", schema)
	}
	return nil
}
