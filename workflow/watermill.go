package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/refusal"
)

// MetadataInstanceID is the metadata key that names the run which a message handled by [Engine.SendHandler] is for.
const MetadataInstanceID = "romancy_instance_id"

// HandlerOption sets how the handlers of [Engine.StartHandler] and [Engine.SendHandler] treat messages.
type HandlerOption func(*handlerOptions)

type handlerOptions struct {
	reject func(*message.Message, error) error
	id     func(*message.Message) string
	target func(*message.Message) string
	care   *care
}

// WithRejected has reject called with every message that can never be handled, after it was logged, for instance to publish
// it to a poison queue. If it returns an error the message is not acknowledged, and comes again.
func WithRejected(reject func(msg *message.Message, cause error) error) HandlerOption {
	return func(o *handlerOptions) { o.reject = reject }
}

// WithMessageID has id name what makes a message the same as another, instead of its UUID: for StartHandler the id of the
// run that it starts, for SendHandler the key that it is sent under.
func WithMessageID(id func(msg *message.Message) string) HandlerOption {
	return func(o *handlerOptions) { o.id = id }
}

// WithTarget has target name the run that a message is for, instead of the metadata key [MetadataInstanceID]. Empty: the
// message is published.
func WithTarget(target func(msg *message.Message) string) HandlerOption {
	return func(o *handlerOptions) { o.target = target }
}

// StartHandler returns a Watermill handler that starts a run of definition for each message: its payload is the input, as
// JSON, and its UUID the run's id, so that a message delivered twice starts one run.
//
// A message that can never start one (a payload that is not the JSON of the input, an id that cannot be stored or belongs to
// a run with another input) is rejected: logged as an error and acknowledged, because it would otherwise come back for ever
// and hold up those behind it. Any other error is returned, so that the router's middleware retries or the message is
// delivered again: also what the database refuses whatever the message says, such as a missing grant, a lock, a full disk or
// a schema that is being migrated. While it does, the handler returns after a pause, of 2 s at most, that grows with each
// failure in a row.
func (e *Engine) StartHandler(definition Definition, options ...HandlerOption) message.NoPublishHandlerFunc {
	chosen := newHandlerOptions(options)
	return func(msg *message.Message) error {
		if err := definition.checkInput(msg.Payload); err != nil {
			return e.reject(msg, chosen, fmt.Errorf("start workflow %q: %w", definition.Name(), err))
		}
		ask, err := e.newStart(definition.Name(), json.RawMessage(msg.Payload), []StartOption{WithID(chosen.id(msg))})
		if err != nil {
			return e.rejectUnlessClosed(msg, chosen, fmt.Errorf("start workflow %q: %w", definition.Name(), err))
		}
		if _, err := e.start(contextOf(msg), ask); err != nil {
			return e.rejectIfPermanent(msg, chosen, fmt.Errorf("start workflow %q: %w", definition.Name(), err))
		}
		chosen.care.succeeded()
		return nil
	}
}

// SendHandler returns a Watermill handler that sends each message to a run, or publishes it if it names none: on channel, with
// its payload, which has to be JSON, as the body and its metadata as the metadata. The run is named by the metadata key
// [MetadataInstanceID], or by WithTarget. The message's UUID is the key it is sent under, see [WithSendKey]: delivered twice
// by the broker within Config.SendKeyRetention, it is sent once.
//
// A message that can never be sent (no JSON, no UUID, a receiver that does not exist or has ended) is rejected, see
// [Engine.StartHandler]; any other error is returned. The cause of a receiver that does not exist is also [ErrNotFound]: where
// the run may be started later, have WithRejected return it, and the message comes again.
func (e *Engine) SendHandler(channel string, options ...HandlerOption) message.NoPublishHandlerFunc {
	chosen := newHandlerOptions(options)
	mistake := checkChannel(channel)
	return func(msg *message.Message) error {
		if mistake != nil {
			return mistake // not the message's
		}
		failed := func(err error) error { return fmt.Errorf("send to channel %q: %w", channel, err) }
		if err := e.check(); err != nil {
			return failed(err)
		}
		target := chosen.target(msg)
		if target != "" {
			if err := checkName("instance id", target); err != nil {
				return e.reject(msg, chosen, failed(err))
			}
		}
		ask, err := newDelivery(target, channel, json.RawMessage(msg.Payload), []SendOption{
			WithSendKey(chosen.id(msg)), WithMetadata(msg.Metadata),
		})
		if err != nil {
			return e.reject(msg, chosen, failed(err))
		}
		if err := e.deliver(contextOf(msg), ask); err != nil {
			return e.rejectIfPermanent(msg, chosen, err)
		}
		chosen.care.succeeded()
		return nil
	}
}

func newHandlerOptions(options []HandlerOption) handlerOptions {
	chosen := handlerOptions{
		reject: func(*message.Message, error) error { return nil },
		id:     func(msg *message.Message) string { return msg.UUID },
		target: func(msg *message.Message) string { return msg.Metadata.Get(MetadataInstanceID) },
		care:   new(care),
	}
	for _, option := range options {
		option(&chosen)
	}
	return chosen
}

// rejectUnlessClosed: the engine has looked at the message alone, so its mistake is permanent, unless it is not the message's.
func (e *Engine) rejectUnlessClosed(msg *message.Message, chosen handlerOptions, err error) error {
	if errors.Is(err, ErrClosed) || errors.Is(err, ErrNotStarted) || errors.Is(err, errNotRegistered) {
		return err
	}
	return e.reject(msg, chosen, err)
}

// rejectIfPermanent: the receiver or the database may have refused what the message says. Whatever else the database says,
// the message is not at fault: it comes again, but not at once.
func (e *Engine) rejectIfPermanent(msg *message.Message, chosen handlerOptions, err error) error {
	switch {
	case errors.Is(err, ErrIDConflict), errors.Is(err, ErrUndeliverable), refusal.Of(err) == refusal.Value:
		return e.reject(msg, chosen, err)
	case errors.Is(err, ErrClosed), errors.Is(err, ErrNotStarted):
		return err
	default:
		chosen.care.pause(contextOf(msg))
		return err
	}
}

const (
	firstPause = 50 * time.Millisecond
	mostPause  = 2 * time.Second
)

// care keeps a handler's messages from coming again as fast as a broker can deliver them, while the database refuses them.
type care struct{ failures atomic.Int64 } // in a row

// pause waits after a failure, twice as long after each further one, half of it random; at most until ctx ends.
func (c *care) pause(ctx context.Context) {
	wait := mostPause
	if n := c.failures.Add(1); n < 16 {
		wait = min(firstPause<<(n-1), mostPause)
	}
	select {
	case <-time.After(wait/2 + rand.N(wait/2)):
	case <-ctx.Done():
	}
}

func (c *care) succeeded() { c.failures.Store(0) }

func (e *Engine) reject(msg *message.Message, chosen handlerOptions, cause error) error {
	logger := slog.Default()
	if e != nil {
		logger = e.logger
	}
	logger.LogAttrs(context.WithoutCancel(msg.Context()), slog.LevelError, "message rejected",
		slog.String("message_uuid", msg.UUID), slog.Any("error", cause))
	if err := chosen.reject(msg, cause); err != nil {
		return fmt.Errorf("message %s was rejected (%w), and that could not be noted: %w", msg.UUID, cause, err)
	}
	return nil
}
