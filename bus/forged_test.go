package bus

import (
	"context"
	"fmt"
	"math"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// stranger returns a pool of a role that may connect to the pool's database, and has been granted nothing.
func stranger(t testing.TB, pool *pgxpool.Pool) *pgxpool.Pool {
	t.Helper()
	role := pool.Config().ConnConfig.Database + "_stranger"
	execute(t, pool, "create role "+role+" login password 'hidden'")
	t.Cleanup(func() {
		if _, err := pool.Exec(context.Background(), "drop role "+role); err != nil {
			t.Error(err)
		}
	})
	other := pgtest.Connect(t, pool.Config().ConnString(), func(c *pgxpool.Config) {
		c.ConnConfig.User, c.ConnConfig.Password, c.MaxConns = role, "hidden", 2
	})
	if _, err := other.Exec(within(t), "select from romancy.outbox"); err == nil {
		t.Fatal("the stranger may read the tables")
	}
	return other
}

// flood notifies each payload in a transaction of its own, so that none is taken for a repetition of another.
func flood(t testing.TB, pool *pgxpool.Pool, channel string, payloads ...string) {
	t.Helper()
	for _, payload := range payloads {
		notify(t, pool, channel, payload)
	}
}

// hidden is a row of which a stranger knows the id before it is committed, and what its notification says.
type hidden struct{ channel, payload, insert string }

func secrets() []hidden {
	names := ChannelsFor("romancy")
	return []hidden{
		{
			names.WorkflowResumable, Encode(WorkflowResumable{"run", "orders"}),
			`insert into romancy.instances (id, workflow, status, token, ready_at) values ('run', 'orders', 'ready', 1, now())`,
		},
		{
			names.TimerExpired, Encode(TimerRegistered{"sleeper", "timer:3", time.Date(2030, 1, 15, 10, 30, 0, 123456000, time.UTC)}),
			`insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, wake_position)
				values ('sleeper', 'orders', 'waiting', 1, now(), '2030-01-15 10:30:00.123456Z', 3)`,
		},
		{
			names.ChannelMessage, Encode(ChannelMessage{"approvals", 42, "run"}),
			`insert into romancy.mailbox (id, channel, mode, receiver, payload) overriding system value values (42, 'approvals', 'direct', 'run', '{}')`,
		},
		{
			names.OutboxPending, Encode(OutboxPending{"event"}),
			`insert into romancy.outbox (event_id, topic, key, slot, payload) values ('event', 'topic', 'key', 0, '')`,
		},
	}
}

// absurd is what the channels may carry as well as anything, and names nothing.
func absurd(channel string) []string {
	names := ChannelsFor("romancy")
	switch channel {
	case names.TimerExpired:
		return []string{
			Encode(TimerRegistered{"nobody", "timer:9", time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)}),
			Encode(TimerRegistered{"nobody", "timer:9", time.Time{}}),
		}
	case names.ChannelMessage:
		return []string{
			Encode(ChannelMessage{"approvals", math.MaxInt64, ""}), Encode(ChannelMessage{"approvals", math.MinInt64, ""}),
			`{"channel":"approvals","message_id":"9223372036854775807"}`,
		}
	case names.OutboxPending:
		return []string{Encode(OutboxPending{strings.Repeat("~", 7900)})}
	}
	return []string{Encode(WorkflowResumable{strings.Repeat("~", 3900), strings.Repeat("~", 3900)})}
}

