package schema_test

import (
	"context"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
)

func emptyPool(t *testing.T, mod ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	return pgtest.Connect(t, pgtest.EmptyURL(t), mod...)
}

// relations lists what a schema holds: tables, views and indexes.
func relations(t *testing.T, pool *pgxpool.Pool, name string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(),
		"select relkind::text || ' ' || relname from pg_class where relnamespace = $1::text::regnamespace order by 1", name)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

func exec(t *testing.T, pool *pgxpool.Pool, statement string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

func TestMigrateTwiceKeepsData(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	before := relations(t, pool, schema.Default)
	exec(t, pool, "create table romancy.mine as select 1 as here")
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatalf("the second time: %v", err)
	}
	exec(t, pool, "drop table romancy.mine") // fails if it is gone
	if after := relations(t, pool, schema.Default); !slices.Equal(before, after) {
		t.Errorf("the second migration changed %v to %v", before, after)
	}
	if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
		t.Errorf("Check after Migrate: %v", err)
	}
}

func TestConcurrentMigrations(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	errs := make([]error, 8)
	var start, done sync.WaitGroup
	start.Add(len(errs))
	for i := range errs {
		done.Go(func() {
			start.Done()
			start.Wait()
			errs[i] = schema.Migrate(t.Context(), pool, schema.Default)
		})
	}
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
}

func TestNewerSchemaIsRefusedAndLeftAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, "update romancy.schema_version set version = 9999, compatible_since = 9000")
	before := relations(t, pool, schema.Default)
	for name, call := range map[string]func(context.Context, *pgxpool.Pool, string) error{
		"Check": schema.Check, "Migrate": schema.Migrate,
	} {
		var wrong *schema.VersionError
		if err := call(t.Context(), pool, schema.Default); !errors.As(err, &wrong) {
			t.Errorf("%s: got %v, want a *VersionError", name, err)
			continue
		}
		if want := (schema.VersionError{Schema: schema.Default, Found: 9999, Want: schema.Version(), Oldest: 9000}); *wrong != want {
			t.Errorf("%s: got %+v, want %+v", name, *wrong, want)
		}
		if !strings.Contains(wrong.Error(), "newer") || !strings.Contains(wrong.Error(), "deploy") {
			t.Errorf("%s: %q does not say what is wrong and what to do", name, wrong)
		}
	}
	if after := relations(t, pool, schema.Default); !slices.Equal(before, after) {
		t.Errorf("the refused migration changed %v to %v", before, after)
	}
}

func TestHalfMigratedSchemaIsRefusedAndCompleted(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	exec(t, pool, "create schema romancy")
	exec(t, pool, "create table romancy.schema_version (version int4 not null)")
	exec(t, pool, "insert into romancy.schema_version values (0)")
	var wrong *schema.VersionError
	if err := schema.Check(t.Context(), pool, schema.Default); !errors.As(err, &wrong) || wrong.Found != 0 {
		t.Errorf("got %v, want a *VersionError with version 0", err)
	}
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
	if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
}

func TestUnmigratedDatabaseIsRefused(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	var wrong *schema.VersionError
	if err := schema.Check(t.Context(), pool, schema.Default); !errors.As(err, &wrong) {
		t.Fatalf("got %v, want a *VersionError", err)
	}
	if wrong.Found != 0 || !strings.Contains(wrong.Error(), "romancy.Migrate") {
		t.Errorf("got %v, want version 0 and the remedy", wrong)
	}
}

func TestBadSchemaNamesAreRefused(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	for _, name := range []string{"", "Upper", "semi;colon", "two words", `quo"te`, "1st", "übel", "nul\x00", strings.Repeat("x", 64)} {
		for what, call := range map[string]func(context.Context, *pgxpool.Pool, string) error{
			"Check": schema.Check, "Migrate": schema.Migrate,
		} {
			if err := call(t.Context(), pool, name); err == nil || !strings.Contains(err.Error(), "schema") {
				t.Errorf("%s(%q) gives %v, want an error that names the schema", what, name, err)
			}
		}
	}
}

func TestTwoSchemasInOneDatabase(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	for _, name := range []string{schema.Default, "second_1"} {
		if err := schema.Migrate(t.Context(), pool, name); err != nil {
			t.Fatal(err)
		}
	}
	first, second := relations(t, pool, schema.Default), relations(t, pool, "second_1")
	if !slices.Equal(first, second) || len(first) < 10 {
		t.Errorf("the schemas differ or are bare: %v and %v", first, second)
	}
	// A statement of the second schema that named the first would go unnoticed while both exist.
	exec(t, pool, "drop schema romancy cascade")
	if third := relations(t, pool, "second_1"); !slices.Equal(second, third) {
		t.Errorf("dropping the first schema changed the second from %v to %v", second, third)
	}
	if err := schema.Check(t.Context(), pool, "second_1"); err != nil {
		t.Error(err)
	}
	var wrong *schema.VersionError
	if err := schema.Check(t.Context(), pool, schema.Default); !errors.As(err, &wrong) {
		t.Errorf("the dropped schema: got %v, want a *VersionError", err)
	}
}

func TestSchemaAloneInADatabase(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	if err := schema.Migrate(t.Context(), pool, "only_one"); err != nil {
		t.Fatal(err)
	}
	var others []string
	rows, err := pool.Query(t.Context(), "select nspname from pg_namespace where nspname = 'romancy'")
	if err != nil {
		t.Fatal(err)
	}
	if others, err = pgx.CollectRows(rows, pgx.RowTo[string]); err != nil || len(others) != 0 {
		t.Errorf("found %v (%v), want no schema but the one asked for", others, err)
	}
}

