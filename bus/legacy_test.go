package bus

import (
	"errors"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// legacyChannels are the names that a Romancy 0.6 database uses.
var legacyChannels = Channels{
	WorkflowResumable: "workflow_resumable",
	TimerExpired:      "workflow_timer_expired",
	ChannelMessage:    "workflow_channel_message",
	OutboxPending:     "workflow_outbox_pending",
}

// What Romancy 0.6 notifies arrives, decoded, beside what this version notifies on the same names.
func TestSubscriberUnderstandsARomancy06Database(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.Channels = legacyChannels })
	n := startNotifier(t, pool)

	resumable := messages(t, s, "workflow_resumable")
	notify(t, pool, "workflow_resumable", `{"instance_id": "wf_1", "workflow_name": "order"}`)
	wantPayload(t, resumable, WorkflowResumable{"wf_1", "order"})
	n.Notify(legacyChannels.WorkflowResumable, Encode(WorkflowResumable{"wf_2", "order"}))
	wantPayload(t, resumable, WorkflowResumable{"wf_2", "order"})

	timers := messages(t, s, "workflow_timer_expired")
	notify(t, pool, "workflow_timer_expired", `{"instance_id": "wf_1", "timer_id": "sleep:1", "expires_at": "2025-01-15T10:30:00Z"}`)
	wantPayload(t, timers, TimerRegistered{"wf_1", "sleep:1", time.Date(2025, 1, 15, 10, 30, 0, 0, time.UTC)})

	mail := messages(t, s, "workflow_channel_message")
	for _, payload := range []string{
		`{"channel":"orders","message_id":42,"target_instance_id":"wf"}`,
		`{"channel":"orders","message_id":"42","target_instance_id":"wf"}`,
		Encode(ChannelMessage{"orders", 42, "wf"}),
	} {
		notify(t, pool, "workflow_channel_message", payload)
		wantPayload(t, mail, ChannelMessage{"orders", 42, "wf"})
	}
	notify(t, pool, "workflow_channel_message", `{"channel":"orders","message_id":43}`)
	wantPayload(t, mail, ChannelMessage{"orders", 43, ""})

	outbox := messages(t, s, "workflow_outbox_pending")
	notify(t, pool, "workflow_outbox_pending", `{"event_id": "evt_1"}`)
	wantPayload(t, outbox, OutboxPending{"evt_1"})
	// What is lost is caught up, on the old name.
	addEvents(t, pool, "evt_2")
	pgtest.KillBackends(t, pool, "% listen")
	msg := wantPayload(t, outbox, OutboxPending{"evt_2"})
	if msg.Metadata.Get(MetadataSource) != SourceCatchUp || msg.Metadata.Get(MetadataChannel) != "workflow_outbox_pending" {
		t.Errorf("metadata: %v", msg.Metadata)
	}
}

func TestBothKeysOfTheChannelAreRead(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]ChannelMessage{
		`{"channel":"a","message_id":9007199254740993}`:   {"a", 9007199254740993, ""},
		`{"channel":"a","message_id":"9007199254740993"}`: {"a", 9007199254740993, ""},
		`{"channel":"old","channel_name":"new"}`:          {"new", 0, ""},
		`{"channel_name":"a","message_id":null}`:          {"a", 0, ""},
	} {
		if got, err := decodeText[ChannelMessage](text); err != nil || got != want {
			t.Errorf("%s: got %+v, %v, want %+v", text, got, err, want)
		}
	}
	for _, text := range []string{
		`{"message_id":1}`, `{"channel":7}`, `{"channel":"a","message_id":"x"}`, `{"channel":"a","message_id":1.5}`,
		`{"channel":"a","message_id":9223372036854775808}`, `{"channel":"a","message_id":""}`,
	} {
		var typed *PayloadError
		if got, err := decodeText[ChannelMessage](text); !errors.As(err, &typed) {
			t.Errorf("%s: got %+v, %v", text, got, err)
		}
	}
}

func wantPayload[T Payload](t testing.TB, out <-chan *message.Message, want T) *message.Message {
	t.Helper()
	msg := receive(t, out)
	if got, err := Decode[T](msg); err != nil || got != want {
		t.Fatalf("got %s, %v, want %+v", msg.Payload, err, want)
	}
	msg.Ack()
	return msg
}
