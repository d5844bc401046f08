package bus

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

const outboxChannel = "romancy_outbox_pending"

func newSubscriber(t testing.TB, pool *pgxpool.Pool, l *Listener, mod ...func(*SubscriberConfig)) *Subscriber {
	t.Helper()
	// Nothing but a catch-up that was asked for can come in time.
	cfg := SubscriberConfig{Listener: l, Pool: pool, FallbackInterval: time.Hour, NackDelay: time.Millisecond, Logger: slog.New(slog.DiscardHandler)}
	for _, change := range mod {
		change(&cfg)
	}
	s, err := NewSubscriber(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func messages(t testing.TB, s *Subscriber, topic string) <-chan *message.Message {
	t.Helper()
	out, err := s.Subscribe(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func receive(t testing.TB, out <-chan *message.Message) *message.Message {
	t.Helper()
	select {
	case msg, ok := <-out:
		if !ok {
			t.Fatal("the channel is closed")
		}
		return msg
	case <-within(t).Done():
		t.Fatal("no message came")
	}
	return nil
}

// addEvents adds pending events to the outbox without notifying anybody, as if the notifications were lost.
func addEvents(t testing.TB, pool *pgxpool.Pool, ids ...string) {
	t.Helper()
	execute(t, pool, `insert into romancy.outbox (event_id, topic, key, slot, payload, created_at)
		select id, 'topic', 'key', 0, '', '2026-01-01'::timestamptz + n * interval '1 microsecond'
		from unnest($1::text[]) with ordinality as e(id, n)`, ids)
}

func eventID(t testing.TB, msg *message.Message) string {
	t.Helper()
	event, err := Decode[OutboxPending](msg)
	if err != nil {
		t.Fatal(err)
	}
	return event.EventID
}

func wantEvent(t testing.TB, out <-chan *message.Message, id, source string) {
	t.Helper()
	msg := receive(t, out)
	if got := eventID(t, msg); got != id || msg.Metadata.Get(MetadataSource) != source {
		t.Fatalf("got %s by %s, want %s by %s", got, msg.Metadata.Get(MetadataSource), id, source)
	}
	msg.Ack()
}

func closed(t testing.TB, out <-chan *message.Message) {
	t.Helper()
	for {
		select {
		case _, ok := <-out:
			if !ok {
				return
			}
		case <-within(t).Done():
			t.Fatal("the channel was not closed")
		}
	}
}

func TestSubscriberDeliversNotifications(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newSubscriber(t, pool, startListener(t, pool))
	eventually(t, "the listener is connected", s.cfg.Listener.Healthy)
	out := messages(t, s, outboxChannel) // from here on nothing is missed
	notify(t, pool, outboxChannel, Encode(OutboxPending{"evt_1"}))
	msg := receive(t, out)
	if eventID(t, msg) != "evt_1" || msg.Metadata.Get(MetadataSource) != SourceNotify || msg.Metadata.Get(MetadataChannel) != outboxChannel {
		t.Errorf("got %s, %v", msg.Payload, msg.Metadata)
	}
	if pid, err := strconv.Atoi(msg.Metadata.Get(MetadataPID)); err != nil || pid == 0 {
		t.Errorf("metadata: %v", msg.Metadata)
	}
	if at, err := time.Parse(time.RFC3339Nano, msg.Metadata.Get(MetadataReceived)); err != nil || time.Since(at) > patience {
		t.Errorf("metadata: %v", msg.Metadata)
	}
	ctx := msg.Context()
	msg.Ack()
	select {
	case <-ctx.Done():
	case <-within(t).Done():
		t.Error("the context of an acknowledged message lives on")
	}
	if got := fmt.Sprint(s); got != "bus.Subscriber(romancy)" {
		t.Errorf("it is called %s", got)
	}
}

func TestMessageIsRedeliveredUntilAcknowledged(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newSubscriber(t, pool, startListener(t, pool))
	addEvents(t, pool, "e1", "e2")
	out := messages(t, s, outboxChannel)
	var before *message.Message
	for range 3 {
		msg := receive(t, out)
		if eventID(t, msg) != "e1" {
			t.Fatalf("got %s before e1 was acknowledged", msg.Payload)
		}
		if msg == before || msg.Context().Err() != nil {
			t.Error("the refused message itself came again, not a copy")
		}
		if before != nil && (before.Context().Err() == nil || before.UUID != msg.UUID || msg.Metadata.Get(MetadataSource) != SourceCatchUp) {
			t.Errorf("%+v is not a copy of %+v", msg, before)
		}
		msg.Nack()
		before = msg
	}
	wantEvent(t, out, "e1", SourceCatchUp)
	wantEvent(t, out, "e2", SourceCatchUp)
}

func TestMaxInFlightBoundsWhatIsOut(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newSubscriber(t, pool, startListener(t, pool), func(c *SubscriberConfig) { c.MaxInFlight = 3 })
	addEvents(t, pool, "e1", "e2", "e3", "e4")
	out := messages(t, s, outboxChannel)
	var first []*message.Message
	for _, id := range []string{"e1", "e2", "e3"} {
		msg := receive(t, out)
		if eventID(t, msg) != id {
			t.Errorf("got %s, want %s", msg.Payload, id)
		}
		first = append(first, msg)
	}
	select {
	case msg := <-out:
		t.Fatalf("%s is the fourth", msg.Payload)
	case <-time.After(20 * time.Millisecond):
	}
	first[1].Ack()
	wantEvent(t, out, "e4", SourceCatchUp)
	first[0].Nack()
	wantEvent(t, out, "e1", SourceCatchUp)
}

func TestForeignPayloadIsDroppedAndLogged(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var book logbook
	s := newSubscriber(t, pool, startListener(t, pool), func(c *SubscriberConfig) { c.Logger = book.logger() })
	out := messages(t, s, outboxChannel)
	eventually(t, "the listener is connected", s.cfg.Listener.Healthy)
	for _, payload := range []string{"vacuum please", `{"instance_id":"x"}`, "[1,2]"} {
		notify(t, pool, outboxChannel, payload)
	}
	notify(t, pool, outboxChannel, Encode(OutboxPending{"good"}))
	wantEvent(t, out, "good", SourceNotify)
	if book.count("notification dropped") != 1 || book.count("vacuum please") != 0 {
		t.Errorf("logged:\n%s", book.String())
	}
}

func TestAnyOtherChannelIsDeliveredAsItIs(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	s := newSubscriber(t, pool, l)
	out := messages(t, s, "Anything else")
	for _, payload := range []string{"not JSON", "", "äöü"} {
		notify(t, pool, "Anything else", payload)
		msg := receive(t, out)
		if string(msg.Payload) != payload {
			t.Errorf("got %q, want %q", msg.Payload, payload)
		}
		msg.Ack()
	}
}

func TestSubscriberCloseWhateverItWaitsFor(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	addEvents(t, pool, "e1", "e2")
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.NackDelay = time.Hour })
	unread := messages(t, s, outboxChannel)
	unacked := messages(t, s, outboxChannel)
	refused := messages(t, s, outboxChannel)
	idle := messages(t, s, "idle")
	held := receive(t, unacked)
	receive(t, refused).Nack()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := s.Close(); err != nil {
				t.Error(err)
			}
			for _, out := range []<-chan *message.Message{unread, unacked, refused, idle} {
				select {
				case _, ok := <-out:
					if ok {
						t.Error("a message came after Close")
					}
				default:
					t.Error("Close returned before the channel was closed")
				}
			}
		})
	}
	all.Wait()
	if held.Context().Err() == nil {
		t.Error("the context of an unacknowledged message lives on")
	}
	held.Ack() // too late, and harmless
	if _, err := s.Subscribe(t.Context(), outboxChannel); !errors.Is(err, ErrClosed) {
		t.Errorf("Subscribe after Close: %v", err)
	}
	if err := s.SubscribeInitialize(outboxChannel); !errors.Is(err, ErrClosed) {
		t.Errorf("SubscribeInitialize after Close: %v", err)
	}
	if err := pool.Ping(within(t)); err != nil || l.Status().State == StateClosed {
		t.Errorf("Close closed what it does not own: %v", err)
	}
}

