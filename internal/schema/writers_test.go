package schema_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/schema"
)

// keepWriting writes, in the order of the library's own statements, until stop is closed. It expects no refusal.
func keepWriting(t *testing.T, pool *pgxpool.Pool, stop <-chan struct{}, first, runs int) {
	t.Helper()
	conn, err := pgx.ConnectConfig(context.Background(), pool.Config().ConnConfig)
	if err != nil {
		t.Error(err)
		return
	}
	defer func() { _ = conn.Close(context.Background()) }()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return
		default:
		}
		batch := &pgx.Batch{}
		id := fmt.Sprintf("r%d", 1+(i*7+first)%runs)
		batch.Queue("update romancy.instances set status = 'running', worker = 1, token = token + 1 where id = $1", id)
		batch.Queue("insert into romancy.history (instance_id, position, token, kind, name) values ($1, $2, 1, 'activity', 'a')", id, first*10000000+i+1)
		batch.Queue("insert into romancy.mailbox (channel, mode, receiver, payload) values ('c', 'direct', $1, '1')", id)
		batch.Queue("insert into romancy.workers (label, listening, lease_until) values ('old', true, now() + interval '15 seconds')")
		if err := conn.SendBatch(context.Background(), batch).Close(); err != nil {
			t.Errorf("write %d is refused: %v", i, err)
		}
	}
}

// Several processes upgrade at once, some are killed meanwhile, and an older build goes on writing.
func TestUpgradeMakesNoWriteBelowItFail(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	ternDatabase(t, pool, lastOfTern)
	exec(t, pool, publish)
	const runs = 10000
	exec(t, pool, fmt.Sprintf(`insert into romancy.instances (id, workflow, status, token, ready_at)
		select 'r' || g, 'w', 'ready', 0, now() from generate_series(1, %d) g`, runs))
	stop := make(chan struct{})
	var writers, upgrades sync.WaitGroup
	for n := range 2 {
		writers.Go(func() { keepWriting(t, pool, stop, n, runs) })
	}
	for i := range 4 {
		upgrades.Go(func() {
			ctx := t.Context()
			if i%2 == 0 {
				var cancel func()
				ctx, cancel = context.WithTimeout(ctx, time.Duration(20+15*i)*time.Millisecond)
				defer cancel()
			}
			if err := schema.Migrate(ctx, pool, schema.Default); err != nil && !errors.Is(err, context.DeadlineExceeded) {
				t.Error(err)
			}
		})
	}
	upgrades.Wait()
	close(stop)
	writers.Wait()
	if err := schema.Check(t.Context(), pool, schema.Default); err != nil {
		t.Error(err)
	}
	if invalid := ask[int](t, pool, "select count(*) from pg_index where not indisvalid"); invalid != 0 {
		t.Errorf("%d indexes are not valid", invalid)
	}
}

// Who has locked the first table may go on to all others.
func TestUpgradeLocksTablesInTheOrderOfWriters(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	ternDatabase(t, pool, lastOfTern)
	writer, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := writer.Exec(t.Context(), "lock table romancy.instances in row exclusive mode"); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- schema.Migrate(t.Context(), pool, schema.Default) }()
	held := 0
	eventually(t, "the upgrade waits for the instances", func() bool {
		var waits int
		err := pool.QueryRow(t.Context(), `with locks as (select relation::regclass::text as name, granted from pg_locks
				where locktype = 'relation' and mode = 'AccessExclusiveLock' and database = (select oid from pg_database where datname = current_database()))
			select (select count(*) from locks where name = 'romancy.instances' and not granted),
				(select count(*) from locks where name in ('romancy.history', 'romancy.workers', 'romancy.mailbox'))`).Scan(&waits, &held)
		return err == nil && (waits > 0 || held > 0)
	})
	if held > 0 {
		t.Errorf("it has %d other tables while a writer may have the instances", held)
	}
	if err := writer.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
}

