package schema_test

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/schema"
)

func TestWaitForAnotherMigrationIsSaidOnce(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "set application_name = 'the other'; select pg_advisory_xact_lock("+fmt.Sprint(migrator.LockKey(schema.Default))+")"); err != nil {
		t.Fatal(err)
	}
	var log journal
	result := make(chan error, 1)
	go func() {
		result <- schema.MigrateWith(t.Context(), pool, schema.Default, schema.Options{Logger: log.logger()})
	}()
	const waiting = "waiting for another migration"
	eventually(t, "the wait is said", func() bool { return strings.Contains(log.String(), waiting) })
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	text := log.String()
	for what, want := range map[string]int{
		waiting + `"`: 1, fmt.Sprintf("pid=%d", tx.Conn().PgConn().PID()): 1, `application_name="the other"`: 1, "the other migration is over": 1, "schema migrated": 1,
	} {
		if got := strings.Count(text, what); got != want {
			t.Errorf("%q is said %d times, want %d:\n%s", what, got, want, text)
		}
	}
}

func TestWaitThatIsGivenUpSaysForWhom(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "select pg_advisory_xact_lock("+fmt.Sprint(migrator.LockKey(schema.Default))+")"); err != nil {
		t.Fatal(err)
	}
	var log journal
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- schema.MigrateWith(ctx, pool, schema.Default, schema.Options{Logger: log.logger()}) }()
	eventually(t, "the wait is said", func() bool { return strings.Contains(log.String(), "waiting for another migration") })
	cancel()
	wantError(t, <-result, "context canceled")
}

// A process with nothing to do waits for nobody.
func TestMigratedSchemaNeedsNoLock(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	exec(t, pool, `do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$`)
	pool.Reset()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "select pg_advisory_xact_lock("+fmt.Sprint(migrator.LockKey(schema.Default))+")"); err != nil {
		t.Fatal(err)
	}
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
}

// A statement that waits for a table has everybody else queue up behind it: it gives up and tries again.
func TestLockedTableIsWaitedForInShortAttempts(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	older, newer := build(t, "create table {{.schema}}.t (a int)"), build(t, "create table {{.schema}}.t (a int)", "alter table {{.schema}}.t add column b int")
	if err := older.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), "select from romancy.t"); err != nil {
		t.Fatal(err)
	}
	var log journal
	result := make(chan error, 1)
	go func() { result <- newer.Migrate(t.Context(), pool, log.logger()) }()
	executing(t, pool, "alter table")
	// Queued behind the migration, and there when it pauses, while the first transaction is open.
	if got := ask[int](t, pool, "select count(*) from romancy.t"); got != 0 {
		t.Errorf("%d rows", got)
	}
	eventually(t, "the wait is said", func() bool {
		return strings.Contains(log.String(), "a migration waits for tables") &&
			strings.Contains(log.String(), fmt.Sprintf("oldest_transaction_pid=%d", tx.Conn().PgConn().PID()))
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	wantVersion(t, pool, 2, 2)
	if !strings.Contains(log.String(), "the tables were free") {
		t.Errorf("the end of the wait is not said:\n%s", log.String())
	}
}

// alterDatabase sets what every later session of the database begins with.
func alterDatabase(t *testing.T, pool *pgxpool.Pool, setting string) {
	t.Helper()
	exec(t, pool, "do $do$ begin execute format('alter database %I set "+strings.ReplaceAll(setting, "'", "''")+"', current_database()); end $do$")
	pool.Reset()
}

func TestLimitsOfTheRoleDoNotEndAMigration(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	for _, setting := range []string{"statement_timeout = '300ms'", "idle_in_transaction_session_timeout = '300ms'", "lock_timeout = '1ms'"} {
		alterDatabase(t, pool, setting)
	}
	long := build(t, "create table {{.schema}}.t (a int, b int); insert into {{.schema}}.t select n, n from generate_series(1, 100) n; select pg_sleep(1)",
		// Each row takes its time, so that the index does, too.
		`create function {{.schema}}.slowly(a int) returns int language plpgsql immutable as $$ begin perform pg_sleep(0.01); return a; end $$`,
		"-- transaction: none\ncreate index concurrently if not exists i on {{.schema}}.t ({{.schema}}.slowly(a))")
	if err := long.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	wantVersion(t, pool, 3, 3)
}

func TestReadOnlyDefaultIsExplained(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	alterDatabase(t, pool, "default_transaction_read_only = on")
	wantError(t, schema.Migrate(t.Context(), pool, schema.Default), `schema "romancy"`, "read-only", "default_transaction_read_only")
}

// A search path can lead to another's tables, functions and operators before PostgreSQL's own.
func TestNamesMeanOurs(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	exec(t, pool, `create schema evil; create table evil.pg_namespace (oid oid, nspname name);
		create function evil.now() returns timestamptz language sql as 'select ''epoch''::timestamptz';
		create function evil.pg_try_advisory_xact_lock(bigint) returns boolean language sql as 'select false';
		create function evil.not_equal(text, text) returns boolean language sql as 'select true';
		create operator evil.= (leftarg = text, rightarg = text, function = evil.not_equal)`)
	alterDatabase(t, pool, "search_path = evil, pg_catalog")
	b := build(t, "create table {{.schema}}.t (name text, at timestamptz default now())",
		"-- transaction: none\ncreate index concurrently if not exists i on {{.schema}}.t (at) where name = 'x'")
	if err := b.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	for what, query := range map[string]string{
		"the default": "select pg_get_expr(adbin, adrelid) from pg_attrdef where adrelid = 'romancy.t'::regclass",
		"the index":   "select pg_get_expr(indpred, indrelid) from pg_index where indrelid = 'romancy.t'::regclass",
	} {
		// Names of pg_catalog are told from others when another schema comes first.
		if got := ask[string](t, pool, query); strings.Contains(got, "evil") || !strings.Contains(got, "pg_catalog") {
			t.Errorf("%s is %s, want the names of pg_catalog", what, got)
		}
	}
}