// Whoever announces a row before it is there, and again and again, has it told no less: the notification of the row itself
// is lost here, and the next catch-up says it.
func TestAForgedNotificationHidesNoRow(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	enemy := stranger(t, pool)
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = time.Hour })
	eventually(t, "the listener is connected", l.Healthy)
	s := newSubscriber(t, pool, l)
	for _, row := range secrets() {
		out := messages(t, s, row.channel)
		forged := append([]string{row.payload}, absurd(row.channel)...)
		forged = append(forged, row.payload)
		flood(t, enemy, row.channel, forged...)
		for _, payload := range forged {
			msg := receive(t, out)
			if string(msg.Payload) != payload {
				t.Fatalf("got %s, want what was forged: %s", msg.Payload, payload)
			}
			msg.Ack()
		}
		execute(t, pool, row.insert)
		pgtest.KillBackends(t, pool, "% listen")
		if msg := receive(t, out); strings.ReplaceAll(string(msg.Payload), " ", "") != row.payload || msg.Metadata.Get(MetadataSource) != SourceCatchUp {
			t.Errorf("%s: got %s by %s, want %s", row.channel, msg.Payload, msg.Metadata.Get(MetadataSource), row.payload)
		} else {
			msg.Ack()
		}
		eventually(t, "the listener is connected again", l.Healthy)
	}
}

// The same while a catch-up is under way, whose pages were read before the row was there.
func TestAForgedNotificationDuringACatchUpHidesNoRow(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	enemy := stranger(t, pool)
	addEvents(t, pool, "first", "second")
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	out := messages(t, newSubscriber(t, pool, l), outboxChannel)
	first := receive(t, out)
	flood(t, enemy, outboxChannel, Encode(OutboxPending{"late"}), Encode(OutboxPending{"first"}), Encode(OutboxPending{"late"}))
	execute(t, pool, `insert into romancy.outbox (event_id, topic, key, slot, payload, created_at) values ('late', 'topic', 'key', 0, '', '2020-01-01')`)
	first.Ack()
	wantEvent(t, out, "second", SourceCatchUp)
	for _, id := range []string{"late", "first", "late"} {
		wantEvent(t, out, id, SourceNotify)
	}
	notify(t, enemy, outboxChannel, "") // which is all that a stranger can do: have the tables read
	wantEvent(t, out, "late", SourceCatchUp)
}

// What is told need not be there: a receiver that asks the tables by id, as the documentation says, is deceived by nothing.
func TestWhatIsForgedIsNotInTheTables(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	enemy := stranger(t, pool)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	out := messages(t, newSubscriber(t, pool, l), outboxChannel)
	addEvents(t, pool, "true")
	flood(t, enemy, outboxChannel, Encode(OutboxPending{"false"}), Encode(OutboxPending{"true"}), "")
	believed, told := map[string]bool{}, map[string]int{}
	for range 3 {
		msg := receive(t, out)
		id := eventID(t, msg)
		told[id]++
		var there bool
		if err := pool.QueryRow(within(t), "select exists (select from romancy.outbox where event_id = $1)", id).Scan(&there); err != nil {
			t.Fatal(err)
		}
		believed[id] = there
		msg.Ack()
	}
	if !believed["true"] || believed["false"] || told["true"] != 2 {
		t.Errorf("believed %v of %v", believed, told)
	}
}

// Garbage is a line and a number, and what is true is still told.
func TestGarbageIsOneLineAndACount(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	enemy := stranger(t, pool)
	var book logbook
	m := newMeter()
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.Logger, c.MeterProvider, c.QueueSize = book.logger(), m, 100_000 })
	const each = 3000
	for _, channel := range ChannelsFor("romancy").All() {
		out := messages(t, s, channel)
		for _, garbage := range []string{"'vacuum ' || i", `'{"instance_id":' || i || '}'`, `repeat('[', 7000) || i`} {
			execute(t, enemy, "select count(pg_notify($1, "+garbage+")) from generate_series(1, $2::int) i", channel, each)
		}
		refused := "romancy.subscriber.refused{channel=" + channel + "}"
		eventually(t, "all of it is refused", func() bool { return m.read(t)[refused] == 3*each })
		notify(t, pool, channel, absurd(channel)[0])
		receive(t, out).Ack()
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if lines := book.count("notification dropped"); lines != 1 {
		t.Errorf("%d lines, want one for all channels:\n%.2000s", lines, book.String())
	}
	if counts := book.count(fmt.Sprint("count=", 4*3*each-1)); counts != 1 || book.count("\n") != 2 {
		t.Errorf("counted %d times in %d lines:\n%.2000s", counts, book.count("\n"), book.String())
	}
}

