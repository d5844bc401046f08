package store_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

const cause = `{"type":"workers_died","message":"they died"}`

// sender sends batches.
type sender interface {
	SendBatch(ctx context.Context, b *pgx.Batch) pgx.BatchResults
}

func send(t *testing.T, db sender, queue func(*pgx.Batch)) error {
	t.Helper()
	batch := &pgx.Batch{}
	queue(batch)
	return db.SendBatch(t.Context(), batch).Close()
}

// lostLease is a worker whose lease has run out, with runs that it had under token 1.
func lostLease(t *testing.T, pool *pgxpool.Pool, worker int64, ids ...string) (lost []store.Lost) {
	t.Helper()
	exec(t, pool, "insert into romancy.workers (id, label, lease_until) values ($1, 'slow', clock_timestamp() - interval '1 second')", worker)
	for _, id := range ids {
		exec(t, pool, "insert into romancy.instances (id, workflow, status, worker, token, ready_at) values ($1, 'order', 'running', $2, 1, now())", id, worker)
		lost = append(lost, store.Lost{Fence: store.Fence{ID: id, Token: 1, Worker: worker}, UntilMicros: time.Now().Add(-time.Hour).UnixMicro()})
	}
	return lost
}

func exec(t *testing.T, pool *pgxpool.Pool, statement string, arguments ...any) {
	t.Helper()
	if _, err := pool.Exec(t.Context(), statement, arguments...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

// state says how a run stands: status, deaths, workers counted, interruptions written down.
func state(t *testing.T, pool *pgxpool.Pool, id string) string {
	t.Helper()
	var status string
	var deaths, interruptions int
	var with []int64
	if err := pool.QueryRow(t.Context(), `select i.status, i.deaths, coalesce(i.died_with, '{}'),
			(select count(*) from romancy.interruptions x where x.instance_id = i.id and x.position = 0 and x.error ->> 'type' = 'lease_lost')
		from romancy.instances i where i.id = $1`, id).Scan(&status, &deaths, &with, &interruptions); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%s %d %v %d", status, deaths, with, interruptions)
}

func wantState(t *testing.T, pool *pgxpool.Pool, id, want string) {
	t.Helper()
	if got := state(t, pool, id); got != want {
		t.Errorf("%s is %q, want %q", id, got, want)
	}
}

func mustSend(t *testing.T, db sender, queue func(*pgx.Batch)) {
	t.Helper()
	if err := send(t, db, queue); err != nil {
		t.Fatal(err)
	}
}

func isLockTimeout(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "55P03"
}

// A takeover that comes before its worker says that it lived is undone, and one that comes after counts no death, also when the two
// are under way at the same time: then the second waits for the first, or passes the worker over.
func TestNoDeathStaysCountedOfAWorkerThatSaysThatItLived(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	takeOver := func(into *[]store.TakenOver) func(*pgx.Batch) {
		return func(b *pgx.Batch) { s.TakeOver(b, 100, false, 1, []byte(cause), into) }
	}
	sayLived := func(b *pgx.Batch) {
		b.Queue("set local lock_timeout = '50ms'")
		s.SayLived(b, []int64{7})
	}

	// The takeover is first.
	lost := lostLease(t, pool, 7, "first")
	taking, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taking.Rollback(context.Background()) }()
	var taken []store.TakenOver
	mustSend(t, taking, takeOver(&taken))
	if len(taken) != 1 || !taken[0].Stuck {
		t.Fatalf("taken over: %+v", taken)
	}
	if err := send(t, pool, sayLived); !isLockTimeout(err) {
		t.Fatalf("said while a takeover is under way: %v, want that it waits for that", err)
	}
	if err := taking.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	wantState(t, pool, "first", "stuck 1 [7] 0")
	var back []store.TakenBack
	for range 2 { // the second time nothing changes: an answer may be lost
		mustSend(t, pool, sayLived)
		mustSend(t, pool, func(b *pgx.Batch) { s.TakeBackDeaths(b, lost, &back) })
		wantState(t, pool, "first", "ready 0 [] 1")
	}

	// What is said is first.
	exec(t, pool, "delete from romancy.workers")
	lostLease(t, pool, 7, "second")
	saying, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = saying.Rollback(context.Background()) }()
	mustSend(t, saying, func(b *pgx.Batch) { s.SayLived(b, []int64{7}) })
	mustSend(t, pool, takeOver(&taken))
	if len(taken) != 0 {
		t.Fatalf("taken over while the worker says that it lived: %+v", taken)
	}
	if err := saying.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustSend(t, pool, takeOver(&taken))
	if len(taken) != 1 || taken[0].Stuck {
		t.Fatalf("taken over: %+v", taken)
	}
	wantState(t, pool, "second", "ready 0 [] 1")
}