func TestSubscriptionEndsWithItsContextOrItsListener(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	s := newSubscriber(t, pool, l)
	ctx, cancel := context.WithCancel(t.Context())
	one, err := s.Subscribe(ctx, "one")
	if err != nil {
		t.Fatal(err)
	}
	other := messages(t, s, "other")
	eventually(t, "the listener is connected", l.Healthy)
	cancel()
	closed(t, one)
	notify(t, pool, "other", "still there")
	receive(t, other).Ack()
	addEvents(t, pool, "e1", "e2")
	unread, unacked := messages(t, s, outboxChannel), messages(t, s, outboxChannel)
	receive(t, unacked) // and the next waits for this one
	if err := l.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	closed(t, other)
	closed(t, unread)
	closed(t, unacked)
}

// Subscriptions end in whatever state they are: handled, blocked on an acknowledgement, waiting after a refusal, unread;
// by Close of the subscriber, of the listener or by their context, while the listener starts.
func TestSubscriberSurvivesSubscribeAndCloseInParallel(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	addEvents(t, pool, "e1", "e2", "e3")
	handlers := []func(<-chan *message.Message){
		func(out <-chan *message.Message) {
			for msg := range out {
				msg.Ack()
			}
		},
		func(out <-chan *message.Message) {
			for range out { // no acknowledgement ever
			}
		},
		func(out <-chan *message.Message) {
			for msg := range out {
				msg.Nack()
			}
		},
		func(<-chan *message.Message) {}, // unread
	}
	for round := range 20 {
		l, err := NewListener(ListenerConfig{Pool: pool, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.MaxInFlight = 2 })
		ctx, cancel := context.WithCancel(t.Context())
		var all sync.WaitGroup
		all.Go(func() {
			if err := l.Start(t.Context()); err != nil && !errors.Is(err, ErrClosed) {
				t.Error(err)
			}
		})
		for i := range 2 * len(handlers) {
			all.Go(func() {
				out, err := s.Subscribe(ctx, []string{outboxChannel, "x"}[i%2])
				if err == nil {
					handlers[i/2](out)
				}
			})
		}
		all.Go(func() {
			time.Sleep(time.Duration(round) * time.Millisecond) // begins before, while and after they are connected
			switch round % 3 {
			case 0:
				_ = s.Close()
			case 1:
				_ = l.Close(within(t))
			case 2:
				cancel()
			}
		})
		all.Wait()
		cancel()
		all.Go(func() { _ = s.Close() })
		all.Go(func() { _ = l.Close(within(t)) })
		all.Wait()
	}
}

