package store_test

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Every run that the statements may meet: in every status, with deadlines and mail or without, and some that others have continued as.
const everyRun = `
	insert into romancy.workers (id, label, lease_until) overriding system value values
		(1, 'alive', clock_timestamp() + interval '1 hour'), (2, 'dead', clock_timestamp() - interval '1 hour');
	insert into romancy.instances (id, workflow, status, token, ready_at, worker, wake_at, wake_position, wake_channels, input, compensating, output)
	select s || '-' || d || '-' || m || case when c then '-undoing' else '' end, 'flow', s, 5, to_timestamp(0), 1,
	       case d when 'past' then to_timestamp(1000) when 'future' then to_timestamp(10000000000) end, 3, array['letters'], '{"a":1}', c,
	       case s when 'continued' then '{"continued_as":"waiting-none-none"}'::json end
	from unnest(array['ready', 'running', 'waiting', 'stuck', 'completed', 'failed', 'cancelled', 'continued']) s,
	     unnest(array['none', 'past', 'future']) d, unnest(array['none', 'mail']) m, unnest(array[false, true]) c
	where s in ('running', 'waiting') or d = 'none';
	insert into romancy.instances (id, workflow, status, token, ready_at, worker, wake_channels, input, line)
	select s || '-mail-of-' || l, 'flow', s, 5, to_timestamp(0), 1, array['letters'], '{"a":1}', l
	from (values ('running', 'continued-none-mail'), ('waiting', 'continued-none-none'), ('waiting', 'continued-none-mail-undoing')) as lines(s, l);
	update romancy.instances set cancel = '{}' where id like '%undoing' and status = 'running';
	insert into romancy.mailbox (channel, mode, receiver, sender, payload, metadata, created_at)
	select ch, mode, id, 'somebody', to_json(id || n), '{"k":"v"}', to_timestamp(n)
	from romancy.instances, generate_series(1, 2) n, unnest(array['letters', 'others']) ch, unnest(array['direct', 'broadcast']) mode
	where id like '%mail%' order by n desc, id, ch, mode;
	insert into romancy.mailbox (channel, mode, payload) values ('letters', 'competing', '"for whoever"');
	insert into romancy.subscriptions (instance_id, channel, mode) select id, 'letters', 'direct' from romancy.instances where id like '%mail%';
	insert into romancy.event_waits (instance_id, type, names, attributes, seen) select id, 'paid', '{}', '{}', '{}' from romancy.instances;
	insert into romancy.history (instance_id, position, token, kind, name) select id, 1, 5, 'activity', 'first' from romancy.instances`

// What is there, without ids and times that differ from one execution to the next.
const everything = `select json_build_object(
	'instances', (select json_agg(json_build_array(id, status, worker, token, wake_at, wake_position, wake_channels, output, error, ended_at is null, input, trace, priority) order by id) from romancy.instances),
	'history', (select json_agg(json_build_array(instance_id, position, token, worker, kind, name, payload) order by instance_id, position) from romancy.history),
	'mailbox', (select json_agg(json_build_array(channel, mode, receiver, sender, payload, metadata) order by channel, mode, receiver, sender, payload::text) from romancy.mailbox),
	'subscriptions', (select json_agg(json_build_array(instance_id, channel, mode) order by 1::text, instance_id) from romancy.subscriptions),
	'waits', (select json_agg(instance_id order by instance_id) from romancy.event_waits))::text`

