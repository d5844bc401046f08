package store_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// prepared is a session as the committer has it, with every statement prepared.
func prepared(t *testing.T, pool *pgxpool.Pool, s *store.Store) session {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(conn.Release)
	for name, query := range s.Queries() {
		if _, err := conn.Exec(t.Context(), "prepare "+name+" as "+query, pgx.QueryExecModeSimpleProtocol); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	return session{name: "guarded", conn: conn.Conn(), guarded: true}
}

func execAll(t *testing.T, pool *pgxpool.Pool, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

// touched returns how many pages a statement touches that is rolled back, at most: what is changed by a part whose rows nothing else
// reads is not counted by the whole, so parts that change rows are added.
func (c session) touched(t *testing.T, s *store.Store, name, arguments string) (pages int) {
	t.Helper()
	err := pgx.BeginFunc(t.Context(), c.conn, func(tx pgx.Tx) error {
		batch := &pgx.Batch{}
		s.Guard(batch, time.Second)
		if err := tx.SendBatch(t.Context(), batch).Close(); err != nil {
			return err
		}
		var explained []byte
		if err := tx.QueryRow(t.Context(), "explain (analyze, buffers, format json) execute "+name+"("+arguments+")", pgx.QueryExecModeSimpleProtocol).Scan(&explained); err != nil {
			return err
		}
		var plans []struct {
			Plan planNode `json:"Plan"`
		}
		if err := json.Unmarshal(explained, &plans); err != nil {
			return err
		}
		pages = plans[0].Plan.Hit + plans[0].Plan.Read + plans[0].Plan.changed()
		return errRollback
	})
	if !errors.Is(err, errRollback) {
		t.Fatalf("%s(%s): %v", name, arguments, err)
	}
	return pages
}

type planNode struct {
	Type  string     `json:"Node Type"`
	Hit   int        `json:"Shared Hit Blocks"`
	Read  int        `json:"Shared Read Blocks"`
	Plans []planNode `json:"Plans"`
}

func (n planNode) changed() (pages int) {
	for _, part := range n.Plans {
		if part.Type == "ModifyTable" {
			pages += part.Hit + part.Read
		}
		pages += part.changed()
	}
	return pages
}

// What a run has not received is not touched by what it does, however much it is: neither when it waits, is woken or takes several
// messages, nor when it ends or continues as new, the first run of a line or a later one.
func TestNothingDependsOnWhatIsUnread(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	// Lines of two: former-X has continued as X. Of the first ones, what was published to former-X was not received.
	execAll(t, pool,
		`insert into romancy.workers (id, label, lease_until) values (1, 'a', now() + interval '1 day')`,
		`insert into romancy.instances (id, workflow, status, token, ready_at, worker, wake_channels)
		 select n, 'flow', case when n like '%parked' then 'waiting' else 'running' end, 1, now(), 1, '{letters}'
		 from unnest(array['busy', 'parked', 'line-busy', 'line-parked']) n`,
		`insert into romancy.instances (id, workflow, status, token, ready_at, ended_at, output)
		 select 'former-' || id, 'flow', 'continued', 1, to_timestamp(0), now(), json_build_object('continued_as', id) from romancy.instances where id like 'line-%'`,
		`update romancy.instances set line = 'former-' || id, continued_from = 'former-' || id where status in ('running', 'waiting') and id like 'line-%'`)
	unread := func(n int) {
		t.Helper()
		execAll(t, pool, fmt.Sprintf(`insert into romancy.mailbox (channel, mode, receiver, payload)
			select c, m, r, '{}' from generate_series(1, %d), unnest(array['busy', 'parked', 'former-line-busy', 'former-line-parked']) r,
			       unnest(array['letters', 'others']) c, unnest(array['direct', 'broadcast']) m`, n))
	}
	const wait = "'{%s}', '{1}', '{7}', '{letters}', '{false}', '{null}', '{null}', '{null}', '{null}', '{0}', '{receive}', '{null}', '{null}', '{false}', '{true}', 1"
	arguments := map[string][]string{
		"WaitRuns": {fmt.Sprintf(wait, "busy"), fmt.Sprintf(wait, "line-busy")},
		"WaitRun":  {"'busy', 1, 7, 'letters', null, null, null, null, 'receive', null, null, false, true, 1"}, //nolint:dupword // SQL
		"WakeRun":  {"'parked', 1, 7, 'letters', 1, 'receive', false"},
		"WakeRuns": {"'{parked,line-parked}', '{1,1}', '{7,7}', '{letters,letters}', '{false,false}', 1, '{0,0}', '{receive,receive}', '{false,false}'"},
		"LookForMail": {
			"'{parked,line-parked}', '{letters,letters}', '{false,false}', '{0,0}', '{false,true}'",
			"'{parked,line-parked}', '{none,none}', '{false,false}', '{0,0}', '{false,true}'",
		},
		"TakeMore":      {"'busy', 1, 7, 'letters', 10, false, 0, 1000000, 1", "'line-busy', 1, 7, 'letters', 10, false, 0, 1000000, 1"},
		"DeliverDirect": {"null, 0, null, 'former-line-parked', 'letters', '{}', null, 0", "null, 0, null, 'parked', 'letters', '{}', null, 0"},
		"FinishRun":     {"'busy', 1, 'completed', '{}', null, 1", "'line-busy', 1, 'failed', null, '{}', 1", "'line-busy', 1, 'completed', null, '{}', 1"},
		"FinishRuns":    {"'{busy,line-busy}', '{1,1}', '{completed,failed}', '{null,null}', '{null,null}', 1"},
		"ContinueRuns":  {"'{busy}', '{1}', '{next}', '{1}', 1", "'{line-busy}', '{1}', '{next}', '{1}', 1"},
		"CancelRun":     {"'parked', '{}', false", "'line-parked', '{}', false"},
		"SweepMailFor":  {"'{former-line-parked,parked}', '{}', '{}', 1000"},
	}
	measure := func(session session) map[string]int {
		pages := map[string]int{}
		for name, list := range arguments {
			for _, with := range list {
				_ = session.touched(t, s, name, with) // sets hint bits
				pages[name+"("+with+")"] = session.touched(t, s, name, with)
			}
		}
		return pages
	}
	// Plans are made once a connection: with empty tables, and with some messages there.
	early, late := prepared(t, pool, s), prepared(t, pool, s)
	measure(early)
	unread(500)
	few := map[string]map[string]int{"early": measure(early), "late": measure(late)}
	unread(25_000) // of each of four, in two modes, on two channels: 100,000 a run
	for plans, session := range map[string]session{"early": early, "late": late} {
		for ask, pages := range measure(session) {
			t.Logf("%5s touches %5d pages, with few unread %5d: %s", plans, pages, few[plans][ask], ask)
			if pages > few[plans][ask]+250 {
				t.Errorf("%s touches %d pages with 100,000 unread messages, %d with 2,000: %s", plans, pages, few[plans][ask], ask)
			}
		}
	}
}

// A message finds the run of its line that lives, and what an older build has addressed to that run itself is received as well, in
// the order of all; what was published to a former run is received by nobody.
func TestARunReceivesWhatIsForItsLineInOrder(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	execAll(t, pool, `insert into romancy.workers (id, label, lease_until) values (1, 'a', now() + interval '1 day')`,
		`insert into romancy.instances (id, workflow, status, token, ready_at, worker) values ('run-0', 'rounds', 'running', 1, now(), 1)`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) select 'letters', 'broadcast', 'run-0', '"published"' from generate_series(1, 500)`)
	send := func(b *pgx.Batch, to, body string) {
		s.DeliverMessages(b, []store.Deliver{{Target: to, Channel: "letters", Payload: []byte(body)}}, func(int, store.Delivered) {}, func(store.Sent) {})
	}
	batch := &pgx.Batch{}
	send(batch, "run-0", "1")
	for n := range 2 {
		s.ContinueRuns(batch, []store.Continue{{Fence: store.Fence{ID: fmt.Sprint("run-", n), Token: 1, Worker: 1}, NextID: fmt.Sprint("run-", n+1), Input: []byte(`1`)}}, func(string) {})
		batch.Queue("update romancy.instances set status = 'running', token = 1, worker = 1 where id = $1", fmt.Sprint("run-", n+1)) // claimed
		// By an older build: to the run that lives, and moved there from the former one.
		batch.Queue("insert into romancy.mailbox (channel, mode, receiver, payload) values ('letters', 'direct', $1, $2)", fmt.Sprint("run-", n+1), fmt.Sprint(10*n+2))
		send(batch, "run-0", fmt.Sprint(10*n+3))
		send(batch, fmt.Sprint("run-", n+1), fmt.Sprint(10*n+4))
	}
	var got store.Mail
	s.TakeMore(batch, store.More{Fence: store.Fence{ID: "run-2", Token: 1, Worker: 1}, Position: 1, Channel: "letters", Limit: 100, Bytes: 1 << 20}, func(took store.Mail) { got = took })
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	if bodies := bodiesOf(t, got.Messages); bodies != "1 2 3 4 12 13 14" {
		t.Errorf("received %q", bodies)
	}
	if n := countRows(t, pool, "select count(*) from romancy.mailbox where mode = 'direct'"); n != 0 {
		t.Errorf("%d messages are left", n)
	}
	// The next page of the sweep removes what was published to who has ended, and keeps what is for the line.
	batch = &pgx.Batch{}
	send(batch, "run-0", "20")
	page, removed := &store.Page{}, 0
	s.DiscardOrphanedMail(batch, page, 1000, &removed)
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	if left := countRows(t, pool, "select count(*) from romancy.mailbox"); removed != 500 || left != 1 {
		t.Errorf("%d removed, %d left; want the 500 that were published, and 1", removed, left)
	}
}

// Messages that an older build has addressed to a run which has continued as new are moved to the line: some by the end of that run,
// the others by the sweeps, also those that are committed later.
func TestMessagesOfAnOlderBuildAreMovedToTheLine(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	execAll(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, worker, line) values
			('b', 'rounds', 'running', 1, now(), 1, 'a'), ('a', 'rounds', 'continued', 1, now(), null, null)`,
		`update romancy.instances set ended_at = now(), output = '{"continued_as": "b"}' where id = 'a'`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) select 'letters', 'direct', 'b', to_json(n) from generate_series(1, 250) n`)
	batch := &pgx.Batch{}
	s.ContinueRuns(batch, []store.Continue{{Fence: store.Fence{ID: "b", Token: 1, Worker: 1}, NextID: "c", Input: []byte(`1`)}}, func(string) {})
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, pool, "select count(*) from romancy.mailbox where receiver = 'a'"); n != 100 {
		t.Errorf("%d were moved at once, want 100", n)
	}
	var found store.Roused
	batch = &pgx.Batch{}
	s.SweepMailFor(batch, []string{"b"}, nil, nil, 100, &found)
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	if !found.More || len(found.Forwarded) != 100 || found.Forwarded[0].Receiver != "c" {
		t.Errorf("more %t, %d moved: %+v; want 100 for c, and more", found.More, len(found.Forwarded), found.Forwarded[:1])
	}
	batch = &pgx.Batch{}
	s.SweepMail(batch, &store.Page{}, 1000, time.Second, &found)
	if err := pool.SendBatch(ctx, batch).Close(); err != nil {
		t.Fatal(err)
	}
	if n := countRows(t, pool, "select count(*) from romancy.mailbox where receiver = 'a'"); n != 250 || len(found.Forwarded) != 50 {
		t.Errorf("%d are moved, the last %d by the sweep; want all, 50", n, len(found.Forwarded))
	}
}

// What a run must not receive when it is retried goes in portions, and what was sent to it alone before it failed stays.
func TestWhatARetriedRunMustNotReceiveIsDiscardedInPortions(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	execAll(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, ended_at, line) values
			('failed', 'flow', 'failed', 1, to_timestamp(0), now(), null), ('cancelled', 'flow', 'cancelled', 1, to_timestamp(0), now(), 'first')`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) select c, m, r, to_json(repeat('x', 100))
		 from generate_series(1, 700), unnest(array['letters', 'others']) c, unnest(array['direct', 'broadcast']) m, unnest(array['failed', 'cancelled', 'first']) r`,
		`insert into romancy.mailbox (channel, mode, receiver, payload) select 'large', 'broadcast', 'failed', to_json(repeat(md5(n::text), 100000)) from generate_series(1, 3) n`)
	for id, want := range map[string]struct{ own, line, statements int }{"failed": {1400, 2800, 3}, "cancelled": {0, 1400, 3}} {
		page, statements := &store.UnreceivedPage{More: true}, 0
		for ; page.More; statements++ {
			before := countRows(t, pool, "select count(*) from romancy.mailbox")
			batch := &pgx.Batch{}
			s.DiscardUnreceived(batch, id, page)
			if err := pool.SendBatch(t.Context(), batch).Close(); err != nil {
				t.Fatal(err)
			}
			if n := before - countRows(t, pool, "select count(*) from romancy.mailbox"); n > 2000 || statements > 10 {
				t.Fatalf("%d removed by statement %d", n, statements)
			}
		}
		own := countRows(t, pool, "select count(*) from romancy.mailbox where receiver = '"+id+"'")
		line := countRows(t, pool, "select count(*) from romancy.mailbox where receiver = 'first'")
		if own != want.own || id == "cancelled" && line != want.line || statements < want.statements {
			t.Errorf("%s: %d left of its own and %d of the line after %d statements; want %+v", id, own, line, statements, want)
		}
	}
}

func countRows(t *testing.T, pool *pgxpool.Pool, query string) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

// bodiesOf returns the bodies of a list of messages.
func bodiesOf(t *testing.T, messages []byte) string {
	t.Helper()
	var list []struct {
		Body json.RawMessage `json:"body"`
	}
	if err := json.Unmarshal(messages, &list); err != nil {
		t.Fatalf("%s: %v", messages, err)
	}
	bodies := make([]string, len(list))
	for i, message := range list {
		bodies[i] = string(message.Body)
	}
	return strings.Join(bodies, " ")
}
