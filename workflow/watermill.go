package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgconn"
)

// MetadataInstanceID is the metadata key that names the run which a message handled by [Engine.SendHandler] is for.
const MetadataInstanceID = "romancy_instance_id"

// HandlerOption sets how the handlers of [Engine.StartHandler] and [Engine.SendHandler] treat messages.
type HandlerOption func(*handlerOptions)

type handlerOptions struct {
	reject func(*message.Message, error) error
	id     func(*message.Message) string
	target func(*message.Message) string
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
// delivered again: also what the database refuses whatever the message says, such as a missing grant or a schema that is
// being migrated.
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
		return nil
	}
}

func newHandlerOptions(options []HandlerOption) handlerOptions {
	chosen := handlerOptions{
		reject: func(*message.Message, error) error { return nil },
		id:     func(msg *message.Message) string { return msg.UUID },
		target: func(msg *message.Message) string { return msg.Metadata.Get(MetadataInstanceID) },
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

// rejectIfPermanent: the receiver or the database may have refused what the message says.
func (e *Engine) rejectIfPermanent(msg *message.Message, chosen handlerOptions, err error) error {
	refused := new(pgconn.PgError)
	switch {
	case errors.Is(err, ErrIDConflict), errors.Is(err, ErrUndeliverable), errors.As(err, &refused) && refusesData(refused):
		return e.reject(msg, chosen, err)
	default:
		return err
	}
}

// refusesData reports whether PostgreSQL has refused the data of a statement and not the statement: classes 22 (data exception)
// and 54 (program limit exceeded) of appendix A of its manual. Classes 23 (integrity constraint) and 42 (access rule, undefined
// object) are no message's fault here: what the tables' own constraints ask for is checked before, so they come of missing
// grants, of a schema that is being migrated, or of constraints that somebody has added.
func refusesData(err *pgconn.PgError) bool {
	return strings.HasPrefix(err.Code, "22") || strings.HasPrefix(err.Code, "54")
}

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