// Every way in which pgx talks to the server, a pool of one connection, and settings of the host that must neither
// disturb the migration nor be disturbed by it.
func TestMigrateAsAGuest(t *testing.T) {
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			connected := 0
			pool := emptyPool(t, func(config *pgxpool.Config) {
				config.MaxConns = 1
				config.ConnConfig.DefaultQueryExecMode = mode
				config.ConnConfig.RuntimeParams["search_path"] = "nowhere"
				config.ConnConfig.RuntimeParams["timezone"] = "Asia/Kathmandu"
				config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { connected++; return nil }
				config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
					_, err := conn.Exec(ctx, "set work_mem = '5MB'")
					return err
				}
			})
			held, err := pool.Acquire(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			before := connected
			if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
				t.Fatalf("with every connection of the pool in use: %v", err)
			}
			if connected == before {
				t.Error("BeforeConnect was not called for the migration's connection")
			}
			held.Release()
			if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
				t.Error(err)
			}
			var memory string
			if err := pool.QueryRow(t.Context(), "show work_mem").Scan(&memory); err != nil || memory != "5MB" {
				t.Errorf("the pool's connection has work_mem %q (%v), want the host's 5MB", memory, err)
			}
		})
	}
}

func TestMigrateWithoutPermissionSaysSo(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t, func(config *pgxpool.Config) {
		config.ConnConfig.RuntimeParams["default_transaction_read_only"] = "on"
	})
	err := schema.Migrate(t.Context(), pool, schema.Default)
	if err == nil || !strings.Contains(err.Error(), `schema "romancy"`) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("got %v, want the schema and the server's reason", err)
	}
}

// A role that may not create schemas is enough where an administrator has made the schema.
func TestMigrateWithTheSchemaAloneAsARole(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	role := "migrating_" + strings.ToLower(rand.Text()[:12])
	exec(t, pool, "create role "+role+"; create schema romancy authorization "+role)
	t.Cleanup(func() {
		_, _ = pool.Exec(context.WithoutCancel(t.Context()), "drop owned by "+role+" cascade; drop role "+role)
	})
	guest := pgtest.Connect(t, pool.Config().ConnString(), func(config *pgxpool.Config) {
		config.AfterConnect = func(ctx context.Context, conn *pgx.Conn) error {
			_, err := conn.Exec(ctx, "set role "+role)
			return err
		}
	})
	if err := schema.Migrate(t.Context(), guest, schema.Default); err != nil {
		t.Fatal(err)
	}
	if owner := ask[string](t, pool, "select relowner::regrole::text from pg_class where oid = 'romancy.schema_version'::regclass"); owner != role {
		t.Errorf("the tables belong to %s, want %s", owner, role)
	}
}

func TestBeforeConnectsErrorIsReturned(t *testing.T) {
	t.Parallel()
	refused := errors.New("no password today")
	pool := emptyPool(t, func(config *pgxpool.Config) {
		config.BeforeConnect = func(context.Context, *pgx.ConnConfig) error { return refused }
	})
	if err := schema.Migrate(t.Context(), pool, schema.Default); !errors.Is(err, refused) {
		t.Errorf("got %v, want the host's own error", err)
	}
}

// Runs that had continued before lines were stored are in their lines afterwards.
func TestMigrationFindsLinesThatAreThere(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, pool, "drop table romancy.interruptions") // what came after lines
	exec(t, pool, "drop function romancy.input_matches; alter index romancy.subscriptions_order rename to subscriptions_channel")
	exec(t, pool, "alter table romancy.instances drop column died_with, drop column drained_at, drop column erased_at")
	exec(t, pool, "alter table romancy.history drop column worker")
	exec(t, pool, "alter table romancy.workers drop column left_at, drop column lived_at")
	exec(t, pool, "alter table romancy.workers drop column workflows")
	exec(t, pool, "drop view romancy.pending_channel_message")
	exec(t, pool, "drop index romancy.instances_line_failed")
	exec(t, pool, "drop index romancy.instances_line")
	exec(t, pool, "alter table romancy.instances drop column line")
	exec(t, pool, "update romancy.schema_version set version = 7")
	exec(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, continued_from, output, ended_at)
		select id, 'w', case when next <> '' then 'continued' when id = 'c2' then 'completed' else 'waiting' end, 1, now(), nullif(former, ''),
		       case when next <> '' then json_build_object('continued_as', next) end, case when next <> '' or id = 'c2' then now() end
		from (values ('a1', '', 'a2'), ('a2', 'a1', 'a3'), ('a3', 'a2', ''), ('b1', '', ''), ('c1', '', 'c2'), ('c2', 'c1', '')) run (id, former, next)`)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	var lines, heirs string
	if err := pool.QueryRow(t.Context(), `select string_agg(id || '=' || coalesce(line, 'none'), ' ' order by id), string_agg(id || '>' || romancy.heir(id), ' ' order by id)
		from romancy.instances`).Scan(&lines, &heirs); err != nil {
		t.Fatal(err)
	}
	if lines != "a1=none a2=a1 a3=a1 b1=none c1=none c2=c1" || heirs != "a1>a3 a2>a3 a3>a3 b1>b1 c1>c2 c2>c2" {
		t.Errorf("lines %s, heirs %s", lines, heirs)
	}
}
