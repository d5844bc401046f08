package schema_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/schema"
)

// ternDatabase makes what tern made of the first migrations, which this library used before.
func ternDatabase(t *testing.T, pool *pgxpool.Pool, version int) {
	t.Helper()
	exec(t, pool, "create schema romancy")
	exec(t, pool, "create table romancy.schema_version (version int4 not null)")
	exec(t, pool, "insert into romancy.schema_version (version) values (0)")
	for i, text := range schema.Texts(schema.Default)[:version] {
		exec(t, pool, text)
		exec(t, pool, fmt.Sprintf("update romancy.schema_version set version = %d", i+1))
	}
}

const publish = "create publication everything for all tables"

// lastOfTern is the last version that was made with tern.
const lastOfTern = 8

func TestDatabasesOfTernContinueAlsoWhenPublished(t *testing.T) {
	t.Parallel()
	for version := range lastOfTern + 1 {
		for _, published := range []string{"before", "after"} {
			t.Run(fmt.Sprintf("version %d, published %s", version, published), func(t *testing.T) {
				t.Parallel()
				pool := emptyPool(t)
				ternDatabase(t, pool, version)
				if published == "before" {
					exec(t, pool, publish)
				}
				if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
					t.Fatal(err)
				}
				if published == "after" {
					exec(t, pool, publish)
				}
				wantVersion(t, pool, schema.Version(), ask[int32](t, pool, "select compatible_since from romancy.schema_version"))
				exec(t, pool, "update romancy.schema_version set version = version") // refused without a key
				exec(t, pool, "update romancy.schema_version set version = 1, compatible_since = 1")
				exec(t, pool, fmt.Sprintf("update romancy.schema_version set version = %d", schema.Version()))
				if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
					t.Errorf("once more: %v", err)
				}
			})
		}
	}
}

func TestPublishedEmptyDatabaseIsMigrated(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	exec(t, pool, publish)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
}

// What an administrator may have done to get out of it.
func TestVersionTableWithAKeyOfItsOwnIsConverted(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	ternDatabase(t, pool, lastOfTern)
	exec(t, pool, "alter table romancy.schema_version add primary key (version)")
	exec(t, pool, publish)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
}

// The statements of the last build with tern.
func TestOlderBuildsReadTheVersion(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, "create table if not exists romancy.schema_version(version int4 not null)")
	exec(t, pool, "insert into romancy.schema_version(version) select 0 where 0=(select count(*) from romancy.schema_version)")
	if got := ask[int32](t, pool, "select version from romancy.schema_version"); got != schema.Version() {
		t.Errorf("it reads version %d, want %d", got, schema.Version())
	}
	exec(t, pool, fmt.Sprintf("update romancy.schema_version set version=%d", schema.Version()))
}

// A build that does not know of compatibility is refused by schemas that tern has made of a later version.
func TestCheckReadsTheTableOfTern(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	ternDatabase(t, pool, lastOfTern)
	err := schema.Check(t.Context(), pool, schema.Default)
	var wrong *schema.VersionError
	switch {
	case schema.Version() == lastOfTern && err != nil:
		t.Error(err)
	case schema.Version() > lastOfTern && (!errors.As(err, &wrong) || wrong.Found != lastOfTern):
		t.Errorf("got %v, want a *VersionError", err)
	}
	exec(t, pool, "update romancy.schema_version set version = 9999")
	if err := schema.Check(t.Context(), pool, schema.Default); !errors.As(err, &wrong) || wrong.Found != 9999 || wrong.Oldest != 9999 {
		t.Errorf("got %v, want a *VersionError", err)
	}
}

