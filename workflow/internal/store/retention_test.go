package store_test

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Ended runs are deleted a batch at a time, those that ended first first, however many ended at the same moment; what lives
// and what ended lately stays.
func TestDeleteEndedTakesABatchAtATime(t *testing.T) {
	t.Parallel()
	for name, ended := range map[string]string{
		"one after the other": "now() - interval '2 hours' + n * interval '1 second'",
		"all at once":         "now() - interval '2 hours' + 0 * n * interval '1 second'",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			s := newStore(t)
			ctx := t.Context()
			if _, err := pool.Exec(ctx, `insert into romancy.instances (id, workflow, status, token, ready_at, ended_at)
					select 'old-' || n, 'order', 'completed', 1, now(), `+ended+` from generate_series(1, 10) n
					union all select 'young', 'order', 'failed', 1, now(), now()
					union all select 'live', 'order', 'waiting', 1, now(), null`); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(ctx, `insert into romancy.history (instance_id, position, token, kind, name)
					select id, 1, 1, 'activity', 'charge' from romancy.instances`); err != nil {
				t.Fatal(err)
			}
			var deleted, left []int
			page := &store.EndedPage{Full: true}
			for page.Full {
				begin, drained := *page, 0
				batch := &pgx.Batch{}
				s.DeleteEnded(batch, time.Hour, 3, page)
				if err := pool.SendBatch(ctx, batch).Close(); err != nil {
					t.Fatal(err)
				}
				if len(page.Filled) == 0 || page.Deleted != 0 {
					t.Fatalf("%d runs were deleted of a page in which %q have history", page.Deleted, page.Filled)
				}
				filled := page.Filled
				*page = store.EndedPage{Ended: begin.Ended, IDs: begin.IDs}
				batch = &pgx.Batch{}
				s.DrainEnded(batch, filled, time.Hour, &drained)
				s.DeleteEnded(batch, time.Hour, 3, page)
				if err := pool.SendBatch(ctx, batch).Close(); err != nil {
					t.Fatal(err)
				}
				var rows, histories int
				if err := pool.QueryRow(ctx, "select (select count(*) from romancy.instances), (select count(*) from romancy.history)").Scan(&rows, &histories); err != nil || rows != histories {
					t.Fatalf("%d runs and %d rows of history, %v; want one each", rows, histories, err)
				}
				deleted, left = append(deleted, page.Deleted), append(left, rows)
			}
			if !slices.Equal(deleted, []int{3, 3, 3, 1}) || !slices.Equal(left, []int{9, 6, 3, 2}) {
				t.Errorf("deleted %v, which left %v; want 3 at a time and 2 left", deleted, left)
			}
		})
	}
}

