package store_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

func eraseRecords(t *testing.T, pool *pgxpool.Pool, s *store.Store, ids ...string) (did store.ErasedRecords) {
	t.Helper()
	batch := &pgx.Batch{}
	s.EraseRecords(batch, ids, &did)
	if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
		t.Fatal(err)
	}
	return did
}

// Nothing of what a run has left is too much for one statement: neither many rows nor large ones.
func TestARunIsErasedAPortionAtATime(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	execAll(t, pool,
		`insert into romancy.instances (id, workflow, status, token, ready_at, ended_at) values ('long', 'order', 'failed', 1, now(), now()), ('large', 'order', 'failed', 1, now(), now())`,
		`alter table romancy.history alter column payload set storage external`,
		`insert into romancy.history (instance_id, position, token, kind, name) select 'long', n, 1, 'activity', 'charge' from generate_series(1, 20000) n`,
		`insert into romancy.attempts (instance_id, position, attempt, error) select 'long', n, 1, '{}' from generate_series(1, 20000) n`,
		`insert into romancy.interruptions (instance_id, position, number, token, worker, error) select 'long', n, 1, 1, 1, '{}' from generate_series(1, 20000) n`,
		`insert into romancy.history (instance_id, position, token, kind, name, payload) select 'large', n, 1, 'activity', 'charge', to_json(repeat('x', 4 << 20)) from generate_series(1, 12) n`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) select 'letters', 'direct', case when n % 2 = 0 then 'long' end, '1' from generate_series(1, 12000) n`)
	statements := 0
	for id, most := range map[string]int{"long": 3000, "large": 5} { // sixteen megabytes and one row
		for {
			did := eraseRecords(t, pool, s, id)
			if did.Deleted == 0 {
				break
			}
			if statements++; did.Deleted > most {
				t.Errorf("one statement has deleted %d rows of the %s run", did.Deleted, id)
			}
		}
	}
	if n := countRows(t, pool, "select (select count(*) from romancy.history) + (select count(*) from romancy.attempts) + (select count(*) from romancy.interruptions)"); n != 0 || statements > 24 {
		t.Errorf("%d rows are left after %d statements", n, statements)
	}
	page, statements := store.MailPage{More: true}, 0
	for page.More {
		batch := &pgx.Batch{}
		s.EraseMail(batch, []string{"long"}, []string{"long"}, &page)
		if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
			t.Fatal(err)
		}
		statements++
	}
	if n := countRows(t, pool, "select count(*) from romancy.mailbox"); n != 6000 || statements != 3 {
		t.Errorf("%d messages are left after %d statements, want 6000 of others after 3", n, statements)
	}
}

// Whichever of Retry and Erase has the row first decides: what is erased is not executed, and what is retried is not erased.
func TestRetryRunAndEraseRecordsExcludeEachOther(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	execAll(t, pool,
		`insert into romancy.instances (id, workflow, status, token, ready_at, ended_at)
		 values ('erased', 'order', 'failed', 1, now(), now()), ('retried', 'order', 'failed', 1, now(), now())`,
		`insert into romancy.history (instance_id, position, token, kind, name) select id, n, 1, 'activity', 'charge' from romancy.instances, generate_series(1, 10) n`)
	retry := func(id string) (did store.Revived) {
		t.Helper()
		batch := &pgx.Batch{}
		s.RetryRun(batch, store.Revive{Fence: store.Fence{ID: id, Token: 1}}, &did)
		if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
			t.Fatal(err)
		}
		return did
	}
	if did := eraseRecords(t, pool, s, "erased"); did.Deleted != 10 {
		t.Errorf("erased %+v", did)
	}
	if did := retry("erased"); did != (store.Revived{Drained: true}) {
		t.Errorf("RetryRun of a run that is being erased says %+v", did)
	}
	// It has the row, and has not committed yet.
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(t.Context(), "update romancy.instances set status = 'ready', ended_at = null, token = 2 where id = 'retried'"); err != nil {
		t.Fatal(err)
	}
	done := make(chan store.ErasedRecords, 1)
	go func() { done <- eraseRecords(t, pool, s, "retried") }()
	for countRows(t, pool, "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and query like '%EraseRecords%'") == 0 {
		time.Sleep(5 * time.Millisecond)
	}
	if err := tx.Commit(t.Context()); err != nil {
		t.Fatal(err)
	}
	if did := <-done; did.Deleted != 0 || len(did.Living) != 1 || did.Living[0] != "retried" {
		t.Errorf("EraseRecords of a run that was retried meanwhile says %+v", did)
	}
	if n := countRows(t, pool, "select count(*) from romancy.history where instance_id = 'retried'"); n != 10 {
		t.Errorf("%d records are left of a run that is retried", n)
	}
}