func TestDamagedVersionTableIsNamed(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct{ damage, says string }{
		"truncated": {"truncate romancy.schema_version", "romancy.schema_version is empty or missing, but there are tables"},
		"dropped":   {"drop table romancy.schema_version", "romancy.schema_version is empty or missing, but there are tables"},
		"two rows": {
			"alter table romancy.schema_version drop column only_row; insert into romancy.schema_version values (3)",
			"romancy.schema_version has 2 rows",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := emptyPool(t)
			if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
				t.Fatal(err)
			}
			exec(t, pool, c.damage)
			wantError(t, schema.Migrate(t.Context(), pool, schema.Default), c.says)
			if err := schema.Check(t.Context(), pool, schema.Default); err == nil {
				t.Error("Check accepts it")
			}
		})
	}
}

func TestOnlyOneVersionIsHeld(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"insert into romancy.schema_version (version) values (1)",
		"insert into romancy.schema_version (version, only_row) values (1, false)",
	} {
		if _, err := pool.Exec(t.Context(), statement); err == nil {
			t.Errorf("%s: accepted", statement)
		}
	}
}

func TestRollingDeploy(t *testing.T) {
	t.Parallel()
	const first, second = "create table {{.schema}}.one ()", "create table {{.schema}}.two ()"
	older := build(t, first, second)
	for name, c := range map[string]struct {
		added []string
		since int32 // the oldest build that lives with it
	}{
		"compatible":                       {[]string{"-- compatible since: 2\ncreate table {{.schema}}.three ()"}, 2},
		"compatible with all":              {[]string{"-- compatible since: 1\ncreate table {{.schema}}.three ()"}, 2}, // the second was not
		"incompatible":                     {[]string{"create table {{.schema}}.three ()"}, 3},
		"compatible after one that is not": {[]string{"create table {{.schema}}.three ()", "-- compatible since: 2\ncreate table {{.schema}}.four ()"}, 3},
		"two that are compatible": {
			[]string{"-- compatible since: 2\ncreate table {{.schema}}.three ()", "-- compatible since: 2\ncreate table {{.schema}}.four ()"}, 2,
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newer := build(t, append([]string{first, second}, c.added...)...)
			pool := emptyPool(t)
			// The older build is there first, and the newer one refuses until it has migrated.
			if err := older.Migrate(t.Context(), pool, quiet()); err != nil {
				t.Fatal(err)
			}
			var wrong *schema.VersionError
			if err := newer.Check(t.Context(), pool); !errors.As(err, &wrong) || wrong.Found != 2 || wrong.Want != newer.Version() {
				t.Errorf("the newer build before the migration: %v, want a *VersionError", err)
			}
			if err := newer.Migrate(t.Context(), pool, quiet()); err != nil {
				t.Fatal(err)
			}
			wantVersion(t, pool, newer.Version(), c.since)
			// The newer build is there first: the older one starts in the middle of a deploy, or after a rollback.
			before := relations(t, pool, schema.Default)
			for what, call := range map[string]func() error{
				"Check":   func() error { return older.Check(t.Context(), pool) },
				"Migrate": func() error { return older.Migrate(t.Context(), pool, quiet()) },
				"Plan":    func() error { _, _, err := older.Plan(t.Context(), pool); return err },
			} {
				err := call()
				if c.since <= older.Version() {
					if err != nil {
						t.Errorf("%s of the older build: %v, although it can live with it", what, err)
					}
					continue
				}
				want := schema.VersionError{Schema: schema.Default, Found: newer.Version(), Want: 2, Oldest: c.since}
				if !errors.As(err, &wrong) || *wrong != want {
					t.Errorf("%s of the older build: %v, want %+v", what, err, want)
					continue
				}
				wantError(t, err, fmt.Sprintf("is at version %d, newer than version 2", newer.Version()), fmt.Sprintf("only builds that know version %d work with it", c.since))
			}
			if after := relations(t, pool, schema.Default); fmt.Sprint(before) != fmt.Sprint(after) {
				t.Errorf("the older build changed %v to %v", before, after)
			}
			if err := newer.Check(t.Context(), pool); err != nil {
				t.Errorf("the newer build: %v", err)
			}
		})
	}
}

func TestContextThatHasEndedMigratesNothing(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := schema.Migrate(ended, pool, schema.Default); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the context's error", err)
	}
}
