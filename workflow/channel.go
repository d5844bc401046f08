package workflow

import (
	"encoding/json"
	"errors"
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
	// Direct delivers what is sent to a run to that run alone, as it does without a subscription, and nothing that is
	// published: subscribing says that the channel is not for that, and keeps others from subscribing in another mode.
	Direct Mode = "direct"
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

// ReceiveOption sets how a run waits.
type ReceiveOption interface{ applyReceive(o *receiveOptions) }

type receiveOptions struct {
	timeout *time.Duration // nil: none was given
}

// TimeoutOption bounds a wait, or each attempt of an activity.
type TimeoutOption struct{ d time.Duration }

// WithTimeout ends a wait after d with ErrTimeout: the deadline is stored, by the database's clock. With d zero or
// less the wait takes what is there already, and else ends at once, which is recorded like any other timeout. Without
// WithTimeout it has no end.
//
// For an activity it bounds each attempt: its context ends after d, which must be positive. Without it an attempt may take any
// time; it is not taken over while its worker lives.
func WithTimeout(d time.Duration) TimeoutOption { return TimeoutOption{d: d} }

func (t TimeoutOption) applyReceive(o *receiveOptions) { o.timeout = &t.d }

func (t TimeoutOption) applyActivity(o *activityOptions) {
	o.timeout = t.d
	if t.d <= 0 {
		o.err = errors.Join(o.err, fmt.Errorf("WithTimeout(%s): use a positive duration for an activity", t.d))
	}
}

func newReceiveOptions(options []ReceiveOption) receiveOptions {
	var chosen receiveOptions
	for _, option := range options {
		if option != nil {
			option.applyReceive(&chosen)
		}
	}
	return chosen
}

// Receive waits for the next message of channel and takes it: one sent to this run directly, or, if the run is subscribed
// to the channel, one published there. Messages that came before Receive is called are waiting for it. It returns
// ErrTimeout when WithTimeout is given and nothing came in time.
func Receive[T any](ctx *Context, channel string, options ...ReceiveOption) (Message[T], error) {
	if err := checkChannel(channel); err != nil {
		return Message[T]{}, err
	}
	stored, err := carryOut(ctx.current(), commandReceive, func() (storedMessage, error) {
		return ctx.run.receive(channel, newReceiveOptions(options).timeout)
	})
	if err != nil {
		return Message[T]{}, err
	}
	return newMessage[T](stored)
}

// MaxReceived is how many messages ReceiveMany returns at most.
const MaxReceived = 1000

// ReceiveMany waits for a message of channel as Receive does, and takes those that are there besides, at most limit in all, at
// most [MaxReceived], and besides the first one no more than [MaxPayload] bytes. They are recorded together.
func ReceiveMany[T any](ctx *Context, channel string, limit int, options ...ReceiveOption) ([]Message[T], error) {
	if err := checkChannel(channel); err != nil {
		return nil, err
	}
	if limit < 1 || limit > MaxReceived {
		return nil, fmt.Errorf("receive many: the limit is %d: use 1 to %d", limit, MaxReceived)
	}
	stored, err := carryOut(ctx.current(), commandReceive, func() ([]storedMessage, error) {
		return ctx.run.receiveMany(channel, newReceiveOptions(options).timeout, limit)
	})
	if err != nil {
		return nil, err
	}
	messages := make([]Message[T], len(stored))
	var errs []error
	for i, one := range stored {
		var err error
		messages[i], err = newMessage[T](one)
		errs = append(errs, err)
	}
	return messages, errors.Join(errs...)
}

func newMessage[T any](stored storedMessage) (Message[T], error) {
	message := Message[T]{ID: stored.ID, Channel: stored.Channel, Sender: stored.Sender, SentAt: stored.SentAt, Metadata: stored.Metadata}
	if err := decodeValue(stored.Body, &message.Body); err != nil {
		return message, fmt.Errorf("decode message %d of channel %q into %T: %w", stored.ID, stored.Channel, message.Body, err)
	}
	return message, nil
}

// Subscribe makes this run a subscriber of channel, until it ends or unsubscribes. All subscribers of a channel share one
// mode; ErrModeConflict says that it is in use in another.
func Subscribe(ctx *Context, channel string, mode Mode) error {
	if err := checkChannel(channel); err != nil {
		return err
	}
	if mode != Broadcast && mode != Competing && mode != Direct {
		return fmt.Errorf("mode %.40q: use workflow.Broadcast, workflow.Competing or workflow.Direct", mode)
	}
	return ctx.current().carryOut(commandSubscribe, func() error { return ctx.run.subscribe(channel, mode) })
}

// Unsubscribe ends this run's subscription to channel, if it has one. Messages already delivered to it stay receivable.
func Unsubscribe(ctx *Context, channel string) error {
	if err := checkChannel(channel); err != nil {
		return err
	}
	return ctx.current().carryOut(commandUnsubscribe, func() error { return ctx.run.unsubscribe(channel) })
}

// Publish sends value, encoded as JSON, to the subscribers of channel: to each of them if it is in broadcast mode, to one
// of them if it is in competing mode. While nobody is subscribed the message is kept for the first competing subscriber.
func Publish(ctx *Context, channel string, value any, options ...SendOption) error {
	ask, err := newDelivery("", channel, value, options)
	if err != nil {
		return err
	}
	return ctx.current().carryOut(commandPublish, func() error { return ctx.run.deliver(ask) })
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
	return ctx.current().carryOut(commandSendTo, func() error { return ctx.run.deliver(ask) })
}

// SendOption sets how a message is sent.
type SendOption func(*sendOptions)

type sendOptions struct {
	metadata map[string]string
	key      string
	keyed    bool
}

// WithMetadata sends metadata along; the receiver finds it in Message.Metadata.
func WithMetadata(metadata map[string]string) SendOption {
	return func(o *sendOptions) { o.metadata = metadata }
}

// WithSendKey makes sending idempotent: of all that is sent to one run on one channel under the same key, or published to one
// channel under it, the first message is sent; sending the others does nothing and is no error, even if the receiver has
// ended meanwhile. key has 1 to 255 bytes. It is kept for Config.SendKeyRetention at least. A message that was not sent, because its
// transaction was rolled back or its receiver did not exist, leaves the key free. While another transaction that has sent
// under the key is open, sending waits for its end, bounded by ctx.
func WithSendKey(key string) SendOption {
	return func(o *sendOptions) { o.key, o.keyed = key, true }
}

// newDelivery checks and encodes a message; target is empty for one that is published.
func newDelivery(target, channel string, value any, options []SendOption) (store.Deliver, error) {
	if err := checkChannel(channel); err != nil {
		return store.Deliver{}, err
	}
	var chosen sendOptions
	for _, option := range options {
		if option != nil {
			option(&chosen)
		}
	}
	ask := store.Deliver{Target: target, Channel: channel}
	if chosen.keyed {
		if err := checkName("send key", chosen.key); err != nil {
			return ask, err
		}
		// The lengths say where one name ends and the next begins.
		ask.Key = fmt.Sprintf("%d:%s%d:%s%s", len(target), target, len(channel), channel, chosen.key)
	}
	var err error
	if ask.Payload, err = encodeValue("the message for channel", channel, value); err != nil {
		return ask, err
	}
	if len(chosen.metadata) > 0 {
		if ask.Metadata, err = encodeMetadata(channel, chosen.metadata); err != nil {
			return ask, err
		}
	}
	return ask, checkSize("the message and its metadata for channel", channel, len(ask.Payload)+len(ask.Metadata))
}

// encodeMetadata encodes what goes along with a message. The engine reads it itself: the trace is in it.
func encodeMetadata(channel string, metadata map[string]string) ([]byte, error) {
	text, err := json.Marshal(metadata)
	if err != nil {
		return nil, fmt.Errorf("encode the metadata for channel %q: %w", channel, err)
	}
	return text, checkSize("the metadata for channel", channel, len(text))
}