// A statement for a single operation does what the one for many does with it, whatever it meets: the same answers, and the same rows.
func TestASingleOperationIsCarriedOutLikeOneOfMany(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	pool := pgtest.Pool(t)
	s := newStore(t)
	if _, err := pool.Exec(ctx, everyRun); err != nil {
		t.Fatal(err)
	}
	rows, err := pool.Query(ctx, "select id from romancy.instances order by id")
	if err != nil {
		t.Fatal(err)
	}
	ids, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	conn, err := pool.Acquire(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := s.GuardSession(ctx, conn.Conn(), time.Minute); err != nil {
		t.Fatal(err)
	}
	nobody, compared := store.Fence{ID: "nobody", Token: 5, Worker: 1}, 0
	for _, id := range append(ids, "unknown") {
		for _, owner := range []store.Fence{{Token: 4, Worker: 1}, {Token: 5, Worker: 1}, {Token: 5, Worker: 3}} {
			fence := store.Fence{ID: id, Token: owner.Token, Worker: owner.Worker}
			nobody.Worker = fence.Worker
			for name, operation := range singles(s, fence, nobody) {
				alone, left := carriedOut(ctx, t, conn.Conn(), func(b *pgx.Batch, answer func(...any)) { operation(b, answer, false) })
				among, leftAmong := carriedOut(ctx, t, conn.Conn(), func(b *pgx.Batch, answer func(...any)) { operation(b, answer, true) })
				if alone != among {
					t.Errorf("%s of %s by %+v answers %s alone and %s among others", name, id, owner, alone, among)
				}
				if left != leftAmong {
					t.Errorf("%s of %s by %+v leaves, alone and among others:\n%s\n%s", name, id, owner, left, leftAmong)
				}
				compared++
			}
		}
	}
	t.Logf("%d compared", compared)
}

// singles returns operations on a run that have a statement for one alone. among: with another, of a run that does not exist.
func singles(s *store.Store, fence, nobody store.Fence) map[string]func(b *pgx.Batch, answer func(...any), among bool) {
	all := map[string]func(b *pgx.Batch, answer func(...any), among bool){}
	for _, position := range []int32{1, 2} { // the first is taken
		all[fmt.Sprint("append at ", position)] = func(b *pgx.Batch, answer func(...any), among bool) {
			rows := []store.Append{{Fence: fence, Position: position, Kind: journal.Activity, Name: "charge", Payload: []byte(`{"output":1}`)}}
			if among {
				rows = append(rows, store.Append{Fence: nobody, Position: 1, Kind: journal.Activity})
			}
			s.AppendHistory(b, rows, func(p store.Place) { answer(p) })
		}
	}
	for _, status := range []string{"completed", "failed", "cancelled", "stuck"} {
		all["finish as "+status] = func(b *pgx.Batch, answer func(...any), among bool) {
			rows := []store.Finish{{Fence: fence, Status: status, Output: []byte(`1`), Error: []byte(`{}`)}}
			if among {
				rows = append(rows, store.Finish{Fence: nobody, Status: "completed"})
			}
			s.FinishRuns(b, rows, func(id string) { answer(id) })
		}
	}
	for _, worker := range []int64{0, 1} {
		all[fmt.Sprint("start as of ", worker)] = func(b *pgx.Batch, answer func(...any), among bool) {
			rows := []store.Start{{ID: fence.ID, Workflow: "flow", Input: []byte(`{"n":1}`), Worker: worker, Trace: []byte(`{}`), Priority: 2}}
			if among {
				rows = append(rows, store.Start{ID: "running-none-none", Workflow: "flow"})
			}
			s.StartRuns(b, rows, func(id string) { answer(id) })
		}
	}
	for _, worker := range []int64{1, 2, 3} {
		for _, ask := range []store.Wake{
			{Position: 2, Channel: "letters", Kind: journal.Receive},
			{Position: 2, Channel: "letters", Kind: journal.Select, Nudged: true},
			{Position: 2, Channel: "nothing", Kind: journal.Receive},
			{},
			{Nudged: true},
		} {
			ask.Fence, ask.Worker, ask.Heir = fence, worker, isHeir(fence)
			all[fmt.Sprintf("wake by %d, %+v", worker, ask)] = func(b *pgx.Batch, answer func(...any), among bool) {
				rows := []store.Wake{ask}
				if among {
					rows = append(rows, store.Wake{Fence: store.Fence{ID: "nobody", Token: 5, Worker: worker}})
				}
				s.WakeRuns(b, rows, func(ord int, w store.Waited) {
					answer(ord, w.Outcome, string(w.Message), w.FiresAtMicros, w.RemainingMicros == nil, w.Shared, w.NowMicros != 0)
				})
			}
		}
	}
	past, future := int64(1_000_000_000), int64(10_000_000_000_000_000) // by which the database's clock can tell them apart
	for name, ask := range map[string]store.Wait{
		"for mail":                {Position: 2, Channel: "letters", Kind: journal.Receive},
		"for mail, and two":       {Position: 2, Channel: "letters", Kind: journal.Select, Channels: []string{"letters", "others"}},
		"for mail that is not":    {Position: 2, Channel: "nothing", Kind: journal.Receive},
		"for mail in time":        {Position: 3, Channel: "letters", Kind: journal.Receive, TimerPosition: 2, TimerName: "limit", AtMicros: &future},
		"for mail too late":       {Position: 3, Channel: "nothing", Kind: journal.Receive, TimerPosition: 2, TimerName: "limit", AtMicros: &past},
		"at a position taken":     {Position: 1, Channel: "letters", Kind: journal.Receive},
		"for long":                {TimerPosition: 2, TimerName: "long", AtMicros: &future},
		"for long, but nudged":    {AtMicros: &future, NudgeMicros: &past},
		"for no time":             {TimerPosition: 2, TimerName: "none", AtMicros: &past},
		"for long without a park": {AtMicros: &future, Stay: true},
		"for mail, heeding":       {Position: 2, Channel: "letters", Kind: journal.Receive, Heeds: true},
		"for long, heeding":       {TimerPosition: 2, TimerName: "long", AtMicros: &future, Heeds: true},
	} {
		ask.Fence, ask.Heir = fence, isHeir(fence)
		all["wait "+name] = func(b *pgx.Batch, answer func(...any), among bool) {
			rows := []store.Wait{ask}
			if among {
				rows = append(rows, store.Wait{Fence: nobody})
			}
			s.WaitRuns(b, rows, func(ord int, w store.Waited) {
				answer(ord, w.Outcome, string(w.Message), w.FiresAtMicros, w.RemainingMicros == nil, w.Shared, w.NowMicros != 0)
			})
		}
	}
	for name, sender := range map[string]store.Deliver{
		"outside": {}, "a run": {Fence: store.Fence{ID: "running-none-none", Token: 5, Worker: 1}, Position: 2},
		"a run that is gone": {Fence: store.Fence{ID: "running-none-none", Token: 4, Worker: 1}, Position: 2},
	} {
		all["send from "+name] = func(b *pgx.Batch, answer func(...any), among bool) {
			ask := sender
			ask.Target, ask.Channel, ask.Payload, ask.Metadata = fence.ID, "letters", []byte(`"new"`), []byte(`{"m":"d"}`)
			rows := []store.Deliver{ask}
			if among {
				rows = append(rows, store.Deliver{Fence: nobody, Position: 1, Target: "nobody", Channel: "letters", Payload: []byte(`1`)})
			}
			s.DeliverMessages(b, rows, func(ord int, d store.Delivered) { answer(ord, d) },
				func(sent store.Sent) { answer(sent.ID != 0, sent.Channel, sent.Receiver, sent.Direct) })
		}
	}
	return all
}

// isHeir reports whether everyRun makes it a run that continues another.
func isHeir(run store.Fence) bool { return strings.Contains(run.ID, "-mail-of-") }

// carriedOut returns what an operation answers, errors included, and what there is afterwards; then it is undone.
func carriedOut(ctx context.Context, t *testing.T, conn *pgx.Conn, queue func(b *pgx.Batch, answer func(...any))) (answers, left string) {
	t.Helper()
	tx, err := conn.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	batch := &pgx.Batch{}
	queue(batch, func(values ...any) {
		text, err := json.Marshal(values)
		if err != nil {
			t.Fatal(err)
		}
		answers += string(text)
	})
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		if !store.IsRecorded(err) {
			t.Fatal(err)
		}
		return answers + "taken", ""
	}
	if err := tx.QueryRow(ctx, everything).Scan(&left); err != nil {
		t.Fatal(err)
	}
	return answers, left
}