// What ended runs have left goes in portions of a thousand rows of a kind and a few megabytes, and the row of a run when nothing of it
// is left.
func TestWhatEndedRunsHaveLeftGoesInPortions(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	execAll(t, pool,
		`insert into romancy.instances (id, workflow, status, token, ready_at, ended_at)
		 select 'run-' || n, 'order', 'failed', 1, now(), now() - interval '1 day' from generate_series(1, 3) n`,
		`insert into romancy.history (instance_id, position, token, kind, name, payload) select 'run-' || n, p, 1, 'activity', 'charge', '{}' from generate_series(1, 3) n, generate_series(1, 20000) p`,
		`insert into romancy.attempts (instance_id, position, attempt, error) select 'run-2', 1, n, '{}' from generate_series(1, 3500) n`,
		`insert into romancy.interruptions (instance_id, position, number, token, worker, error) select 'run-2', 1, n, 1, 1, '{}' from generate_series(1, 3500) n`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) select 'letters', 'direct', 'run-3', '{}' from generate_series(1, 3500)`,
		// Random, so that it is as large as it looks.
		`insert into romancy.history (instance_id, position, token, kind, name, payload)
		 select 'run-1', 20000 + n, 1, 'activity', 'charge', to_json((select string_agg(md5(random()::text), '') from generate_series(1, 65536 + n))) from generate_series(1, 40) n`)
	page, statements := &store.EndedPage{}, 0
	rows := func() []int {
		var counts []int
		for _, table := range []string{"history", "attempts", "interruptions", "mailbox"} {
			counts = append(counts, countRows(t, pool, "select count(*) from romancy."+table))
		}
		return counts
	}
	left := rows()
	for {
		removed := 0
		batch := &pgx.Batch{}
		if len(page.Filled) > 0 {
			s.DrainEnded(batch, page.Filled, time.Hour, &removed)
		}
		page = &store.EndedPage{}
		s.DeleteEnded(batch, time.Hour, 100, page)
		if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
			t.Fatal(err)
		}
		statements++
		sum, now := 0, rows()
		for i, n := range now {
			if left[i]-n > 1000 {
				t.Errorf("statement %d removed %d rows of a kind", statements, left[i]-n)
			}
			sum += left[i] - n
		}
		if sum != removed {
			t.Errorf("%d rows removed, it says %d", sum, removed)
		}
		if left = now; len(page.Filled) == 0 {
			break
		}
	}
	// 61 of a thousand at least, and those with two megabytes in each row: eight at most go at once.
	if n := countRows(t, pool, "select count(*) from romancy.instances"); n != 0 || statements < 65 || statements > 75 {
		t.Errorf("%d runs are left after %d statements", n, statements)
	}
}

// What a Retry has locked is not drained. With the first portion that is deleted of a run its row is marked, also that of one which is
// kept because it leads to another; RetryRun changes nothing then and says so.
func TestRetryRunAndDrainEndedExcludeEachOther(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	execAll(t, pool,
		`insert into romancy.instances (id, workflow, status, token, ready_at, ended_at, output) values
		 ('failed', 'order', 'failed', 1, now(), now() - interval '1 day', null),
		 ('former', 'order', 'continued', 1, now(), now() - interval '1 day', '{"continued_as": "heir"}'),
		 ('heir', 'order', 'waiting', 1, now(), null, null)`,
		`insert into romancy.history (instance_id, position, token, kind, name) select id, n, 1, 'activity', 'charge' from romancy.instances, generate_series(1, 1500) n`)
	drain := func() (removed int) {
		t.Helper()
		batch := &pgx.Batch{}
		s.DrainEnded(batch, []string{"failed", "former", "heir"}, time.Hour, &removed)
		if err := pool.SendBatch(ctx, batch).Close(); err != nil {
			t.Fatal(err)
		}
		return removed
	}
	retry := func(tx pgx.Tx) (did store.Revived) {
		t.Helper()
		batch := &pgx.Batch{}
		s.RetryRun(batch, store.Revive{Fence: store.Fence{ID: "failed", Token: 1}, Forget: []int32{1500}}, &did)
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			t.Fatal(err)
		}
		return did
	}
	marked := func(id string) bool {
		t.Helper()
		return countRows(t, pool, "select count(*) from romancy.instances where drained_at is not null and id = '"+id+"'") == 1
	}
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if did := retry(tx); did != (store.Revived{Workflow: "order"}) {
		t.Errorf("RetryRun says %+v", did)
	}
	if n := drain(); n != 1000 || marked("failed") || !marked("former") {
		t.Errorf("%d rows removed while it is retried; it is marked: %t, the former run: %t", n, marked("failed"), marked("former"))
	}
	if n := countRows(t, pool, "select count(*) from romancy.history where instance_id = 'failed'"); n != 1500 {
		t.Errorf("%d records are left of a run that is retried", n)
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if n := drain(); n != 1000 || !marked("failed") {
		t.Errorf("%d rows removed; it is marked: %t", n, marked("failed"))
	}
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if did := retry(tx); did != (store.Revived{Drained: true}) {
			t.Errorf("RetryRun of a run that is marked says %+v", did)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, pool, "select count(*) from romancy.instances where id = 'failed' and status = 'failed' and token = 1"); n != 1 {
		t.Error("RetryRun has changed a run that is marked")
	}
	if n := countRows(t, pool, "select count(*) from romancy.history where instance_id = 'heir'"); n != 1500 || marked("heir") {
		t.Errorf("of a run that lives %d records are left", n)
	}
}
