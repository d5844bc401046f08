package schema_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
)

// asRole returns a pool whose sessions act as a new role, which may create schemas.
func asRole(t *testing.T, pool *pgxpool.Pool, role string) *pgxpool.Pool {
	t.Helper()
	exec(t, pool, "create role "+role)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), "drop owned by "+role+" cascade; drop role "+role); err != nil {
			t.Error(err)
		}
	})
	exec(t, pool, "do $$ begin execute format('grant create on database %I to "+role+"', current_database()); end $$")
	return pgtest.Connect(t, pool.Config().ConnString(), func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+role)
			return err
		}
	})
}

// Somebody else who owns the schema could replace what is in it: it is refused before the first migration, and also when
// everything is there already.
func TestSchemaOfAnotherRoleIsRefused(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	ours, theirs := roleName(pool)+"_ours", roleName(pool)+"_theirs"
	us, them := asRole(t, pool, ours), asRole(t, pool, theirs)
	exec(t, them, "create schema romancy; grant all on schema romancy to public")
	says := []string{`schema "romancy"`, `belongs to role "` + theirs + `"`, `role "` + ours + `" is no member`, "alter schema romancy owner to"}
	wantError(t, schema.Migrate(t.Context(), us, schema.Default), says...)
	if err := schema.Migrate(t.Context(), them, schema.Default); err != nil {
		t.Fatal(err)
	}
	exec(t, them, "grant all on all tables in schema romancy to public")
	wantError(t, schema.Migrate(t.Context(), us, schema.Default), says...)
	if err := schema.Check(t.Context(), us, schema.Default); err != nil {
		t.Errorf("who uses the schema need not own it: %v", err)
	}
	if _, planned, err := schema.Plan(t.Context(), us, schema.Default, schema.Options{}); err != nil || len(planned) > 0 {
		t.Errorf("the plan of one who only reads is %v (%v)", planned, err)
	}

	exec(t, pool, "grant "+theirs+" to "+ours)
	if err := schema.Migrate(t.Context(), us, schema.Default); err != nil {
		t.Errorf("a member of the owner is refused: %v", err)
	}
}

func TestScriptRefusesTheSchemaOfAnotherRole(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	us, them := asRole(t, pool, roleName(pool)+"_ours"), asRole(t, pool, roleName(pool)+"_theirs")
	exec(t, them, "create schema romancy; grant all on schema romancy to public")
	planned, err := schema.Scripts(schema.Default, 0, schema.Options{})
	if err != nil {
		t.Fatal(err)
	}
	_, err = us.Exec(t.Context(), planned[0].SQL, pgx.QueryExecModeSimpleProtocol)
	wantError(t, err, "belongs to another role")
}

// What is in a schema before the first migration may have been put there for us to use.
func TestFirstMigrationRefusesASchemaThatIsNotEmpty(t *testing.T) {
	t.Parallel()
	for what, statement := range map[string]string{
		"table":    "create table romancy.thing ()",
		"function": "create function romancy.heir(text) returns text language sql as 'select null'",
		"type":     "create type romancy.thing as enum ()",
		"operator": "create operator romancy.= (leftarg = text, rightarg = text, function = pg_catalog.texteq)",
	} {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			pool := emptyPool(t)
			exec(t, pool, "create schema romancy; "+statement)
			wantError(t, schema.Migrate(t.Context(), pool, schema.Default), `schema "romancy"`, "not empty", what, "romancy.WithNonEmptySchema()")
			_, _, err := schema.Plan(t.Context(), pool, schema.Default, schema.Options{})
			wantError(t, err, "not empty", what)
			planned, err := schema.Scripts(schema.Default, 0, schema.Options{})
			if err != nil {
				t.Fatal(err)
			}
			_, err = pool.Exec(t.Context(), planned[0].SQL, pgx.QueryExecModeSimpleProtocol)
			wantError(t, err, "not empty")
			if what == "function" {
				return // it is in the way of ours
			}
			if err := schema.MigrateWith(t.Context(), pool, schema.Default, schema.Options{Logger: quiet(), NonEmpty: true}); err != nil {
				t.Errorf("asked to, it is refused: %v", err)
			}
			if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
				t.Errorf("after the first migration the schema is ours: %v", err)
			}
		})
	}
}

// An administrator may have made the schema, with default privileges for what will be in it.
func TestEmptySchemaWithDefaultPrivilegesIsEmpty(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	exec(t, pool, "create schema romancy; alter default privileges in schema romancy grant select on tables to public")
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
}

// Where everybody may create, a line says so, each time.
func TestSchemaInWhichEverybodyMayCreateIsWarnedAbout(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	for _, open := range []bool{false, true, false} {
		exec(t, pool, "create schema if not exists romancy; "+map[bool]string{true: "grant create on schema romancy to public", false: "revoke create on schema romancy from public"}[open])
		for range 2 {
			var lines bytes.Buffer
			options := schema.Options{Logger: slog.New(slog.NewTextHandler(&lines, &slog.HandlerOptions{Level: slog.LevelWarn}))}
			if err := schema.MigrateWith(t.Context(), pool, schema.Default, options); err != nil {
				t.Fatal(err)
			}
			if said := strings.Count(lines.String(), "revoke create on it from public"); said != map[bool]int{true: 1}[open] {
				t.Errorf("open %t: said %d times: %s", open, said, lines.String())
			}
		}
	}
}