// Not parallel, so that it can count goroutines.
func TestGoroutinesAreBoundedAndAwaited(t *testing.T) {
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	const inFlight = 4
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.MaxInFlight = inFlight })
	before := runtime.NumGoroutine()
	out := messages(t, s, "flood")
	for range inFlight {
		notify(t, pool, "flood", "x")
		receive(t, out) // never acknowledged
	}
	execute(t, pool, "select count(pg_notify('flood', i::text)) from generate_series(1, 5000) i")
	eventually(t, "all have arrived", func() bool { return l.Status().Received == 5000+inFlight })
	if now := runtime.NumGoroutine(); now > before+1+inFlight {
		t.Errorf("%d goroutines more, want one and %d for the messages that are out", now-before, inFlight)
	}
	_ = s.Close()
	eventually(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

func TestSubscriberServesARouter(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newSubscriber(t, pool, startListener(t, pool), func(c *SubscriberConfig) { c.MaxInFlight = 4 })
	var ids []string
	for i := range 50 {
		ids = append(ids, fmt.Sprint("evt_", i))
	}
	addEvents(t, pool, ids...)
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: patience}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	handled, failed := make(chan string, 1000), sync.Map{}
	router.AddConsumerHandler("events", outboxChannel, s, func(msg *message.Message) error {
		event, err := Decode[OutboxPending](msg)
		if err != nil {
			return err
		}
		if _, again := failed.LoadOrStore(event.EventID, true); !again {
			return errors.New("the first attempt always fails")
		}
		handled <- event.EventID
		return nil
	})
	var running sync.WaitGroup
	running.Go(func() {
		if err := router.Run(t.Context()); err != nil {
			t.Error(err)
		}
	})
	seen := map[string]bool{}
	for len(seen) < len(ids) {
		select {
		case id := <-handled:
			seen[id] = true
		case <-within(t).Done():
			t.Fatalf("only %d of %d were handled", len(seen), len(ids))
		}
	}
	if err := router.Close(); err != nil {
		t.Error(err)
	}
	running.Wait()
}

func TestSubscriberConfigReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := NewSubscriber(SubscriberConfig{
		Schema: "Bad!", FallbackInterval: -1, PollInterval: -1, BatchSize: -1, MaxInFlight: -1, NackDelay: -1, QueueSize: -1,
	})
	for _, field := range []string{"Listener", "Pool", "Schema", "FallbackInterval", "PollInterval", "BatchSize", "MaxInFlight", "NackDelay", "QueueSize"} {
		if err == nil || !strings.Contains(err.Error(), "SubscriberConfig."+field) {
			t.Errorf("%s is missing in: %v", field, err)
		}
	}
	_, err = NewSubscriber(SubscriberConfig{Channels: Channels{TimerExpired: outboxChannel}})
	if err == nil || !strings.Contains(err.Error(), "SubscriberConfig.Channels") {
		t.Errorf("two events on one channel: %v", err)
	}
}

// A channel that looks like one of ours and is none is subscribed to, and a line says so; any other needs none.
func TestSubscriptionToAMistypedChannelIsSaid(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var book logbook
	s := newSubscriber(t, pool, startListener(t, pool), func(c *SubscriberConfig) { c.Logger = book.logger() })
	for _, channel := range []string{"romancy_outbox_pendng", outboxChannel, "orders", "romancy"} {
		messages(t, s, channel)
	}
	if lines := book.count("WARN"); lines != 1 || book.count("channel=romancy_outbox_pendng") != 1 || book.count(outboxChannel) == 0 {
		t.Errorf("want one line that names the channel and the four: %s", book.String())
	}
}