// However many say "catch up": one pass at a time, and one more for all that came meanwhile.
func TestAStormOfCatchUpsIsOneMore(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	enemy := stranger(t, pool)
	m := newMeter()
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	addEvents(t, pool, "slow")
	out := messages(t, newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.MeterProvider = m }), outboxChannel)
	slow := receive(t, out) // the first pass is under way
	before := l.Status().Received
	const storm = 200
	flood(t, enemy, outboxChannel, make([]string, storm)...)
	eventually(t, "all have arrived", func() bool { return l.Status().Received == before+storm })
	slow.Ack()
	notify(t, pool, outboxChannel, Encode(OutboxPending{"last"}))
	wantEvent(t, out, "last", SourceNotify)
	passes := func() int64 { return m.read(t)["romancy.subscriber.catch_ups{channel="+outboxChannel+",outcome=done}"] }
	eventually(t, "the second pass is over", func() bool { return passes() >= 2 })
	if got := passes(); got > 2 {
		t.Errorf("%d passes, want the one that was under way and one more", got)
	}
}

func TestASubscriptionIsBoundedByBytes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	enemy := stranger(t, pool)
	l := startListener(t, pool)
	s := subscribe(t, l, 0, outboxChannel)
	const huge = 4 * DefaultQueue
	execute(t, enemy, "select count(pg_notify($1, i || repeat('x', 7900))) from generate_series(1, $2::int) i", outboxChannel, huge)
	eventually(t, "all have arrived", func() bool { return l.Status().Received == huge })
	s.mu.Lock()
	held := 0
	for _, n := range s.queue {
		held += len(n.Payload)
	}
	s.mu.Unlock()
	if held > DefaultQueue*payloadUnit {
		t.Errorf("%d bytes are kept, want a KiB for each of %d", held, DefaultQueue)
	}
	if n := next(t, s); !n.CatchUp {
		t.Errorf("got %.20q, want a catch-up", n.Payload)
	}
	small := subscribe(t, l, 1, "small")
	notify(t, enemy, "small", strings.Repeat("x", MaxPayload))
	if n := next(t, small); len(n.Payload) != MaxPayload {
		t.Errorf("got %+v, want the one that always fits", n)
	}
}

// probes sees on which channel the pool's connections send probes, and with what.
type probes struct{ seen atomic.Pointer[[2]string] }

func (p *probes) TraceQueryStart(ctx context.Context, _ *pgx.Conn, data pgx.TraceQueryStartData) context.Context {
	if strings.HasPrefix(data.SQL, "-- name: Probe\n") {
		channel, _ := data.Args[len(data.Args)-2].(string)
		nonce, _ := data.Args[len(data.Args)-1].(string)
		p.seen.Store(&[2]string{channel, nonce})
	}
	return ctx
}

func (p *probes) TraceQueryEnd(context.Context, *pgx.Conn, pgx.TraceQueryEndData) {}

// Whoever has learnt the channel of the probes cannot answer them: a connection that hears stays in use, is measured by its
// own probes, and no forged answer counts as one.
func TestForgedProbeAnswersMakeAListenerNeitherDeadNorAlive(t *testing.T) {
	t.Parallel()
	var seen probes
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.ConnConfig.Tracer = &seen })
	enemy := stranger(t, pool)
	l := startListener(t, pool, func(c *ListenerConfig) { c.ProbeInterval = 20 * time.Millisecond })
	eventually(t, "the listener is connected", l.Healthy)
	states := record(l)
	first := *seen.seen.Load()
	for range 20 {
		before := l.Status().LastProbe
		flood(t, enemy, first[0], first[1], "", "garbage", strings.Repeat("x", MaxPayload), first[1])
		eventually(t, "another probe arrives", func() bool { return l.Status().LastProbe.After(before) })
	}
	if got := states(); len(got) > 0 {
		t.Errorf("it went through %v", got)
	}
}

