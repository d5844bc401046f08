package rivertables_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/rivertables"
)

const name = "romancy"

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func exec(t *testing.T, pool *pgxpool.Pool, statement string) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), statement); err != nil {
		t.Fatal(err)
	}
}

// columns lists what the schema's tables are made of.
func columns(t *testing.T, pool *pgxpool.Pool) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `select c.relkind::text || ' ' || c.relname || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod)
		from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
		where c.relnamespace = $1::text::regnamespace order by 1`, name)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// river migrates with River's own means up to a version.
func river(t *testing.T, pool *pgxpool.Pool, version int) {
	t.Helper()
	exec(t, pool, "create schema if not exists "+name)
	own, err := rivermigrate.New(riverpgxv5.New(pool), &rivermigrate.Config{Logger: quiet(), Schema: name})
	if err != nil {
		t.Fatal(err)
	}
	if version > 0 {
		if _, err := own.Migrate(t.Context(), rivermigrate.DirectionUp, &rivermigrate.MigrateOpts{TargetVersion: version}); err != nil {
			t.Fatal(err)
		}
	}
}

const newest = 8

func TestEveryVersionOfRiverIsMigrated(t *testing.T) {
	t.Parallel()
	whole := pgtest.Connect(t, pgtest.EmptyURL(t))
	river(t, whole, newest)
	want := columns(t, whole)
	for version := range newest + 1 {
		t.Run(fmt.Sprint(version), func(t *testing.T) {
			t.Parallel()
			for how, migrate := range map[string]func(pool *pgxpool.Pool) error{
				"Migrate": func(pool *pgxpool.Pool) error { return rivertables.Migrate(t.Context(), pool, name, quiet()) },
				"scripts": func(pool *pgxpool.Pool) error {
					found, err := rivertables.Found(t.Context(), pool, name)
					if err != nil || int(found) != version {
						return fmt.Errorf("found version %d (%w)", found, err)
					}
					planned, err := rivertables.Plan(name, found)
					for _, p := range planned {
						if _, err := pool.Exec(t.Context(), p.SQL); err != nil {
							return fmt.Errorf("%s: %w", p.Name, err)
						}
					}
					return err
				},
			} {
				pool := pgtest.Connect(t, pgtest.EmptyURL(t))
				river(t, pool, version)
				exec(t, pool, "create publication everything for all tables")
				if err := migrate(pool); err != nil {
					t.Errorf("%s: %v", how, err)
					continue
				}
				if err := rivertables.Check(t.Context(), pool, name); err != nil {
					t.Errorf("%s: %v", how, err)
				}
				if got := columns(t, pool); !slices.Equal(got, want) {
					t.Errorf("%s made %v, want %v", how, got, want)
				}
			}
		})
	}
}

func TestConcurrentMigrations(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"directly", "behind a pooler"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			url := pgtest.EmptyURL(t)
			direct, reached := pgtest.Connect(t, url), url
			exec(t, direct, `do $$ begin
				execute format('alter database %I set statement_timeout = ''2s''', current_database());
				execute format('alter database %I set lock_timeout = ''1ms''', current_database());
				execute format('alter database %I set search_path = nowhere', current_database());
				execute format('alter database %I set default_transaction_isolation = serializable', current_database());
			end $$`)
			if way != "directly" {
				reached = pgtest.PgBouncer(t, url, "transaction")
			}
			pool := pgtest.Connect(t, reached)
			errs := make([]error, 8)
			var done sync.WaitGroup
			for i := range errs {
				done.Go(func() { errs[i] = rivertables.Migrate(t.Context(), pool, name, quiet()) })
			}
			done.Wait()
			if err := errors.Join(errs...); err != nil {
				t.Fatal(err)
			}
			if err := rivertables.Check(t.Context(), direct, name); err != nil {
				t.Error(err)
			}
			var locks int
			if err := direct.QueryRow(t.Context(), "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())").
				Scan(&locks); err != nil || locks > 0 {
				t.Errorf("%d advisory locks are left (%v)", locks, err)
			}
		})
	}
}

type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) says(what string) bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	return strings.Contains(j.text.String(), what)
}

func TestWaitForAnotherMigrationIsSaid(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), fmt.Sprintf("select pg_advisory_xact_lock(%d)", migrator.LockKey(name))); err != nil {
		t.Fatal(err)
	}
	log := &journal{}
	result := make(chan error, 1)
	go func() {
		result <- rivertables.Migrate(t.Context(), pool, name, slog.New(slog.NewTextHandler(log, nil)))
	}()
	for deadline := time.Now().Add(30 * time.Second); !log.says(fmt.Sprintf("pid=%d", tx.Conn().PgConn().PID())); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("it is not said who is waited for")
		}
	}
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	if !log.says("River's tables migrated") {
		t.Error("it is not said what was done")
	}
}

// A process with nothing to do waits for nobody, and may be one that only reads.
func TestMigratedTablesNeedNoLock(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	readOnly := func() {
		exec(t, pool, "do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$")
	}
	other := pgtest.Connect(t, pgtest.EmptyURL(t))
	exec(t, other, "do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database()); end $$")
	if err := rivertables.Migrate(t.Context(), other, name, quiet()); err == nil || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("got %v, want that it is read-only", err)
	}
	if err := rivertables.Migrate(t.Context(), pool, name, quiet()); err != nil {
		t.Fatal(err)
	}
	readOnly()
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), fmt.Sprintf("select pg_advisory_xact_lock(%d)", migrator.LockKey(name))); err != nil {
		t.Fatal(err)
	}
	if err := rivertables.Migrate(t.Context(), pool, name, quiet()); err != nil {
		t.Error(err)
	}
}