// Whatever the order: the migration gives up before PostgreSQL finds a deadlock and ends the one that has waited for longer.
func TestMigrationGivesWayBeforeADeadlock(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	const tables = "create table {{.schema}}.a (x int); create table {{.schema}}.b (x int)"
	older := build(t, tables)
	newer := build(t, tables, "alter table {{.schema}}.a add column y int; select pg_sleep(0.3); alter table {{.schema}}.b add column y int")
	if err := older.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	alterDatabase(t, pool, "deadlock_timeout = '2s'")
	writer, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = writer.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := writer.Exec(t.Context(), "insert into romancy.b values (1)"); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- newer.Migrate(t.Context(), pool, quiet()) }()
	eventually(t, "the migration has the first table", func() bool {
		return ask[int](t, pool, "select count(*) from pg_locks where relation = 'romancy.a'::regclass and mode = 'AccessExclusiveLock' and granted") > 0
	})
	if _, err := writer.Exec(t.Context(), "insert into romancy.a values (1)"); err != nil {
		t.Errorf("the writer is refused: %v", err)
	}
	if err := writer.Commit(t.Context()); err != nil {
		t.Error(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	wantVersion(t, pool, 2, 2)
}

// PostgreSQL interrupts an automatic vacuum for those who wait for longer than a migration waits for a table.
func TestMigrationWaitsForAVacuumUntilItIsInterrupted(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	older, newer := build(t, "create table {{.schema}}.t (a int)"), build(t, "create table {{.schema}}.t (a int)", "alter table {{.schema}}.t add column b int")
	if err := older.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	vacuum, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = vacuum.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := vacuum.Exec(t.Context(), "lock table romancy.t in share update exclusive mode"); err != nil {
		t.Fatal(err)
	}
	result := make(chan error, 1)
	go func() { result <- newer.Migrate(t.Context(), pool, quiet()) }()
	eventually(t, "it waits for the vacuum for longer than deadlock_timeout, and keeps nobody from writing", func() bool {
		return ask[int](t, pool, `select count(*) from pg_locks where relation = 'romancy.t'::regclass and mode = 'ShareUpdateExclusiveLock'
			and not granted and waitstart < clock_timestamp() - current_setting('deadlock_timeout')::interval`) > 0
	})
	if err := vacuum.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-result; err != nil {
		t.Error(err)
	}
	wantVersion(t, pool, 2, 2)
}

func TestIndexThatWaitsForATransactionSaysForWhom(t *testing.T) {
	t.Parallel()
	pool := emptyPool(t)
	older, newer := indexes(t)
	if err := older.Migrate(t.Context(), pool, quiet()); err != nil {
		t.Fatal(err)
	}
	release := oldSnapshot(t, pool)
	defer release()
	const waits = `"a migration waits for a transaction that is open"`
	pid := ask[int32](t, pool, "select pid from pg_stat_activity where datname = current_database() and state = 'idle in transaction'")
	var log journal
	result := make(chan error, 1)
	begin := func() (cancel func()) {
		ctx, cancel := context.WithCancel(t.Context())
		go func() { result <- newer.Migrate(ctx, pool, log.logger()) }()
		return cancel
	}
	said := func(times int) {
		t.Helper()
		eventually(t, "the wait is said", func() bool { return strings.Count(log.String(), waits) == times })
	}
	cancel := begin()
	defer cancel()
	said(1)
	cancel()
	wantError(t, <-result, "context canceled", fmt.Sprintf("it waits for the transaction of pid %d (application_name", pid))
	cancel = begin()
	defer cancel()
	said(2)
	release()
	if err := <-result; err != nil {
		t.Fatal(err)
	}
	wantIndexes(t, pool)
	if text := log.String(); strings.Count(text, fmt.Sprintf(" pid=%d ", pid)) != 2 || !strings.Contains(text, "the transactions that the migration waited for are over") {
		t.Errorf("it says\n%s", text)
	}
}
