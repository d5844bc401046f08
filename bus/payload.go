package bus

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/refusal"
)

// MaxPayload is the longest payload in bytes that PostgreSQL takes: it must be shorter than 8000.
const MaxPayload = 7999

// Payload is one of the four payloads.
type Payload interface {
	WorkflowResumable | TimerRegistered | ChannelMessage | OutboxPending
}

// WorkflowResumable is the payload of [EventWorkflowResumable].
type WorkflowResumable struct {
	InstanceID   string `json:"instance_id"`
	WorkflowName string `json:"workflow_name"`
}

// TimerRegistered is the payload of [EventTimerExpired], sent when a timer is registered.
type TimerRegistered struct {
	InstanceID string    `json:"instance_id"`
	TimerID    string    `json:"timer_id"`
	ExpiresAt  time.Time `json:"expires_at"`
}

// ChannelMessage is the payload of [EventChannelMessage]. TargetInstanceID is set for direct sends only.
type ChannelMessage struct {
	ChannelName      string `json:"channel_name"`
	MessageID        int64  `json:"message_id"`
	TargetInstanceID string `json:"target_instance_id,omitempty"`
}

var errMessageID = errors.New("message_id is no whole number of 64 bits")

// UnmarshalJSON implements json.Unmarshaler. It also reads what Romancy 0.6 sends, where the key of the channel is
// "channel", and takes a message_id that is written as a string of digits.
func (m *ChannelMessage) UnmarshalJSON(text []byte) error {
	var wire struct {
		ChannelName      string      `json:"channel_name"`
		Channel          string      `json:"channel"`
		MessageID        json.Number `json:"message_id"`
		TargetInstanceID string      `json:"target_instance_id"`
	}
	if err := json.Unmarshal(text, &wire); err != nil {
		return err
	}
	var id int64
	if wire.MessageID != "" {
		var err error
		if id, err = wire.MessageID.Int64(); err != nil {
			return errMessageID
		}
	}
	*m = ChannelMessage{ChannelName: cmp.Or(wire.ChannelName, wire.Channel), MessageID: id, TargetInstanceID: wire.TargetInstanceID}
	return nil
}

// OutboxPending is the payload of [EventOutboxPending].
type OutboxPending struct {
	EventID string `json:"event_id"`
}

// PayloadError says that a notification's payload is not what its channel carries: somebody else notifies there.
type PayloadError struct {
	// Channel is where the payload came from; empty if the message does not tell.
	Channel string
	// Payload is the beginning of what came.
	Payload string
	// Err says what is wrong with it.
	Err error
}

// Error implements error. The payload is not in it: whoever may connect to the database can have sent it.
func (e *PayloadError) Error() string {
	return fmt.Sprintf("payload on channel %q is not one of ours: %v", e.Channel, e.Err)
}

// Unwrap returns the cause.
func (e *PayloadError) Unwrap() error { return e.Err }

// Encode returns the compact JSON of payload. With ids of up to 255 bytes it never reaches [MaxPayload]. An instant that
// JSON cannot express (a year above 9999) gives the empty payload, which every subscriber takes as "look for yourself".
func Encode[T Payload](payload T) string {
	if timer, ok := any(&payload).(*TimerRegistered); ok {
		timer.ExpiresAt = timer.ExpiresAt.UTC()
	}
	var buf bytes.Buffer
	enc := json.NewEncoder(&buf)
	enc.SetEscapeHTML(false) // six bytes for a '<' would be wasted: nobody shows this in a page
	if err := enc.Encode(payload); err != nil {
		return ""
	}
	return strings.TrimSuffix(buf.String(), "\n")
}

// Decode reads the payload of a message that came from a [Subscriber]. Keys that it does not know are ignored, so that
// later versions may add some; a [ChannelMessage] may also be one of Romancy 0.6. It returns a [*PayloadError] if the payload is not JSON of that kind or lacks an id.
func Decode[T Payload](msg *message.Message) (T, error) {
	if msg == nil {
		var zero T
		return zero, &PayloadError{Err: errors.New("the message is nil: give one that came from a Subscriber")}
	}
	return decode[T](msg.Metadata.Get(MetadataChannel), msg.Payload)
}

func decode[T Payload](channel string, payload []byte) (T, error) {
	v, ok := readEncoded[T](string(payload))
	var err error
	if !ok {
		err = checkDepth(payload)
	}
	if !ok && err == nil {
		err = refusal.Decoding(json.Unmarshal(payload, &v))
	}
	if err == nil {
		err = checkIDs(v)
	}
	if err != nil {
		var zero T
		return zero, &PayloadError{Channel: channel, Payload: beginning(string(payload)), Err: brief(err)}
	}
	return v, nil
}

// maxDepth is how deep a payload may be nested. Ours are flat; what later versions add need not be.
const maxDepth = 16

var errDepth = fmt.Errorf("it is nested deeper than %d", maxDepth)

// checkDepth refuses what is nested so deep that reading it takes many times its size.
func checkDepth(payload []byte) error {
	depth, text := 0, false
	for i := 0; i < len(payload); i++ {
		switch c := payload[i]; {
		case c == '"':
			text = !text
		case text && c == '\\':
			i++
		case text:
		case c == '{' || c == '[':
			if depth++; depth > maxDepth {
				return errDepth
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return nil
}

// brief keeps an error from holding all that it quotes of a payload.
func brief(err error) error {
	const limit = 300
	if len(err.Error()) > limit {
		return errors.New("one of its values is not of its kind")
	}
	return err
}

// checkIDs reports which id is missing: any JSON object decodes into any of the four.
func checkIDs(payload any) error {
	missing := ""
	switch v := payload.(type) {
	case WorkflowResumable:
		if v.InstanceID == "" {
			missing = "instance_id"
		}
	case TimerRegistered:
		if v.InstanceID == "" {
			missing = "instance_id"
		}
	case ChannelMessage:
		if v.ChannelName == "" {
			missing = "channel_name"
		}
	case OutboxPending:
		if v.EventID == "" {
			missing = "event_id"
		}
	}
	if missing != "" {
		return fmt.Errorf("%s is missing", missing)
	}
	return nil
}

// checkEvent reports, as a *PayloadError, why payload is not what event carries.
func checkEvent(event Event, channel, payload string) error {
	var err error
	switch event {
	case EventWorkflowResumable:
		_, err = decode[WorkflowResumable](channel, []byte(payload))
	case EventTimerExpired:
		_, err = decode[TimerRegistered](channel, []byte(payload))
	case EventChannelMessage:
		_, err = decode[ChannelMessage](channel, []byte(payload))
	case EventOutboxPending:
		_, err = decode[OutboxPending](channel, []byte(payload))
	}
	return err
}

// beginning cuts text for a log line or an error.
func beginning(text string) string {
	const limit = 100
	if len(text) <= limit {
		return text
	}
	return strings.ToValidUTF8(text[:limit], "") + "..."
}
