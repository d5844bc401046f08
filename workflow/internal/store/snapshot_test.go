package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// While an old snapshot is open anywhere in the database, whatever has been ready, due, owned or sent leaves an index entry
// that nothing may remove. Looks from the low-water marks on do not read them; looks from the beginning read them all.
func TestLooksFromTheMarksStayCheapWhileAnOldSnapshotIsOpen(t *testing.T) {
	t.Parallel()
	const passed = 30_000
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	holder, err := pgx.ConnectConfig(ctx, pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = holder.Close(ctx) }) // ends the transaction, whatever comes back
	if _, err := holder.Exec(ctx, "begin isolation level repeatable read; select count(*) from romancy.instances"); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	reader := session{name: "guarded", conn: conn.Conn(), guarded: true}
	for name, query := range s.Queries() {
		if _, err := conn.Exec(ctx, "prepare "+name+" as "+query, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	if _, err := pool.Exec(ctx, "insert into romancy.workers (label, lease_until) values ('a', now() + interval '1 day'), ('b', now() + interval '1 day')"); err != nil {
		t.Fatal(err)
	}
	fresh := map[string]int{}
	looks := func(now int64) map[string][2]string {
		return map[string][2]string{ // from the beginning, and from the mark
			"ClaimReadyFrom": {readyFrom("1000000", 0), readyFrom("0", now)},
			"SweepDeadlines": {"false, 100, 0, 0, 3000000", fmt.Sprintf("false, 100, 0, %d, 0", now)},
			"NextDeadline":   {"0", fmt.Sprint(now)},
			"ColdDeadlines":  {"array['order'], 30000000, 100, 0", fmt.Sprintf("array['order'], 30000000, 100, %d", now)},
			"TakeOver":       {"100, true, 5, '{}'", "100, false, 5, '{}'"},
			"SweepMail":      {"0, 100, 0", fmt.Sprintf("%d, 100, 0", passed)},
			"LookForMail":    {"array['none'], array['jobs'], array[true], array[0], array[false]", fmt.Sprintf("array['none'], array['jobs'], array[true], array[%d], array[false]", passed+1)},
			"SweepMailFor":   {"array[]::text[], array['jobs'], array[0], 1000", fmt.Sprintf("array[]::text[], array['jobs'], array[%d], 1000", passed+1)},
			"WakeRuns":       {"'{parked}', '{1}', '{7}', '{jobs}', '{true}', 1, '{0}', '{receive}', '{false}'", fmt.Sprintf("'{parked}', '{1}', '{7}', '{jobs}', '{true}', 1, '{%d}', '{receive}', '{false}'", passed+1)},
			"WaitRuns":       {waitArguments(0), waitArguments(passed + 1)},
		}
	}
	for name, arguments := range looks(0) {
		fresh[name] = reader.buffers(t, s, name, arguments[0])
	}
	passThrough(t, pool, passed)
	var now int64
	if err := pool.QueryRow(ctx, "select (extract(epoch from clock_timestamp()) * 1000000)::bigint").Scan(&now); err != nil {
		t.Fatal(err)
	}
	for name, arguments := range looks(now) {
		all, marked := reader.buffers(t, s, name, arguments[0]), reader.buffers(t, s, name, arguments[1])
		t.Logf("%-15s touches %5d pages at first, later %5d from the beginning, %5d from the mark", name, fresh[name], all, marked)
		if marked > fresh[name]+100 {
			t.Errorf("%s touches %d pages after %d have passed, %d before", name, marked, passed, fresh[name])
		}
		if all < marked+200 {
			t.Errorf("%s touches only %d pages from the beginning: this test shows nothing", name, all)
		}
	}
}

func readyFrom(margin string, since int64) string {
	return fmt.Sprintf("array['order'], 1, array[100], 100, %s, array['order', 'order', 'order'], array[9, 0, -1]::smallint[], array[null, %[2]d, null], array[1, 0, -9]::smallint[]", margin, since)
}

func waitArguments(since int) string {
	const none = "'{null}'"
	return fmt.Sprintf("'{busy}', '{1}', '{7}', '{jobs}', '{true}', %[1]s, %[1]s, %[1]s, %[1]s, '{%[2]d}', '{receive}', %[1]s, %[1]s, '{false}', '{true}', 2", none, since)
}

// passThrough leaves behind what n runs and n messages leave that were ready, owned, parked, or sent, and are no more. One run
// is parked and one executes.
func passThrough(t *testing.T, pool *pgxpool.Pool, n int) {
	t.Helper()
	for _, statement := range []string{
		`insert into romancy.instances (id, workflow, status, token, ready_at, input)
		 select 'run-' || n, 'order', 'ready', 0, clock_timestamp(), '{}' from generate_series(1, $1::integer) n`,
		`update romancy.instances set status = 'running', worker = 1, token = 1 where $1::integer > 0`,
		`update romancy.instances set status = 'waiting', wake_at = clock_timestamp() where $1::integer > 0`,
		`update romancy.instances set status = 'completed', worker = null, wake_at = null where $1::integer > 0`,
		`insert into romancy.mailbox (channel, mode, payload) select 'jobs', 'competing', '{}' from generate_series(1, $1::integer)`,
		`delete from romancy.mailbox where $1::integer > 0`,
		`insert into romancy.instances (id, workflow, status, token, ready_at, worker, wake_channels)
		 select 'parked', 'order', 'waiting', 1, clock_timestamp(), 1, array['jobs'] where $1::integer > 0`,
		`insert into romancy.instances (id, workflow, status, token, ready_at, worker)
		 select 'busy', 'order', 'running', 1, clock_timestamp(), 2 where $1::integer > 0`,
		`insert into romancy.subscriptions (instance_id, channel, mode) select 'parked', 'jobs', 'competing' where $1::integer > 0`,
	} {
		if _, err := pool.Exec(t.Context(), statement, n); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// buffers returns how many pages a statement touches that is rolled back.
func (c session) buffers(t *testing.T, s *store.Store, name, arguments string) (pages int) {
	t.Helper()
	ctx := t.Context()
	err := pgx.BeginFunc(ctx, c.conn, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		s.Guard(batch, time.Second)
		if err := tx.SendBatch(ctx, batch).Close(); err != nil {
			return err
		}
		var explained []byte
		if err := tx.QueryRow(ctx, "explain (analyze, buffers, format json) execute "+name+"("+arguments+")", pgx.QueryExecModeSimpleProtocol).Scan(&explained); err != nil {
			return err
		}
		var plans []struct {
			Plan struct {
				Hit  int `json:"Shared Hit Blocks"`
				Read int `json:"Shared Read Blocks"`
			} `json:"Plan"`
		}
		if err := json.Unmarshal(explained, &plans); err != nil {
			return err
		}
		pages = plans[0].Plan.Hit + plans[0].Plan.Read
		return errRollback
	})
	if !errors.Is(err, errRollback) {
		t.Fatalf("%s(%s): %v", name, arguments, err)
	}
	return pages
}
