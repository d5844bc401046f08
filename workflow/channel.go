package workflow

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Mode is how the messages published to a channel reach its subscribers.
type Mode string

const (
	// Broadcast delivers every message to every run that is subscribed when it is published.
	Broadcast Mode = "broadcast"
	// Competing delivers every message to exactly one of the subscribed runs.
	Competing Mode = "competing"
)

// Message is what Receive returns.
type Message[T any] struct {
	ID       int64
	Channel  string
	Sender   string // the run that sent it; empty when it came from outside
	SentAt   time.Time
	Metadata map[string]string
	Body     T
}

type storedMessage struct {
	ID       int64             `json:"id"`
	Channel  string            `json:"channel"`
	Sender   string            `json:"sender"`
	SentAt   time.Time         `json:"sent_at"`
	Metadata map[string]string `json:"metadata"`
	Body     json.RawMessage   `json:"body"`
	Timeout  bool              `json:"timeout"`
}

// ReceiveOption sets how Receive waits.
type ReceiveOption func(*receiveOptions)

type receiveOptions struct {
	timeout time.Duration
}

// WithTimeout ends the wait after d with ErrTimeout. The deadline is stored, by the database's clock. Without it, or with d
// zero or less, Receive waits for ever.
func WithTimeout(d time.Duration) ReceiveOption {
	return func(o *receiveOptions) { o.timeout = d }
}

// Receive waits for the next message of channel and takes it: one sent to this run directly, or, if the run is subscribed
// to the channel, one published there. Messages that came before Receive is called are waiting for it. It returns
// ErrTimeout when WithTimeout is given and nothing came in time.
func Receive[T any](ctx *Context, channel string, options ...ReceiveOption) (Message[T], error) {
	var message Message[T]
	if err := checkName("channel", channel); err != nil {
		return message, err
	}
	var chosen receiveOptions
	for _, option := range options {
		option(&chosen)
	}
	stored, err := ctx.run.receive(channel, chosen.timeout)
	if err != nil {
		return message, err
	}
	message = Message[T]{ID: stored.ID, Channel: stored.Channel, Sender: stored.Sender, SentAt: stored.SentAt, Metadata: stored.Metadata}
	if err := decodeValue(stored.Body, &message.Body); err != nil {
		return message, fmt.Errorf("decode message %d of channel %q into %T: %w", stored.ID, channel, message.Body, err)
	}
	return message, nil
}

// Subscribe makes this run a subscriber of channel, until it ends or unsubscribes. All subscribers of a channel share one
// mode; ErrModeConflict says that it is in use in the other.
func Subscribe(ctx *Context, channel string, mode Mode) error {
	if err := checkName("channel", channel); err != nil {
		return err
	}
	if mode != Broadcast && mode != Competing {
		return fmt.Errorf("mode %q: use workflow.Broadcast or workflow.Competing", mode)
	}
	return ctx.run.subscribe(channel, mode)
}

// Unsubscribe ends this run's subscription to channel, if it has one. Messages already delivered to it stay receivable.
func Unsubscribe(ctx *Context, channel string) error {
	if err := checkName("channel", channel); err != nil {
		return err
	}
	return ctx.run.unsubscribe(channel)
}

// Publish sends value, encoded as JSON, to the subscribers of channel: to each of them if it is in broadcast mode, to one
// of them if it is in competing mode. While nobody is subscribed the message is kept for the first competing subscriber.
func Publish(ctx *Context, channel string, value any, options ...SendOption) error {
	ask, err := newDelivery("", channel, value, options)
	if err != nil {
		return err
	}
	return ctx.run.deliver(ask)
}

// SendTo sends value, encoded as JSON, to one run. It is kept until that run receives it. It returns ErrUndeliverable if
// the run does not exist or has ended.
func SendTo(ctx *Context, instanceID, channel string, value any, options ...SendOption) error {
	if err := checkName("instance id", instanceID); err != nil {
		return err
	}
	ask, err := newDelivery(instanceID, channel, value, options)
	if err != nil {
		return err
	}
	return ctx.run.deliver(ask)
}

// SendOption sets how a message is sent.
type SendOption func(*sendOptions)

type sendOptions struct {
	metadata map[string]string
}

// WithMetadata sends metadata along; the receiver finds it in Message.Metadata.
func WithMetadata(metadata map[string]string) SendOption {
	return func(o *sendOptions) { o.metadata = metadata }
}

// newDelivery checks and encodes a message; target is empty for one that is published.
func newDelivery(target, channel string, value any, options []SendOption) (store.Deliver, error) {
	if err := checkName("channel", channel); err != nil {
		return store.Deliver{}, err
	}
	var chosen sendOptions
	for _, option := range options {
		option(&chosen)
	}
	ask := store.Deliver{Target: target, Channel: channel}
	var err error
	if ask.Payload, err = encodeJSON("the message for channel "+channel, value); err != nil {
		return ask, err
	}
	if len(chosen.metadata) > 0 {
		ask.Metadata, err = encodeJSON("the metadata for channel "+channel, chosen.metadata)
	}
	return ask, err
}