// A probe that comes late because of what was sent before it is waited for while that arrives, but not longer.
func TestAProbeBehindAStormIsWaitedFor(t *testing.T) {
	t.Parallel()
	now := time.Now()
	p := &probe{look: now.Add(-time.Second), overdue: true}
	lately := now.Add(-2 * probeTimeout)
	p.answered.Store(&lately)
	if err := (&session{probe: p, proof: now}).judge(t.Context()); err != nil || !p.look.After(now) {
		t.Errorf("while others are heard it is given up: %v", err)
	}
	p = &probe{look: now.Add(-time.Second)}
	long := now.Add(-crowdPatience - time.Second)
	p.answered.Store(&long)
	if err := (&session{probe: p, proof: now}).judge(t.Context()); err != nil || !p.overdue {
		t.Errorf("after %s of others it is overdue: %v, %v", crowdPatience, p.overdue, err)
	}
}

// Where others notify all the time, on the server that this process used to write to, say, the listener finds out all the
// same that it does not hear what is notified where the pool is.
func TestForgedNotificationsHideNoDeafness(t *testing.T) {
	t.Parallel()
	url, elsewhere := pgtest.URL(t), pgtest.URL(t)
	other, err := pgx.ParseConfig(elsewhere)
	if err != nil {
		t.Fatal(err)
	}
	here := pgtest.Connect(t, url)
	enemy := stranger(t, here)
	var moved atomic.Bool
	pool := pgtest.Connect(t, url, func(c *pgxpool.Config) {
		c.BeforeConnect = func(_ context.Context, cfg *pgx.ConnConfig) error {
			if moved.Load() {
				cfg.Database = other.Database
			}
			return nil
		}
	})
	l := makeListener(t, ListenerConfig{Pool: pool, ListenURL: url, ProbeInterval: 200 * time.Millisecond})
	deaf := make(chan struct{})
	l.OnChange(func(state State) {
		if state == StateDeaf && moved.Swap(false) {
			close(deaf)
		}
	})
	start(t, l)
	subscribe(t, l, 0, outboxChannel)
	moved.Store(true)
	pool.Reset()
	for deadline := time.Now().Add(patience); ; time.Sleep(5 * time.Millisecond) {
		select {
		case <-deaf:
			return
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("the listener believes the forged ones: %+v", l.Status())
		}
		notify(t, enemy, outboxChannel, Encode(OutboxPending{"forged"}))
	}
}

// What it costs to believe no notification: a row is told a second time if it is still pending at a catch-up, and never a
// third.
func TestThePriceOfBelievingNoNotification(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	const events, interval, pending = 200, 400 * time.Millisecond, 40 * time.Millisecond
	out := messages(t, newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.FallbackInterval = interval }), outboxChannel)
	do := func(sql string, args ...any) {
		if _, err := pool.Exec(context.Background(), sql, args...); err != nil {
			t.Error(err)
		}
	}
	say := func(id string) { do("select pg_notify($1, $2)", outboxChannel, Encode(OutboxPending{id})) }
	var gone sync.WaitGroup
	defer gone.Wait()
	go func() {
		for i := range events {
			id := fmt.Sprint("event ", i)
			do("insert into romancy.outbox (event_id, topic, key, slot, payload) values ($1, 'topic', 'key', 0, '')", id)
			say(id)
			gone.Add(1)
			time.AfterFunc(pending, func() {
				defer gone.Done()
				do("delete from romancy.outbox where event_id = $1", id)
			})
			time.Sleep(interval / 40)
		}
		say("end")
	}()
	told := map[string]int{}
	for told["end"] == 0 {
		msg := receive(t, out)
		told[eventID(t, msg)]++
		msg.Ack()
	}
	repeats := 0
	for id, times := range told {
		if times > 2 {
			t.Errorf("%s is told %d times", id, times)
		}
		repeats += times - 1
	}
	if len(told) != events+1 {
		t.Errorf("%d are told, want %d", len(told), events+1)
	}
	t.Logf("%d of %d events, pending for about %s, are told twice with a catch-up every %s", repeats, events, pending, interval)
}
