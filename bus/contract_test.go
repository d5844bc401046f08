package bus

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// Watermill's universal suite demands of every Pub/Sub what its pubsub/tests says. It publishes before it subscribes,
// which LISTEN cannot serve, so it cannot be run on Publisher and Subscriber. Each of its tests has one of the same name
// here, which subscribes first. Where a demand cannot hold, the test shows what holds instead:
//
//   - a message is recognised by its payload, because neither UUID nor metadata travel;
//   - what the suite asks of "persistent" Pub/Subs holds for the four channels alone, where the truth is in the tables;
//   - there are no consumer groups: every subscription receives everything.

// ephemeral is a Publisher and a Subscriber, whose listener is connected.
type ephemeral struct {
	pool *pgxpool.Pool
	l    *Listener
	pub  *Publisher
	sub  *Subscriber
}

func newEphemeral(t *testing.T, mod ...func(*SubscriberConfig)) ephemeral {
	t.Helper()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	pub, err := NewPublisher(pool, PublisherConfig{})
	if err != nil {
		t.Fatal(err)
	}
	return ephemeral{pool, l, pub, newSubscriber(t, pool, l, mod...)}
}

// publish sends payloads "prefix 0" to "prefix n-1", a call each if apart.
func (e ephemeral) publish(t testing.TB, topic, prefix string, n int, apart bool) []string {
	t.Helper()
	payloads := make([]string, n)
	msgs := make([]*message.Message, n)
	for i := range n {
		payloads[i] = fmt.Sprint(prefix, " ", i)
		msgs[i] = message.NewMessage(payloads[i], []byte(payloads[i]))
	}
	size := n
	if apart {
		size = 1
	}
	for chunk := range slices.Chunk(msgs, size) {
		if err := e.pub.Publish(topic, chunk...); err != nil {
			t.Error(err)
		}
	}
	return payloads
}

// take acknowledges the next n messages and returns their payloads.
func take(t testing.TB, out <-chan *message.Message, n int) []string {
	t.Helper()
	got := make([]string, n)
	for i := range got {
		msg := receive(t, out)
		got[i] = string(msg.Payload)
		msg.Ack()
	}
	return got
}

func wantSame(t testing.TB, got, want []string) {
	t.Helper()
	if !slices.Equal(slices.Sorted(slices.Values(got)), slices.Sorted(slices.Values(want))) {
		t.Errorf("got %d messages %.200q, want %d %.200q", len(got), got, len(want), want)
	}
}

func TestPublishSubscribe(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	if err := e.sub.SubscribeInitialize("topic"); err != nil {
		t.Fatal(err)
	}
	out := messages(t, e.sub, "topic")
	sent := message.NewMessage("the sender's", []byte("payload"))
	sent.Metadata.Set("test", "x")
	if err := e.pub.Publish("topic", sent); err != nil {
		t.Fatal(err)
	}
	msg := receive(t, out)
	// Only the payload travels.
	if string(msg.Payload) != "payload" || msg.UUID == sent.UUID || msg.UUID == "" || msg.Metadata.Get("test") != "" {
		t.Errorf("got %q, %s, %v", msg.Payload, msg.UUID, msg.Metadata)
	}
	msg.Ack()
	many := slices.Concat(e.publish(t, "topic", "a", 50, false), e.publish(t, "topic", "b", 50, true))
	wantSame(t, take(t, out, len(many)), many)
	if err := e.sub.Close(); err != nil {
		t.Fatal(err)
	}
	closed(t, out)
}

func TestConcurrentSubscribe(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	const subscribers, publishers, each = 20, 10, 20
	outs := make([]<-chan *message.Message, subscribers)
	for i := range outs {
		outs[i] = messages(t, newSubscriber(t, e.pool, e.l), "topic")
	}
	var all sync.WaitGroup
	sent := make([][]string, publishers)
	for i := range publishers {
		all.Go(func() { sent[i] = e.publish(t, "topic", fmt.Sprint(i), each, true) })
	}
	got := make([][]string, subscribers)
	for i, out := range outs {
		all.Go(func() { got[i] = take(t, out, publishers*each) })
	}
	all.Wait()
	for i := range got { // not shared among them, as in a consumer group
		wantSame(t, got[i], slices.Concat(sent...))
	}
}

func TestConcurrentSubscribeMultipleTopics(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	var all sync.WaitGroup
	for i := range 20 {
		all.Go(func() {
			topic := fmt.Sprint("topic-", i)
			out, err := e.sub.Subscribe(t.Context(), topic)
			if err != nil {
				t.Error(err)
				return
			}
			sent := e.publish(t, topic, topic, 100, false)
			wantSame(t, take(t, out, 100), sent)
		})
	}
	all.Wait()
}

