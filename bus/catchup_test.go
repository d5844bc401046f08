package bus

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestCatchUpSaysWhatTheNotificationWouldHaveSaid(t *testing.T) {
	t.Parallel()
	for _, mode := range modes {
		t.Run(mode.String(), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, func(c *pgxpool.Config) {
				c.ConnConfig.DefaultQueryExecMode = mode
				c.ConnConfig.RuntimeParams["timezone"] = "Asia/Kathmandu"
			})
			execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at) values ('wf_1', 'orders', 'ready', 1, now())`)
			execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, wake_position)
				values ('wf_2', 'orders', 'waiting', 1, now(), '2026-01-15 10:30:00.5Z', 3)`)
			execute(t, pool, `insert into romancy.mailbox (channel, mode, receiver, payload) values ('approvals', 'direct', 'wf_2', '{}')`)
			addEvents(t, pool, "evt_1")
			s := newSubscriber(t, pool, startListener(t, pool))

			run, err := Decode[WorkflowResumable](receive(t, messages(t, s, "romancy_workflow_resumable")))
			if want := (WorkflowResumable{"wf_1", "orders"}); err != nil || run != want {
				t.Errorf("got %+v, %v, want %+v", run, err, want)
			}
			timer, err := Decode[TimerRegistered](receive(t, messages(t, s, "romancy_timer_expired")))
			if err != nil || timer.InstanceID != "wf_2" || timer.TimerID == "" || !timer.ExpiresAt.Equal(time.Date(2026, 1, 15, 10, 30, 0, 5e8, time.UTC)) {
				t.Errorf("got %+v, %v", timer, err)
			}
			mail, err := Decode[ChannelMessage](receive(t, messages(t, s, "romancy_channel_message")))
			if err != nil || mail.ChannelName != "approvals" || mail.TargetInstanceID != "wf_2" || mail.MessageID == 0 {
				t.Errorf("got %+v, %v", mail, err)
			}
			msg := receive(t, messages(t, s, outboxChannel))
			if id := eventID(t, msg); id != "evt_1" || msg.Metadata.Get(MetadataSource) != SourceCatchUp || msg.Metadata.Get(MetadataChannel) != outboxChannel {
				t.Errorf("got %s, %v", id, msg.Metadata)
			}
		})
	}
}

func TestWhatWasMissedIsCaughtUpAtOnceAfterEachReconnect(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = time.Hour })
	eventually(t, "the listener is connected", l.Healthy)
	addEvents(t, pool, "before")
	out := messages(t, newSubscriber(t, pool, l), outboxChannel)
	wantEvent(t, out, "before", SourceCatchUp)
	for kill := range 5 {
		lost, live := fmt.Sprint("lost_", kill), fmt.Sprint("live_", kill)
		addEvents(t, pool, lost)
		pgtest.KillBackends(t, pool, "% listen")
		wantEvent(t, out, lost, SourceCatchUp)
		notify(t, pool, outboxChannel, Encode(OutboxPending{live}))
		wantEvent(t, out, live, SourceNotify)
	}
}

func TestCatchUpRepeatsOnlyWhatChanged(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newSubscriber(t, pool, startListener(t, pool), func(c *SubscriberConfig) { c.BatchSize = 2 })
	ids := []string{"e1", "e2", "e3", "e4", "e5", "e6", "e7"}
	addEvents(t, pool, ids...)
	c := newCatchUp(pool, s.queries, EventOutboxPending, 2)
	pass := func(want ...string) {
		t.Helper()
		var got []string
		if err := c.pass(within(t), func(payload string) bool {
			event, err := decode[OutboxPending]("", []byte(payload))
			if err != nil {
				t.Error(err)
			}
			got = append(got, event.EventID)
			return true
		}); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
	}
	pass(ids...)
	pass()
	execute(t, pool, "update romancy.outbox set attempts = 1 where event_id = 'e4'")
	pass("e4")
	pass()
	execute(t, pool, "delete from romancy.outbox where event_id < 'e7'")
	pass()
	if len(c.settled) != 1 {
		t.Errorf("it remembers %v, of which only e7 is pending", c.settled)
	}
	addEvents(t, pool, "e1")
	pass("e1")
	// All at the same instant, and more than a page of them.
	execute(t, pool, "update romancy.outbox set created_at = '2026-01-01'")
	execute(t, pool, "insert into romancy.outbox (event_id, topic, key, slot, payload, created_at) select 'same' || i, 't', 'k', 0, '', '2026-01-01' from generate_series(1, 5) i")
	pass("e1", "e7", "same1", "same2", "same3", "same4", "same5") // the first two at another time than before
}

