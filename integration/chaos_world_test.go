package integration_test

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
)

// chaosKinds are the kinds of events: number i is of kind i modulo 4.
var chaosKinds = bus.Events()

// chaosInsert writes the events $1 of a kind. A writer that does not know whether it has committed writes again.
var chaosInsert = map[bus.Event]string{
	bus.EventWorkflowResumable: `insert into romancy.instances (id, workflow, status, token, ready_at)
		select 'run_' || n, 'orders', 'ready', 1, now() from unnest($1::int[]) n on conflict do nothing`,
	bus.EventTimerExpired: `insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, wake_position)
		select 'timer_' || n, 'orders', 'waiting', 1, now(), '2030-01-01'::timestamptz + n * interval '1 ms', 1
		from unnest($1::int[]) n on conflict do nothing`,
	bus.EventChannelMessage: `insert into romancy.mailbox (id, channel, mode, receiver, payload) overriding system value
		select n, 'orders', 'direct', 'run', '{}' from unnest($1::int[]) n on conflict do nothing`,
	bus.EventOutboxPending: `insert into romancy.outbox (event_id, topic, key, slot, payload)
		select 'evt_' || n, 'topic', 'key', 0, '' from unnest($1::int[]) n
		where not exists (select from romancy.outbox o where o.event_id = 'evt_' || n)`,
}

var chaosDelete = map[bus.Event]string{
	bus.EventWorkflowResumable: `delete from romancy.instances where id in (select 'run_' || n from unnest($1::int[]) n)`,
	bus.EventTimerExpired:      `delete from romancy.instances where id in (select 'timer_' || n from unnest($1::int[]) n)`,
	bus.EventChannelMessage:    `delete from romancy.mailbox where id = any($1::int[])`,
	bus.EventOutboxPending:     `delete from romancy.outbox where event_id in (select 'evt_' || n from unnest($1::int[]) n)`,
}

// chaosPayload is what a notification says of event n. The timer's deadline is the table's.
func chaosPayload(kind bus.Event, n int) string {
	id := strconv.Itoa(n)
	switch kind {
	case bus.EventWorkflowResumable:
		return bus.Encode(bus.WorkflowResumable{InstanceID: "run_" + id, WorkflowName: "orders"})
	case bus.EventTimerExpired:
		at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(time.Duration(n) * time.Millisecond)
		return bus.Encode(bus.TimerRegistered{InstanceID: "timer_" + id, TimerID: "timer:1", ExpiresAt: at})
	case bus.EventChannelMessage:
		return bus.Encode(bus.ChannelMessage{ChannelName: "orders", MessageID: int64(n), TargetInstanceID: "run"})
	case bus.EventOutboxPending:
		return bus.Encode(bus.OutboxPending{EventID: "evt_" + id})
	}
	return ""
}

// chaosNumber is the number of the event that a message speaks of.
func chaosNumber(kind bus.Event, msg *message.Message) (int, error) {
	var id string
	var err error
	switch kind {
	case bus.EventWorkflowResumable:
		var payload bus.WorkflowResumable
		payload, err = bus.Decode[bus.WorkflowResumable](msg)
		id = payload.InstanceID
	case bus.EventTimerExpired:
		var payload bus.TimerRegistered
		payload, err = bus.Decode[bus.TimerRegistered](msg)
		id = payload.InstanceID
	case bus.EventChannelMessage:
		var payload bus.ChannelMessage
		payload, err = bus.Decode[bus.ChannelMessage](msg)
		id = strconv.FormatInt(payload.MessageID, 10)
	case bus.EventOutboxPending:
		var payload bus.OutboxPending
		payload, err = bus.Decode[bus.OutboxPending](msg)
		id = payload.EventID
	}
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(id[strings.LastIndex(id, "_")+1:])
}

// write writes its share of the events, in small transactions spread over the time that the chaos lasts, and announces
// them in one of the three ways there are.
func (w *chaosWorld) write(writer int) {
	rng := w.rng(uint64(writer))
	start := time.Now()
	for first := 0; first < w.events; first += chaosBatch * len(chaosKinds) {
		due := start.Add(w.lasts * time.Duration(first) / time.Duration(w.events))
		select {
		case <-time.After(time.Until(due)):
		case <-w.writing.Done():
			return
		}
		kind := writer // one kind a writer
		var numbers []int
		for n := first + kind; n < min(w.events, first+chaosBatch*len(chaosKinds)); n += len(chaosKinds) {
			numbers = append(numbers, n)
		}
		way := rng.IntN(3)
		for w.attempt(way, chaosKinds[kind], numbers) != nil {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-w.writing.Done():
				return
			}
		}
		w.mu.Lock()
		for _, n := range numbers {
			w.announced[n] = true
		}
		w.mu.Unlock()
	}
}

