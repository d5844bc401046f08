package store_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Whatever an owner writes waits for whoever is just taking its run away, and then changes nothing: the state that the
// statement began with is not enough.
func TestNothingIsWrittenOfARunThatIsJustTakenAway(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	const id, token, position = "run", 1, 7
	fence := store.Fence{ID: id, Token: token, Worker: 1}
	done := func() { t.Error("it is said to be done") }
	nobody := store.Fence{ID: "nobody", Token: token, Worker: 1} // makes many of one
	for name, write := range map[string]func(*pgx.Batch){
		"append": func(b *pgx.Batch) {
			s.AppendHistory(b, []store.Append{{Fence: fence, Position: position, Kind: journal.Activity, Name: "charge", Payload: []byte(`1`)}},
				func(store.Place) { done() })
		},
		"append among others": func(b *pgx.Batch) {
			s.AppendHistory(b, []store.Append{
				{Fence: fence, Position: position, Kind: journal.Activity, Name: "charge", Payload: []byte(`1`)}, {Fence: nobody, Position: position},
			}, func(store.Place) { done() })
		},
		"fail": func(b *pgx.Batch) {
			s.FailRuns(b, []store.Fail{{Fence: fence, Position: position, Payload: []byte(`1`)}}, func(store.Place) { done() })
		},
		"retry": func(b *pgx.Batch) {
			s.RetrySteps(b, []store.Retry{{Fence: fence, Position: position, Attempt: 1, Error: []byte(`{}`)}}, func(int, store.Waited) { done() })
		},
		"wait": func(b *pgx.Batch) {
			now := time.Now().UnixMicro()
			s.WaitRuns(b, []store.Wait{{Fence: fence, Position: position, Kind: journal.Receive, Channel: "c", AtMicros: &now}}, func(int, store.Waited) { done() })
		},
		"wait for an event": func(b *pgx.Batch) {
			wait := store.Wait{Fence: fence, Position: position}
			s.WaitEvents(b, []store.WaitEvent{{Wait: wait, EventWait: store.EventWait{Type: "paid", Attributes: []byte(`{}`)}}}, func(int, store.Waited) { done() })
		},
		"send": func(b *pgx.Batch) {
			s.DeliverMessages(b, []store.Deliver{{Fence: fence, Position: position, Target: "other", Channel: "c", Payload: []byte(`1`)}},
				func(int, store.Delivered) { done() }, func(store.Sent) { done() })
		},
		"send among others": func(b *pgx.Batch) {
			s.DeliverMessages(b, []store.Deliver{
				{Fence: fence, Position: position, Target: "other", Channel: "c", Payload: []byte(`1`)}, {Fence: nobody, Position: position, Target: "other", Channel: "c"},
			}, func(int, store.Delivered) { done() }, func(store.Sent) { done() })
		},
		"publish": func(b *pgx.Batch) {
			s.DeliverMessages(b, []store.Deliver{{Fence: fence, Position: position, Channel: "shared", Payload: []byte(`1`)}},
				func(int, store.Delivered) { done() }, func(store.Sent) { done() })
		},
		"send an event": func(b *pgx.Batch) {
			event := store.SendEvent{Fence: fence, Position: position, Type: "paid", Source: "shop", EventID: "1", Attributes: []byte(`{}`), Data: []byte(`1`), KeepMicros: 1e9}
			s.SendEvents(b, []store.SendEvent{event}, func(int, bool) { done() }, func(store.SentEvent) { done() })
		},
		"subscribe": func(b *pgx.Batch) {
			s.SubscribeRuns(b, []store.Subscribe{{Fence: fence, Position: position, Channel: "news", Mode: "broadcast"}}, func(int, string) { done() })
		},
		"finish": func(b *pgx.Batch) {
			s.FinishRuns(b, []store.Finish{{Fence: fence, Status: "completed", Output: []byte(`1`)}}, func(string) { done() })
		},
		"finish among others": func(b *pgx.Batch) {
			s.FinishRuns(b, []store.Finish{{Fence: fence, Status: "completed", Output: []byte(`1`)}, {Fence: nobody, Status: "completed"}}, func(string) { done() })
		},
	} {
		t.Log(name)
		takeAwayDuring(t, pool, write)
	}
}

// takeAwayDuring has a statement that writes of a run meet a transaction which takes the run away.
func takeAwayDuring(t *testing.T, pool *pgxpool.Pool, write func(*pgx.Batch)) {
	t.Helper()
	ctx := t.Context()
	if _, err := pool.Exec(ctx, `truncate romancy.instances, romancy.history, romancy.attempts, romancy.mailbox, romancy.events, romancy.subscriptions;
		insert into romancy.instances (id, workflow, status, worker, token, ready_at) values
			('run', 'order', 'running', 1, 1, now()), ('other', 'order', 'running', 1, 1, now());
		insert into romancy.subscriptions (instance_id, channel, mode) values ('other', 'shared', 'competing')`); err != nil {
		t.Fatal(err)
	}
	taking, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taking.Rollback(ctx) }()
	if _, err := taking.Exec(ctx, "update romancy.instances set status = 'ready', worker = null, token = token + 1 where id = 'run'"); err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	batch := &pgx.Batch{}
	write(batch)
	written := make(chan error, 1)
	go func() { written <- conn.SendBatch(ctx, batch).Close() }()
	for waits := false; !waits; {
		select {
		case err := <-written:
			t.Fatalf("it did not wait: %v", err)
		default:
		}
		const asked = "select exists (select from pg_stat_activity where pid = $1 and wait_event_type = 'Lock')"
		if err := pool.QueryRow(ctx, asked, conn.Conn().PgConn().PID()).Scan(&waits); err != nil {
			t.Fatal(err)
		}
	}
	if err := taking.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	var rows int
	const left = `select (select count(*) from romancy.history) + (select count(*) from romancy.attempts) + (select count(*) from romancy.mailbox)
		+ (select count(*) from romancy.events) + (select count(*) from romancy.subscriptions where instance_id = 'run')
		+ (select count(*) from romancy.instances where id = 'run' and (status <> 'ready' or compensating))`
	if err := pool.QueryRow(ctx, left).Scan(&rows); err != nil || rows != 0 {
		t.Errorf("%d rows were written, %v", rows, err)
	}
}
