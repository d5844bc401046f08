package schema

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// Plan returns what Migrate would do now, and the version it has found. It changes nothing and takes no lock. It returns a
// *VersionError for a newer schema that this build cannot work with.
func Plan(ctx context.Context, pool *pgxpool.Pool, schema string, options Options) (found int32, planned []migrator.Planned, err error) {
	return plan(ctx, pool, schema, options, embedded())
}

func plan(ctx context.Context, pool *pgxpool.Pool, schema string, options Options, migrations []migration) (int32, []migrator.Planned, error) {
	if err := sqlfile.CheckSchema(schema); err != nil {
		return 0, nil, err
	}
	session, err := migrator.Open(ctx, pool, schema, slog.New(slog.DiscardHandler))
	if err != nil {
		return 0, nil, fmt.Errorf("plan the migration of schema %q: %w", schema, err)
	}
	defer session.Close()
	var found state
	err = session.Read(ctx, func(ctx context.Context, tx pgx.Tx) (err error) {
		if found, err = readState(ctx, tx, schema); err != nil || found.rows > 0 || !found.schemaThere || options.NonEmpty {
			return err
		}
		return checkVacant(ctx, tx, schema)
	})
	if err != nil {
		return 0, nil, fmt.Errorf("plan the migration of schema %q: %w", schema, err)
	}
	want := int32(len(migrations))
	if found.version > want {
		return found.version, nil, found.accept(schema, want)
	}
	return found.version, scripts(schema, found.version, !found.ready, options, migrations), nil
}

// Scripts returns the migrations from a version on. It expects the version table to be there, as any build has made it, unless
// from is 0.
func Scripts(schema string, from int32, options Options) ([]migrator.Planned, error) {
	if err := sqlfile.CheckSchema(schema); err != nil {
		return nil, err
	}
	if from < 0 || from > Version() {
		return nil, fmt.Errorf("there is no migration from version %d: give 0, for a database without the schema, to %d", from, Version())
	}
	return scripts(schema, from, from < Version(), options, embedded()), nil
}

func scripts(schema string, from int32, makeTable bool, options Options, migrations []migration) []migrator.Planned {
	var planned []migrator.Planned
	if makeTable {
		parts := []string{migrator.Expectation(schema), versionTable(schema)}
		if from == 0 {
			parts = slices.Insert(parts, 0, "create schema if not exists "+schema+";")
			if !options.NonEmpty {
				parts = slices.Insert(parts, 1, expectVacant(schema))
			}
		}
		planned = append(planned, migrator.Planned{Name: "schema_version", Version: from, SQL: migrator.Script(schema, parts...)})
	}
	for _, m := range migrations[from:] {
		planned = append(planned, migrator.Planned{Name: m.name, Version: m.version, Compatible: m.compatible, SQL: m.script(schema)})
	}
	return planned
}

// script is the migration as a text for psql. It stops at a version that is not the one before.
func (m *migration) script(schema string) string {
	expect := fmt.Sprintf(`do $romancy$ begin
    if (select version from %[1]s.schema_version) is distinct from %[2]d then
        raise exception 'migration %[3]s is for version %[2]d of schema %[1]s, which is at another';
    end if;
end $romancy$;`, schema, m.version-1, m.name)
	written := recordVersion(schema, m) + ";"
	if !m.outside {
		return migrator.Script(schema, expect, m.sql(schema), written)
	}
	var text strings.Builder
	text.WriteString("-- Outside of a transaction. After an interruption drop the index that it has left invalid, and begin again here.\n")
	for _, statement := range m.statements(schema) {
		text.WriteString(statement + ";\n")
	}
	return text.String() + migrator.Script(schema, expect, written)
}