// attempt commits and announces events. After an error it is not known whether they are committed.
func (w *chaosWorld) attempt(way int, kind bus.Event, numbers []int) error {
	ctx, cancel := context.WithTimeout(w.writing, 10*time.Second)
	defer cancel()
	channel := w.channels.Name(kind)
	var announcements []bus.Message
	var published []*message.Message
	for _, n := range numbers {
		payload := chaosPayload(kind, n)
		announcements = append(announcements, bus.Message{Channel: channel, Payload: payload})
		published = append(published, message.NewMessageWithContext(ctx, strconv.Itoa(n), []byte(payload)))
	}
	err := pgx.BeginFunc(ctx, w.direct, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, chaosInsert[kind], numbers); err != nil {
			return err
		}
		switch way {
		case 1:
			return w.notifier.NotifyTxMany(ctx, tx, announcements)
		case 2:
			return bus.TxPublisher(tx).Publish(channel, published...)
		}
		return nil
	})
	if err != nil {
		return err
	}
	if way == 0 {
		for _, m := range announcements {
			w.notifier.Notify(m.Channel, m.Payload)
		}
	}
	return nil
}

// subscribe begins the subscribers, each with a handler a channel, and ends them with the test.
func (w *chaosWorld) subscribe() {
	for subscriber := range chaosSubscribers {
		s, err := bus.NewSubscriber(bus.SubscriberConfig{
			Listener: w.listener, Pool: w.proxied, Logger: slog.New(slog.DiscardHandler),
			FallbackInterval: time.Hour, PollInterval: 200 * time.Millisecond,
			MaxInFlight: 4, QueueSize: 20, NackDelay: 5 * time.Millisecond,
		})
		w.must(err)
		var handlers sync.WaitGroup
		w.t.Cleanup(func() {
			if err := s.Close(); err != nil {
				w.t.Error(err)
			}
			handlers.Wait()
		})
		for i, kind := range chaosKinds {
			out, err := s.Subscribe(w.t.Context(), w.channels.Name(kind))
			w.must(err)
			handlers.Go(func() {
				rng := w.rng(uint64(100 + 10*subscriber + i))
				for msg := range out {
					w.handle(subscriber, kind, msg, rng)
				}
			})
		}
	}
}

// handle notes what comes. Some of it is refused first, and some takes its time.
func (w *chaosWorld) handle(subscriber int, kind bus.Event, msg *message.Message, rng *rand.Rand) {
	w.handlers.RLock()
	defer w.handlers.RUnlock()
	switch rng.IntN(500) {
	case 0, 1:
		msg.Nack()
		return
	case 2:
		time.Sleep(time.Duration(rng.Int64N(int64(20 * time.Millisecond))))
	}
	n, err := chaosNumber(kind, msg)
	if err != nil || n < 0 || n >= w.events {
		w.t.Errorf("%s: number %d, %v", msg.Payload, n, err)
	} else {
		w.saw(subscriber, n, msg.Metadata.Get(bus.MetadataSource))
	}
	msg.Ack()
}

func (w *chaosWorld) saw(subscriber, n int, source string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.delivered[source]++
	if w.seen[subscriber][n] {
		return
	}
	w.seen[subscriber][n] = true
	if w.by[n]++; w.by[n] == chaosSubscribers {
		w.done = append(w.done, n)
	}
	if w.left--; w.left == 0 {
		close(w.all)
	}
}

// consume deletes what everybody has seen, until stop is closed.
func (w *chaosWorld) consume(stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		case <-time.After(100 * time.Millisecond):
		}
		w.mu.Lock()
		done := w.done
		w.done = nil
		w.mu.Unlock()
		byKind := map[bus.Event][]int{}
		for _, n := range done {
			kind := chaosKinds[n%len(chaosKinds)]
			byKind[kind] = append(byKind[kind], n)
		}
		for kind, numbers := range byKind {
			ctx, cancel := context.WithTimeout(w.writing, 10*time.Second)
			_, err := w.direct.Exec(ctx, chaosDelete[kind], numbers)
			cancel()
			if err != nil { // the server is being restarted
				w.mu.Lock()
				w.done = append(w.done, numbers...)
				w.mu.Unlock()
			}
		}
	}
}
