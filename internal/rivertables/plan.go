package rivertables

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
)

// lineSince is the version of River from which on its table of versions has a column for the line.
const lineSince = 5

// templated is what River's files have in place of the schema and its dot.
const templated = "/* TEMPLATE: schema */"

// Found returns the version of the River tables in schema; 0 if there are none. It changes nothing and takes no lock.
func Found(ctx context.Context, pool *pgxpool.Pool, schema string) (found int32, err error) {
	session, err := migrator.Open(ctx, pool, schema, nil)
	if err != nil {
		return 0, err
	}
	defer session.Close()
	err = session.Read(ctx, func(ctx context.Context, tx pgx.Tx) error {
		var there, lines bool
		if err := tx.QueryRow(ctx, `select count(*) > 0, count(*) filter (where a.attname = 'line') > 0
			from pg_class c join pg_namespace n on n.oid = c.relnamespace
			join pg_attribute a on a.attrelid = c.oid and not a.attisdropped
			where n.nspname = $1::text and c.relname = 'river_migration'`, schema).Scan(&there, &lines); err != nil || !there {
			return err
		}
		sql := fmt.Sprintf("select coalesce(max(version), 0)::int4 from %s.river_migration", schema)
		if lines {
			sql += " where line = 'main'"
		}
		return tx.QueryRow(ctx, sql).Scan(&found)
	})
	if err != nil {
		return 0, fmt.Errorf("read the version of River's tables in schema %q: %w", schema, err)
	}
	return found, nil
}

// Plan returns River's migrations from a version on as scripts.
func Plan(schema string, from int32) ([]migrator.Planned, error) {
	river, err := newMigrator(nil, schema)
	if err != nil {
		return nil, err
	}
	var planned []migrator.Planned
	for _, version := range river.AllVersions() {
		if int32(version.Version) <= from {
			continue
		}
		columns, values := "version", fmt.Sprint(version.Version)
		if version.Version >= lineSince {
			columns, values = "line, version", fmt.Sprintf("'main', %d", version.Version)
		}
		planned = append(planned, migrator.Planned{
			Name: nameOf(version.Version, version.Name), Version: int32(version.Version),
			SQL: migrator.Script(schema, "", strings.ReplaceAll(version.SQLUp, templated, schema+"."),
				fmt.Sprintf("insert into %s.river_migration (%s) values (%s);\n", schema, columns, values)),
		})
	}
	return planned, nil
}