func TestResendOnError(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	out := messages(t, e.sub, "topic")
	sent := e.publish(t, "topic", "x", 100, false)
	for range 2 {
		if msg := receive(t, out); string(msg.Payload) != "x 0" {
			t.Errorf("got %q before the first was acknowledged", msg.Payload)
		} else {
			msg.Nack()
		}
	}
	wantSame(t, take(t, out, 100), sent)
}

func TestNoAck(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	out := messages(t, e.sub, "topic")
	e.publish(t, "topic", "x", 2, false)
	first := receive(t, out)
	select {
	case msg := <-out:
		t.Fatalf("%q came before the first was acknowledged", msg.Payload)
	case <-time.After(100 * time.Millisecond): // that something does not happen has no signal
	}
	first.Ack()
	if got := take(t, out, 1); got[0] != "x 1" {
		t.Errorf("got %q", got)
	}
	select {
	case msg := <-out:
		t.Fatalf("%q came again", msg.Payload)
	case <-time.After(50 * time.Millisecond):
	}
}

// On the four channels nothing is lost by closing and subscribing again; on others, what is notified in between is.
func TestContinueAfterSubscribeClose(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	missing := map[string]bool{}
	var ids []string
	for i := range 200 {
		ids = append(ids, fmt.Sprint("evt_", i))
		missing[ids[i]] = true
	}
	addEvents(t, e.pool, ids...)
	e.publish(t, "ephemeral", "nobody hears", 1, false)
	for range 4 {
		s := newSubscriber(t, e.pool, e.l)
		out := messages(t, s, outboxChannel)
		for range 50 {
			msg := receive(t, out)
			id := eventID(t, msg)
			if !missing[id] {
				t.Errorf("%s came again although it is gone", id)
			}
			delete(missing, id)
			execute(t, e.pool, "delete from romancy.outbox where event_id = $1", id) // consumed, as the relay does it
			msg.Ack()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if len(missing) > 0 {
		t.Errorf("%d were lost: %v", len(missing), slices.Sorted(maps.Keys(missing)))
	}
	out := messages(t, e.sub, "ephemeral")
	e.publish(t, "ephemeral", "heard", 1, false)
	wantSame(t, take(t, out, 1), []string{"heard 0"})
}

func TestConcurrentClose(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	out := messages(t, e.sub, "topic")
	var all sync.WaitGroup
	for range 10 {
		s := newSubscriber(t, e.pool, e.l)
		if _, err := s.Subscribe(t.Context(), "topic"); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			all.Go(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			})
		}
	}
	sent := e.publish(t, "topic", "x", 50, true) // meanwhile: the others' leaving takes nothing from those who stay
	all.Wait()
	wantSame(t, take(t, out, 50), sent)
}