func TestOverflowAndEmptyPayloadAreCaughtUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.QueueSize = 5 })
	out := messages(t, s, outboxChannel)
	eventually(t, "the listener is connected", l.Healthy)
	notify(t, pool, outboxChannel, Encode(OutboxPending{"blocks"}))
	blocks := receive(t, out) // nothing else is taken from the queue
	want := map[string]bool{}
	var ids []string
	for i := range 20 {
		id := fmt.Sprint("evt_", i)
		ids, want[id] = append(ids, id), true
	}
	addEvents(t, pool, ids...)
	for _, id := range ids {
		notify(t, pool, outboxChannel, Encode(OutboxPending{id}))
	}
	received := func(count int64) func() bool { return func() bool { return l.Status().Received == count } }
	eventually(t, "all have arrived", received(int64(1+len(ids))))
	if l.Status().Dropped == 0 {
		t.Fatal("the queue did not overflow")
	}
	blocks.Ack()
	for len(want) > 0 {
		msg := receive(t, out)
		delete(want, eventID(t, msg))
		msg.Ack()
	}
	execute(t, pool, "delete from romancy.outbox")
	addEvents(t, pool, "late")
	notify(t, pool, outboxChannel, "")
	for { // what is left of the queue comes first
		msg := receive(t, out)
		msg.Ack()
		if eventID(t, msg) == "late" {
			if got := msg.Metadata.Get(MetadataSource); got != SourceCatchUp {
				t.Errorf("the late event came by %s, want %s", got, SourceCatchUp)
			}
			return
		}
	}
}

// The look that is due must not wait until the notifications pause, which on a busy channel they may never do.
func TestABusyChannelIsCaughtUpToo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	const others = 2000
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.FallbackInterval, c.QueueSize = 20*time.Millisecond, 2*others })
	out := messages(t, s, outboxChannel)
	notify(t, pool, outboxChannel, Encode(OutboxPending{"first"}))
	first := receive(t, out) // nothing else is taken from the queue
	addEvents(t, pool, "lost")
	execute(t, pool, `select count(pg_notify($1, '{"event_id":"other ' || i || '"}')) from generate_series(1, $2::int) i`, outboxChannel, others)
	eventually(t, "all have arrived", func() bool { return l.Status().Received == others+1 })
	time.Sleep(30 * time.Millisecond) // until the look is due
	first.Ack()
	for before := 0; ; before++ {
		msg := receive(t, out)
		id := eventID(t, msg)
		msg.Ack()
		if id == "lost" {
			return
		}
		if before == others-1 {
			t.Fatal("everything that was notified came before what was not")
		}
	}
}

func TestSubscriberPollsWithoutAListener(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, nil, func(c *ListenerConfig) { c.Disabled = true })
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.PollInterval = 5 * time.Millisecond })
	out := messages(t, s, outboxChannel)
	for i := range 3 {
		addEvents(t, pool, fmt.Sprint("evt_", i))
		wantEvent(t, out, fmt.Sprint("evt_", i), SourceCatchUp)
	}
}

func TestFailedCatchUpIsTriedAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	addEvents(t, pool, "evt")
	execute(t, pool, "alter view romancy.pending_outbox_pending rename to hidden")
	var book logbook
	s := newSubscriber(t, pool, startListener(t, pool), func(c *SubscriberConfig) {
		c.PollInterval = 5 * time.Millisecond
		c.Logger = book.logger()
	})
	out := messages(t, s, outboxChannel)
	eventually(t, "the failure is logged", func() bool { return book.count("trying again") > 0 })
	execute(t, pool, "alter view romancy.hidden rename to pending_outbox_pending")
	wantEvent(t, out, "evt", SourceCatchUp)
	if book.count("trying again") != 1 {
		t.Errorf("logged:\n%s", book.String())
	}
}

func TestHandlersHaveThePoolToThemselves(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 1 })
	addEvents(t, pool, "e1", "e2", "e3")
	s := newSubscriber(t, pool, startListener(t, pool), func(c *SubscriberConfig) { c.BatchSize = 1 })
	out := messages(t, s, outboxChannel)
	for range 3 {
		msg := receive(t, out)
		execute(t, pool, "select 1")
		msg.Ack()
	}
}

// Statistics are missing on purpose: a table that has just grown has none.
func TestCatchUpReadsByIndex(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at)
		select 'done_' || i, 'orders', 'completed', 1, now() from generate_series(1, 50000) i`)
	execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, wake_position)
		select 'waits_' || i, 'orders', 'waiting', 1, now(), now() + i * interval '1 second', 1 from generate_series(1, 50000) i`)
	execute(t, pool, `insert into romancy.outbox (event_id, topic, key, slot, payload)
		select 'evt_' || i, 'topic', 'key', 0, '' from generate_series(1, 50000) i`)
	execute(t, pool, `insert into romancy.mailbox (channel, mode, receiver, payload)
		select 'orders', 'direct', 'waits_' || i, '{}' from generate_series(1, 50000) i`)
	s := newSubscriber(t, pool, startListener(t, pool))
	for _, event := range Events() {
		_, query, _ := strings.Cut(s.queries.Get(pendingQueries[event]), "\n")
		rows, err := pool.Query(within(t), "explain "+query, pgx.QueryExecModeExec, time.Now(), "", 100)
		if err != nil {
			t.Fatal(err)
		}
		plan, err := pgx.CollectRows(rows, pgx.RowTo[string])
		if err != nil {
			t.Fatal(err)
		}
		if text := strings.Join(plan, "\n"); strings.Contains(text, "Seq Scan") {
			t.Errorf("%s:\n%s", event, text)
		}
	}
}

