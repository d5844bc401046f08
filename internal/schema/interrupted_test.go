package schema_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/schema"
)

// slow is a build whose third migration takes long as long as there is a row in table slow.
func slow(t *testing.T) schema.Build {
	t.Helper()
	return build(t, "create table {{.schema}}.slow (seconds int)", "create table {{.schema}}.two ()",
		"create table {{.schema}}.three ();\nselect pg_sleep(seconds) from {{.schema}}.slow;\ncreate table {{.schema}}.four ()",
		"create table {{.schema}}.five ()")
}

func TestInterruptedMigrationIsTakenUp(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(t *testing.T, pool *pgxpool.Pool, cancel func(), pid int32){
		"cancelled": func(_ *testing.T, _ *pgxpool.Pool, cancel func(), _ int32) { cancel() },
		"terminated": func(t *testing.T, pool *pgxpool.Pool, _ func(), pid int32) {
			t.Helper()
			exec(t, pool, fmt.Sprintf("select pg_terminate_backend(%d)", pid))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := emptyPool(t)
			newer := slow(t)
			if err := build(t, "create table {{.schema}}.slow (seconds int)").Migrate(t.Context(), pool, quiet()); err != nil {
				t.Fatal(err)
			}
			exec(t, pool, "insert into romancy.slow values (3600)")
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan error, 1)
			go func() { result <- newer.Migrate(ctx, pool, quiet()) }()
			interrupt(t, pool, cancel, executing(t, pool, "pg_sleep"))
			wantError(t, <-result, `migrate schema "romancy"`)
			wantVersion(t, pool, 2, 2)
			wantNoLocks(t, pool)
			if there := relations(t, pool, schema.Default); strings.Contains(fmt.Sprint(there), "three") {
				t.Errorf("half a migration is there: %v", there)
			}
			exec(t, pool, "delete from romancy.slow")
			if err := newer.Migrate(t.Context(), pool, quiet()); err != nil {
				t.Fatal(err)
			}
			wantVersion(t, pool, 4, 4)
		})
	}
}

func TestFailedMigrationSaysWhere(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	err := build(t, "create table {{.schema}}.one ()", "create table {{.schema}}.two ();\n-- übrigens\nselect 1 +\n  missing").Migrate(t.Context(), pool, quiet())
	wantError(t, err, `migrate schema "romancy"`, "migration 002_test", "line 4", `column "missing" does not exist`)
	wantVersion(t, pool, 1, 1)
}

const indexed = `-- transaction: none
create index concurrently if not exists by_a on {{.schema}}.t (a); -- one; by a
create unique index concurrently if not exists by_b on {{.schema}}.t (b) where a is not null;
drop index concurrently if exists {{.schema}}.by_c;`

func indexes(t *testing.T) (older, newer schema.Build) {
	t.Helper()
	const first = "create table {{.schema}}.t (a int, b int, c int); create index by_c on {{.schema}}.t (c); insert into {{.schema}}.t values (1, 2, 3)"
	return build(t, first), build(t, first, indexed, "create table {{.schema}}.three ()")
}

func wantIndexes(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	got := ask[string](t, pool, `select string_agg(c.relname || ' ' || i.indisvalid, ', ' order by c.relname)
		from pg_index i join pg_class c on c.oid = i.indexrelid where i.indrelid = 'romancy.t'::regclass`)
	if got != "by_a true, by_b true" {
		t.Errorf("the indexes are %s", got)
	}
}

func TestStatementsOutsideOfATransaction(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	_, newer := indexes(t)
	if err := newer.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	wantIndexes(t, pool)
	wantVersion(t, pool, 3, 3)
	wantNoLocks(t, pool)
}

// oldSnapshot is a transaction that CREATE INDEX CONCURRENTLY waits for.
func oldSnapshot(t *testing.T, pool *pgxpool.Pool) (release func()) {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := conn.Exec(t.Context(), "begin isolation level repeatable read; select from pg_class"); err != nil {
		t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		if _, err := conn.Exec(t.Context(), "rollback"); err != nil {
			t.Error(err)
		}
		conn.Release()
	})
}

func TestInterruptedIndexIsMadeAgain(t *testing.T) {
	t.Parallel()
	for name, interrupt := range map[string]func(t *testing.T, pool *pgxpool.Pool, cancel func(), pid int32){
		"cancelled": func(_ *testing.T, _ *pgxpool.Pool, cancel func(), _ int32) { cancel() },
		"terminated": func(t *testing.T, pool *pgxpool.Pool, _ func(), pid int32) {
			t.Helper()
			exec(t, pool, fmt.Sprintf("select pg_terminate_backend(%d)", pid))
		},
		"without its lock": func(t *testing.T, pool *pgxpool.Pool, cancel func(), _ int32) {
			t.Helper()
			exec(t, pool, `select pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted
				and database = (select oid from pg_database where datname = current_database())`)
			cancel()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := emptyPool(t)
			older, newer := indexes(t)
			if err := older.Migrate(t.Context(), pool, quiet()); err != nil {
				t.Fatal(err)
			}
			release := oldSnapshot(t, pool)
			defer release()
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			result := make(chan error, 1)
			go func() { result <- newer.Migrate(ctx, pool, quiet()) }()
			pid := executing(t, pool, "index concurrently")
			eventually(t, "the index waits", func() bool {
				return ask[int](t, pool, "select count(*) from pg_index where indexrelid = to_regclass('romancy.by_a') and not indisvalid") == 1
			})
			interrupt(t, pool, cancel, pid)
			if err := <-result; err == nil {
				t.Fatal("the interrupted migration succeeded")
			}
			wantVersion(t, pool, 1, 1)
			if invalid := ask[bool](t, pool, "select not indisvalid from pg_index where indexrelid = 'romancy.by_a'::regclass"); !invalid {
				t.Error("no invalid index is left: the test tests nothing")
			}
			wantNoLocks(t, pool)
			release()
			if err := newer.Migrate(t.Context(), pool, quiet()); err != nil {
				t.Fatal(err)
			}
			wantIndexes(t, pool)
			wantVersion(t, pool, 3, 3)
		})
	}
}

// They all wait while one makes the indexes, and none is waited for by it.
func TestConcurrentMigrationsOutsideOfATransaction(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	older, newer := indexes(t)
	if err := older.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	// What would have the lock's transaction keep a snapshot, for which an index made concurrently would wait without end.
	exec(t, pool, `do $$ begin execute format('alter database %I set default_transaction_isolation = serializable', current_database()); end $$`)
	release := oldSnapshot(t, pool)
	defer release()
	errs := make([]error, 4)
	var done sync.WaitGroup
	for i := range errs {
		done.Go(func() { errs[i] = newer.Migrate(t.Context(), pool, quiet()) })
	}
	executing(t, pool, "index concurrently")
	eventually(t, "all have connected", func() bool {
		return ask[int](t, pool, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% migrate'") == len(errs)+1
	})
	release()
	done.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	wantIndexes(t, pool)
	wantVersion(t, pool, 3, 3)
	wantNoLocks(t, pool)
}
