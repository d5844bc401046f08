package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/romancy-go/romancy/outbox"
)

// received is a message as JetStream has stored it.
type received struct {
	id      string
	topic   string
	payload []byte
	event   OrderEvent
	at      time.Time
}

// readStream reads the whole stream of events from its beginning, with a consumer that nobody else uses.
func readStream(ctx context.Context, url string) ([]received, error) {
	ctx, cancel := context.WithTimeout(ctx, brokerTimeout)
	defer cancel()
	conn, js, err := connectJetStream(url, "orders demo: checks")
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stream, err := js.Stream(ctx, streamEvents)
	if err != nil {
		return nil, fmt.Errorf("stream %s: %w", streamEvents, err)
	}
	consumer, err := stream.OrderedConsumer(ctx, jetstream.OrderedConsumerConfig{})
	if err != nil {
		return nil, fmt.Errorf("read stream %s: %w", streamEvents, err)
	}
	want := stream.CachedInfo().State.Msgs
	all := make([]received, 0, want)
	for uint64(len(all)) < want {
		msg, err := consumer.Next(jetstream.FetchMaxWait(brokerTimeout))
		if err != nil {
			return nil, fmt.Errorf("read stream %s: message %d of %d: %w", streamEvents, len(all)+1, want, err)
		}
		about, err := msg.Metadata()
		if err != nil {
			return nil, fmt.Errorf("read stream %s: %w", streamEvents, err)
		}
		r := received{id: msg.Headers().Get(outbox.MetadataEventID), topic: msg.Subject(), payload: msg.Data(), at: about.Timestamp}
		if err := json.Unmarshal(r.payload, &r.event); err != nil {
			return nil, fmt.Errorf("event %s: %w", r.id, err)
		}
		all = append(all, r)
	}
	return all, nil
}

// delivery is what the stream says about the outbox.
type delivery struct {
	messages     int
	missing      []string // events that never came
	unexpected   []string // events that nobody can have emitted, or with another content than expected
	outOfOrder   []string // events that came before an earlier one of their customer
	duplicates   int      // messages with the id of an earlier one
	unexplained  []string // of those, the ones that the killed worker does not explain
	mostOfAnyKey int      // events of the customer with the most
}

// compareStream compares what JetStream received with what had to come. A killed relay may have published what it could not
// mark as published any more: one copy before the kill, one after it, and the same content.
func compareStream(messages []received, want expectation, killedAt time.Time) delivery {
	d := delivery{messages: len(messages)}
	first := map[string]received{}
	numbers := map[string]int{} // the last of each customer
	for _, r := range messages {
		if earlier, seen := first[r.id]; seen {
			d.duplicates++
			if killedAt.IsZero() || earlier.at.After(killedAt) || r.at.Before(killedAt) || !bytes.Equal(earlier.payload, r.payload) {
				d.unexplained = append(d.unexplained, r.id)
			}
			continue
		}
		first[r.id] = r
		expected, ok := want.events[r.id]
		if !ok || expected != (expectedEvent{topic: r.topic, customer: r.event.CustomerID, order: r.event.OrderID}) {
			d.unexpected = append(d.unexpected, r.id)
			continue
		}
		if r.event.Number != numbers[expected.customer]+1 {
			d.outOfOrder = append(d.outOfOrder, r.id)
		}
		numbers[expected.customer] = r.event.Number
		d.mostOfAnyKey = max(d.mostOfAnyKey, r.event.Number)
	}
	for id := range want.events {
		if _, ok := first[id]; !ok {
			d.missing = append(d.missing, id)
		}
	}
	return d
}