// Only what was counted for the workers that lived is taken back, of runs in every state.
func TestOnlyWrongDeathsAreTakenBack(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	add := func(id, status string, deaths int, with []int64, failure string, diedAgo time.Duration) {
		exec(t, pool, `insert into romancy.instances (id, workflow, status, worker, token, ready_at, deaths, died_with, died_at, error)
			values ($1, 'order', $2, case when $2 = 'running' then 9 end, 2, now(), $3, $4, clock_timestamp() - $5::bigint * interval '1 microsecond', nullif($6, '')::json)`,
			id, status, deaths, with, diedAgo.Microseconds(), failure)
	}
	const long = 2 * time.Hour // before the leases in question ended
	add("stuck for another reason", "stuck", 1, []int64{7}, `{"type":"error","message":"\u0000"}`, 0)
	add("stuck, two of three lived", "stuck", 3, []int64{7, 5, 8}, cause, 0)
	add("of older builds, too", "waiting", 3, []int64{7}, "", 0)
	add("executes elsewhere", "running", 1, []int64{7}, "", 0)
	add("counted for another", "ready", 1, []int64{5}, "", long)
	add("has made progress", "ready", 0, nil, "", 0)
	add("never taken over", "running", 0, nil, "", long)
	var ask []store.Lost
	ended := time.Now().Add(-time.Hour).UnixMicro()
	want := map[string]string{
		"stuck for another reason": "stuck 0 [] 1", "stuck, two of three lived": "ready 1 [5] 2", "of older builds, too": "waiting 2 [] 1",
		"executes elsewhere": "running 0 [] 1", "counted for another": "ready 1 [5] 0", "has made progress": "ready 0 [] 1",
		"never taken over": "running 0 [] 0",
	}
	for id := range want {
		ask = append(ask, store.Lost{Fence: store.Fence{ID: id, Token: 1, Worker: 7}, UntilMicros: ended})
	}
	ask = append(ask, store.Lost{Fence: store.Fence{ID: "stuck, two of three lived", Token: 2, Worker: 8}, UntilMicros: ended},
		store.Lost{Fence: store.Fence{ID: "nobody", Token: 1, Worker: 7}, UntilMicros: ended})

	// A run that somebody holds is named, and asked for again.
	holding, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = holding.Rollback(context.Background()) }()
	if _, err := holding.Exec(t.Context(), "select from romancy.instances where id = 'executes elsewhere' for update"); err != nil {
		t.Fatal(err)
	}
	var back []store.TakenBack
	mustSend(t, pool, func(b *pgx.Batch) { s.TakeBackDeaths(b, ask, &back) })
	for _, run := range back {
		if run.Skipped != (run.ID == "executes elsewhere") || run.Freed != (run.ID == "stuck, two of three lived") {
			t.Errorf("the answer has %+v", run)
		}
	}
	if err := holding.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustSend(t, pool, func(b *pgx.Batch) { s.TakeBackDeaths(b, ask, &back) })
	for id, want := range want {
		wantState(t, pool, id, want)
	}
}

// A worker that leaves owning nothing is gone; one that still owns runs stays until its lease ends.
func TestAWorkerThatLeavesWithRunsStaysUntilItsLeaseEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	lostLease(t, pool, 7, "run")
	lostLease(t, pool, 8)
	mustSend(t, pool, func(b *pgx.Batch) {
		s.LeaveWorker(b, 7)
		s.LeaveWorker(b, 8)
	})
	var left, others int
	if err := pool.QueryRow(t.Context(), "select count(*) filter (where id = 7 and left_at is not null), count(*) filter (where id <> 7) from romancy.workers").Scan(&left, &others); err != nil {
		t.Fatal(err)
	}
	if left != 1 || others != 0 {
		t.Errorf("%d workers have left with runs, %d others are there; want the one", left, others)
	}
}

// Whatever a DBA sets for a role or a database, the lease's session renews.
func TestALeasesSessionDoesNotDependOnDefaults(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	s := newStore(t)
	for _, setting := range []string{
		"default_transaction_read_only = on", "default_transaction_isolation = 'serializable'", "statement_timeout = '7s'", "lock_timeout = 0",
		"idle_session_timeout = '1s'", "idle_in_transaction_session_timeout = '1s'",
	} {
		exec(t, direct, `do $$ begin execute format('alter database %I set `+"%s"+`', current_database(), `+"$s$"+setting+"$s$"+`); end $$`)
	}
	for name, url := range map[string]string{
		"direct": direct.Config().ConnString(), "transaction": pgtest.PgBouncer(t, direct.Config().ConnString(), "transaction"),
	} {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close(context.Background()) })
		ours, err := s.GuardLeaseSession(t.Context(), conn, time.Second, time.Minute)
		if err != nil || ours != (name == "direct") {
			t.Fatalf("%s: %t, %v", name, ours, err)
		}
		batch := &pgx.Batch{}
		if !ours {
			batch.Queue("begin isolation level read committed read write")
			s.GuardLease(batch, time.Second, time.Minute)
		}
		var settings string
		batch.Queue(`select concat_ws(' ', current_setting('transaction_read_only'), current_setting('transaction_isolation'), current_setting('statement_timeout'),
			current_setting('lock_timeout'), current_setting('idle_session_timeout'), current_setting('idle_in_transaction_session_timeout'))`).
			QueryRow(func(row pgx.Row) error { return row.Scan(&settings) })
		if !ours {
			batch.Queue("commit")
		}
		if err := conn.SendBatch(t.Context(), batch).Close(); err != nil || settings != "off read committed 1min 1s 0 0" {
			t.Errorf("%s: %q, %v", name, settings, err)
		}
	}
}