// What was notified is told once more by the first catch-up that finds it pending, whatever the notification said, and
// after that no more: this is the price for believing no notification.
func TestCatchUpRepeatsOnceWhatWasHeard(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool, func(c *ListenerConfig) { c.ReconnectDelay = time.Hour })
	eventually(t, "the listener is connected", l.Healthy)
	m := newMeter()
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.MeterProvider = m })
	names := ChannelsFor("romancy")
	var out [4]<-chan *message.Message
	for i, name := range names.All() {
		out[i] = messages(t, s, name)
		pass := "romancy.subscriber.catch_ups{channel=" + name + ",outcome=done}"
		eventually(t, "the first catch-up is over", func() bool { return m.read(t)[pass] == 1 })
	}
	execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at) values ('ready', 'orders', 'ready', 1, now())`)
	execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, wake_position) values
		('timer', 'orders', 'waiting', 1, now(), '2030-01-15 10:30:00.123456Z', 3)`)
	execute(t, pool, `insert into romancy.mailbox (id, channel, mode, receiver, payload) overriding system value
		values (42, 'approvals', 'direct', 'timer', '{}')`)
	addEvents(t, pool, "new", "relayed")
	said := [4][]string{
		{Encode(WorkflowResumable{"ready", "orders"})},
		{Encode(TimerRegistered{"timer", "timer:3", time.Date(2030, 1, 15, 10, 30, 0, 123456000, time.UTC)})},
		{Encode(ChannelMessage{"approvals", 42, "timer"})},
		{Encode(OutboxPending{"new"}), Encode(OutboxPending{"relayed"})},
	}
	for i, payloads := range said {
		for _, payload := range payloads {
			notify(t, pool, names.All()[i], payload)
			msg := receive(t, out[i])
			if string(msg.Payload) != payload || msg.Metadata.Get(MetadataSource) != SourceNotify {
				t.Errorf("got %s by %s, want %s", msg.Payload, msg.Metadata.Get(MetadataSource), payload)
			}
			msg.Ack()
		}
	}
	execute(t, pool, "delete from romancy.outbox where event_id = 'relayed'")
	pass := func(want ...string) {
		t.Helper()
		for i, name := range names.All() {
			notify(t, pool, name, "") // catch up
			msg := receive(t, out[i])
			if !strings.Contains(string(msg.Payload), want[i]) || msg.Metadata.Get(MetadataSource) != SourceCatchUp {
				t.Errorf("%s: got %s by %s, want %s", name, msg.Payload, msg.Metadata.Get(MetadataSource), want[i])
			}
			msg.Ack()
		}
	}
	pass("ready", "timer", "42", "new")
	// Now all of it is known, and stays known.
	execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at) values ('next', 'orders', 'ready', 1, now())`)
	execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, wake_position)
		values ('latest', 'orders', 'waiting', 1, now(), '2030-01-16', 3)`)
	execute(t, pool, `insert into romancy.mailbox (channel, mode, receiver, payload) values ('last', 'direct', 'timer', '{}')`)
	addEvents(t, pool, "younger")
	pass("next", "latest", "last", "younger")
}

// A row may have the name and the version of one that a pass has told, and be another.
func TestCatchUpTellsWhatIsNewUnderAnOldName(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newSubscriber(t, pool, startListener(t, pool))
	tells := func(c *catchUp, want int) {
		t.Helper()
		got := 0
		if err := c.pass(within(t), func(string) bool { got++; return true }); err != nil || got != want {
			t.Errorf("%d are told, want %d: %v", got, want, err)
		}
	}
	events := newCatchUp(pool, s.queries, EventOutboxPending, 100)
	addEvents(t, pool, "again")
	tells(events, 1)
	execute(t, pool, "delete from romancy.outbox")
	execute(t, pool, "insert into romancy.outbox (event_id, topic, key, slot, payload) values ('again', 'topic', 'key', 0, '')")
	tells(events, 1)
	tells(events, 0)
	timers := newCatchUp(pool, s.queries, EventTimerExpired, 100)
	execute(t, pool, `insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, wake_position)
		values ('sleeper', 'orders', 'waiting', 1, now(), '2030-01-15', 3), ('for good', 'orders', 'waiting', 1, now(), '9999-01-01', 3)`)
	tells(timers, 2)
	execute(t, pool, "update romancy.instances set wake_at = '2030-01-16', wake_position = 5 where id = 'sleeper'")
	tells(timers, 1)
	tells(timers, 0)
}

// What nobody acknowledged, or what was refused, is delivered to whoever subscribes next.
func TestUnacknowledgedAtCloseIsDeliveredAgain(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	addEvents(t, pool, "caught up")
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.MaxInFlight = 3; c.NackDelay = time.Hour })
	out := messages(t, s, outboxChannel)
	receive(t, out)
	addEvents(t, pool, "heard", "refused")
	for _, id := range []string{"heard", "refused"} {
		notify(t, pool, outboxChannel, Encode(OutboxPending{id}))
		if msg := receive(t, out); id == "refused" {
			msg.Nack()
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	out = messages(t, newSubscriber(t, pool, l), outboxChannel)
	missing := map[string]bool{"caught up": true, "heard": true, "refused": true}
	for len(missing) > 0 {
		msg := receive(t, out)
		delete(missing, eventID(t, msg))
		msg.Ack()
	}
}
