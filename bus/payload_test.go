package bus

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

func decodeText[T Payload](text string) (T, error) {
	msg := message.NewMessage("1", []byte(text))
	msg.Metadata.Set(MetadataChannel, "somewhere")
	return Decode[T](msg)
}

func roundTrip[T Payload](t *testing.T, payload T, want string) {
	t.Helper()
	text := Encode(payload)
	if text != want {
		t.Errorf("got %s, want %s", text, want)
	}
	if got, err := decodeText[T](text); err != nil || got != payload {
		t.Errorf("got %+v, %v, want %+v", got, err, payload)
	}
}

func TestPayloadsAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	roundTrip(t, WorkflowResumable{"wf_<abc>", "order_processing"}, `{"instance_id":"wf_<abc>","workflow_name":"order_processing"}`)
	roundTrip(t, TimerRegistered{"wf_abc123", "timer:sleep_1", time.Date(2025, 1, 15, 10, 30, 0, 0, time.UTC)},
		`{"instance_id":"wf_abc123","timer_id":"timer:sleep_1","expires_at":"2025-01-15T10:30:00Z"}`)
	roundTrip(t, ChannelMessage{"orders", 42, "wf_abc123"}, `{"channel_name":"orders","message_id":42,"target_instance_id":"wf_abc123"}`)
	roundTrip(t, ChannelMessage{"orders", 9007199254740993, ""}, `{"channel_name":"orders","message_id":9007199254740993}`)
	roundTrip(t, OutboxPending{"evt_123"}, `{"event_id":"evt_123"}`)

	kathmandu := time.FixedZone("+0545", 5*3600+45*60)
	if got := Encode(TimerRegistered{"a", "b", time.Date(2025, 1, 15, 10, 30, 0, 0, kathmandu)}); !strings.Contains(got, "2025-01-15T04:45:00Z") {
		t.Errorf("got %s, want UTC", got)
	}
	if got := Encode(TimerRegistered{"a", "b", time.Date(12000, 1, 1, 0, 0, 0, 0, time.UTC)}); got != "" {
		t.Errorf("got %s for a year that JSON cannot express", got)
	}
	longest := strings.Repeat("\x01", 255)
	if got := len(Encode(WorkflowResumable{longest, longest})); got > MaxPayload {
		t.Errorf("the longest ids make %d bytes", got)
	}
}

func TestForeignPayloadIsATypedError(t *testing.T) {
	t.Parallel()
	var text string
	check := func(_ any, err error) {
		t.Helper()
		var typed *PayloadError
		if !errors.As(err, &typed) || typed.Channel != "somewhere" || len(typed.Payload) > 110 {
			t.Errorf("%.20q: got %v", text, err)
		}
	}
	for _, text = range []string{"", "x", "null", "[]", "{}", `{"instance_id":7}`, `{"other":"x"}`, strings.Repeat("ä", 4000)} {
		check(decodeText[WorkflowResumable](text))
		check(decodeText[TimerRegistered](text))
		check(decodeText[ChannelMessage](text))
		check(decodeText[OutboxPending](text))
	}
	if _, err := decodeText[OutboxPending](`{"event_id":"1","added_later":true}`); err != nil {
		t.Errorf("a key of a later version: %v", err)
	}
	brackets := TimerRegistered{`"[[[[[[[[[[[[[[[[[[[[[[[[[[\\"[`, "{{{{{{{{{{{{{{{{{{{{{{{{{", time.Time{}}
	if got, err := decodeText[TimerRegistered](Encode(brackets)); err != nil || got != brackets {
		t.Errorf("brackets in texts: %+v, %v", got, err)
	}
}

// Whoever may connect to the database can notify: nothing of what came stands in the error that goes to logs.
func TestAForeignPayloadIsNotQuoted(t *testing.T) {
	t.Parallel()
	for _, text := range []string{
		"hunter2", `{"instance_id":"hunter2"`, `{"instance_id":4111111,"event_id":4111111,"channel_name":4111111}`, `["card-4111"]`,
		`{"channel_name":"a","message_id":"card-4111"}`, `{"instance_id":"1","expires_at":"hunter2"}`, `{"channel_name":"a","message_id":4111111.5}`,
	} {
		for _, err := range []error{
			errorOf(decodeText[WorkflowResumable](text)), errorOf(decodeText[TimerRegistered](text)), errorOf(decodeText[ChannelMessage](text)),
			errorOf(decodeText[OutboxPending](text)),
		} {
			for _, secret := range []string{"hunter2", "card-4111", "4111111"} {
				if err != nil && strings.Contains(fmt.Sprintf("%v %+v", err, err), secret) {
					t.Errorf("%s: %v", text, err)
				}
			}
		}
	}
}

func errorOf[T any](_ T, err error) error { return err }