// On the four channels a message that is refused again and again, by one subscriber after the other, is not lost.
func TestContinueAfterErrors(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	addEvents(t, e.pool, "e1", "e2", "e3")
	for range 3 {
		s := newSubscriber(t, e.pool, e.l)
		out := messages(t, s, outboxChannel)
		for range 20 {
			receive(t, out).Nack()
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	out := messages(t, e.sub, outboxChannel)
	for _, id := range []string{"e1", "e2", "e3"} {
		wantEvent(t, out, id, SourceCatchUp)
	}
	// On any other channel it is not lost to the subscription that refuses it.
	out = messages(t, e.sub, "topic")
	sent := e.publish(t, "topic", "x", 50, false)
	for range 20 {
		receive(t, out).Nack()
	}
	wantSame(t, take(t, out, 50), sent)
}

func TestPublishSubscribeInOrder(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	out := messages(t, e.sub, "topic")
	sent := slices.Concat(e.publish(t, "topic", "a", 500, false), e.publish(t, "topic", "b", 100, true))
	if got := take(t, out, len(sent)); !slices.Equal(got, sent) {
		t.Errorf("got %.300q", got)
	}
}

func TestPublisherClose(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t, func(c *SubscriberConfig) { c.QueueSize = 10_000 })
	out := messages(t, e.sub, "topic")
	var all sync.WaitGroup
	sent := make([][]string, 20)
	for i := range sent {
		all.Go(func() { sent[i] = e.publish(t, "topic", fmt.Sprint(i), 50, true) })
	}
	all.Wait()
	if err := e.pub.Close(); err != nil {
		t.Fatal(err)
	}
	want := slices.Concat(sent...)
	wantSame(t, take(t, out, len(want)), want)
}

func TestTopic(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	// Names are taken literally, so these are two.
	one, other := messages(t, e.sub, "Topic-1"), messages(t, e.sub, "topic-1")
	e.publish(t, "topic-1", "other", 1, false)
	e.publish(t, "Topic-1", "one", 1, false)
	wantSame(t, take(t, one, 1), []string{"one 0"})
	wantSame(t, take(t, other, 1), []string{"other 0"})
}

func TestMessageCtx(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	out := messages(t, e.sub, "topic")
	e.publish(t, "topic", "x", 2, false)
	msg := receive(t, out)
	if msg.Context().Err() != nil {
		t.Error("the context of a message had ended before its handler began")
	}
	msg.Ack()
	ended(msg.Context(), t, "Ack")
	msg = receive(t, out)
	if err := e.sub.Close(); err != nil {
		t.Fatal(err)
	}
	ended(msg.Context(), t, "Close")
}

func ended(ctx context.Context, t testing.TB, after string) {
	t.Helper()
	select {
	case <-ctx.Done():
	case <-within(t).Done():
		t.Fatalf("the message's context lives on after %s", after)
	}
}

type contextKey struct{}

func TestSubscribeCtx(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	ctx, cancel := context.WithCancel(t.Context())
	out, err := e.sub.Subscribe(ctx, "topic")
	if err != nil {
		t.Fatal(err)
	}
	e.publish(t, "topic", "x", 20, false)
	receive(t, out).Nack()
	eventually(t, "all have come", func() bool { return e.l.Status().Received >= 20 })
	cancel()
	closed(t, out)
	// The next subscription has what is notified from then on, and the values of its context.
	out, err = e.sub.Subscribe(context.WithValue(t.Context(), contextKey{}, "value"), "topic")
	if err != nil {
		t.Fatal(err)
	}
	sent := e.publish(t, "topic", "y", 20, false)
	msg := receive(t, out)
	if msg.Context().Value(contextKey{}) != "value" {
		t.Error("the values of the context given to Subscribe are lost")
	}
	msg.Ack()
	wantSame(t, append(take(t, out, 19), string(msg.Payload)), sent)
}

// On the four channels a new subscriber receives what is pending, and only that. Others have nothing old to give.
func TestNewSubscriberReceivesOldMessages(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	var before []string
	for i := range 3 {
		before = append(before, fmt.Sprint("evt_", i))
		addEvents(t, e.pool, before[i])
		execute(t, e.pool, "update romancy.outbox set created_at = now() where event_id = $1", before[i])
		out := messages(t, newSubscriber(t, e.pool, e.l), outboxChannel)
		for _, id := range before {
			wantEvent(t, out, id, SourceCatchUp)
		}
	}
	execute(t, e.pool, "delete from romancy.outbox where event_id = 'evt_0'")
	out := messages(t, e.sub, outboxChannel)
	wantEvent(t, out, "evt_1", SourceCatchUp)
}

// What is notified while the connection is away is lost on an ordinary channel, and is read from the tables on the four.
func TestReconnect(t *testing.T) {
	t.Parallel()
	// No polling in between: the catch-up then tells that the connection is back.
	e := newEphemeral(t, func(c *SubscriberConfig) { c.PollInterval = time.Hour })
	addEvents(t, e.pool, "first")
	events, topic := messages(t, e.sub, outboxChannel), messages(t, e.sub, "topic")
	wantEvent(t, events, "first", SourceCatchUp) // so the first catch-up has read what it reads
	for i := range 3 {
		id := fmt.Sprint("evt_", i)
		addEvents(t, e.pool, id)
		pgtest.KillBackends(t, e.pool, "% listen")
		wantEvent(t, events, id, SourceCatchUp)
		sent := e.publish(t, "topic", id, 10, true)
		wantSame(t, take(t, topic, 10), sent)
	}
}

// There are no consumer groups: two subscribers, of one process or of two, both receive everything.
func TestConsumerGroups(t *testing.T) {
	t.Parallel()
	e := newEphemeral(t)
	elsewhere := startListener(t, e.pool)
	eventually(t, "the other listener is connected", elsewhere.Healthy)
	outs := []<-chan *message.Message{
		messages(t, e.sub, "topic"), messages(t, e.sub, "topic"),
		messages(t, newSubscriber(t, e.pool, e.l), "topic"), messages(t, newSubscriber(t, e.pool, elsewhere), "topic"),
	}
	sent := e.publish(t, "topic", "x", 50, false)
	for _, out := range outs {
		wantSame(t, take(t, out, 50), sent)
	}
}
