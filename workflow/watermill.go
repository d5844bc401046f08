package workflow

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
)

// MetadataInstanceID is the metadata key that [TargetFromMetadata] reads.
const MetadataInstanceID = "romancy_instance_id"

// HandlerOption sets how the handlers of [Engine.StartHandler] and [Engine.SendHandler] treat messages.
type HandlerOption func(*handlerOptions)

type handlerOptions struct {
	reject func(*message.Message, error) error
	id     func(*message.Message) string // nil: made from the UUID
	target func(*message.Message) string // nil: nobody, the message is published
	traced bool
	care   *care
}

// WithRejected has reject called with every message that can never be handled, after it was logged, for instance to publish
// it to a poison queue. If it returns an error the message is not acknowledged, and comes again.
func WithRejected(reject func(msg *message.Message, cause error) error) HandlerOption {
	return func(o *handlerOptions) { o.reject = reject }
}

// WithMessageID has id name what makes a message the same as another: for StartHandler the id of the run that it starts, for
// SendHandler the key that it is sent under. It is used as it is, so whoever may publish and has a say in it chooses among all ids
// of runs, or among all keys of the channel, and can be the first to use one. Default: an id made from the UUID of the message, that
// no run and no key of the application's has, see [MessageRunID].
func WithMessageID(id func(msg *message.Message) string) HandlerOption {
	return func(o *handlerOptions) { o.id = id }
}

// WithTarget has target name the run that a message is for, such as [TargetFromMetadata]. Empty: the message is published. If target
// goes by what the message says, whoever may publish sends to any run. Default: every message is published.
func WithTarget(target func(msg *message.Message) string) HandlerOption {
	return func(o *handlerOptions) { o.target = target }
}

// TargetFromMetadata is for [WithTarget]. It lets the producer of a message choose the run that it is for, by the metadata key
// [MetadataInstanceID].
func TargetFromMetadata(msg *message.Message) string {
	if msg == nil {
		return ""
	}
	return msg.Metadata.Get(MetadataInstanceID)
}

// WithTraceFromMetadata has runs that are started, and messages that are sent, continue the trace that the metadata of a message
// names (traceparent and tracestate, as W3C has them). Its producer then chooses the trace, and whether it is sampled. Default: only
// a span that the context of the message has already is continued, which a middleware of the application puts there.
func WithTraceFromMetadata() HandlerOption {
	return func(o *handlerOptions) { o.traced = true }
}

// MessageRunID returns the id of the run of definition that [Engine.StartHandler] starts for msg, unless WithMessageID
// says otherwise: made from the workflow's name, the topic that the router has taken msg from (none without a router)
// and its UUID. It is empty if either is nil.
func MessageRunID(definition Definition, msg *message.Message) string {
	if bounds.Nothing(definition) || msg == nil {
		return ""
	}
	return messageID(definition.Name(), message.SubscribeTopicFromCtx(msg.Context()), msg.UUID)
}

// messagePrefix begins ids that are made from a broker's messages, so that no producer can meet an id of the application's.
const messagePrefix = "message:"

// messageID makes an id of parts, of which other parts never make the same.
func messageID(parts ...string) string {
	escape := strings.NewReplacer("%", "%25", ":", "%3A")
	for i, part := range parts {
		parts[i] = escape.Replace(part)
	}
	id := messagePrefix + strings.Join(parts, ":")
	if len(id) <= MaxIDLength {
		return id
	}
	sum := sha256.Sum256([]byte(id))
	return messagePrefix + hex.EncodeToString(sum[:])
}

// idOf returns what makes msg the same as another: in is the workflow or the channel.
func (o handlerOptions) idOf(in string, msg *message.Message) (string, error) {
	if o.id != nil {
		return o.id(msg), nil
	}
	if err := checkName("the message's UUID", msg.UUID); err != nil {
		return "", err
	}
	return messageID(in, message.SubscribeTopicFromCtx(msg.Context()), msg.UUID), nil
}

var errUnwantedTarget = errors.New("its metadata names a run (" + MetadataInstanceID + "), and producers do not choose who receives a message here: " +
	"to let them, give WithTarget(workflow.TargetFromMetadata)")

// targetOf returns the run that msg is for; "" if it is published.
func (o handlerOptions) targetOf(msg *message.Message) (string, error) {
	if o.target == nil {
		if TargetFromMetadata(msg) != "" {
			return "", errUnwantedTarget // to publish what is meant for one run would be worse
		}
		return "", nil
	}
	target := o.target(msg)
	if target == "" {
		return "", nil
	}
	return target, checkName("instance id", target)
}

// contextOf returns the message's context, in the trace that it is to continue.
func (o handlerOptions) contextOf(msg *message.Message) context.Context {
	ctx := msg.Context()
	if !o.traced || trace.SpanContextFromContext(ctx).IsValid() {
		return ctx
	}
	return w3c.Extract(ctx, propagation.MapCarrier(msg.Metadata))
}

// metadataOf returns the metadata that a message is sent with. A trace that its producer has chosen is none of it: spans of whoever
// receives the message would be linked to it.
func (o handlerOptions) metadataOf(msg *message.Message) map[string]string {
	if o.traced {
		return msg.Metadata
	}
	kept := maps.Clone(map[string]string(msg.Metadata))
	for key := range kept {
		if slices.ContainsFunc(w3c.Fields(), func(field string) bool { return strings.EqualFold(field, key) }) {
			delete(kept, key)
		}
	}
	return kept
}

// StartHandler returns a Watermill handler that starts a run of definition for each message: its payload is the input, as
// JSON, and a message delivered twice starts one run, whose id is [MessageRunID]. Nothing but the payload and the UUID is taken from
// the message: its producer chooses no id among those of other runs ([WithMessageID] lets it), and no trace
// ([WithTraceFromMetadata]).
//
// A message that can never start one (a payload that is not the JSON of the input, a UUID that cannot be stored or was that of a
// message with another payload) is rejected: logged as an error and acknowledged, because it would otherwise come back for ever
// and hold up those behind it. Any other error is returned, so that the router's middleware retries or the message is
// delivered again: also what the database refuses whatever the message says, such as a missing grant, a lock, a full disk or
// a schema that is being migrated. While it does, the handler returns after a pause, of 2 s at most, that grows with each
// failure in a row.
func (e *Engine) StartHandler(definition Definition, options ...HandlerOption) message.NoPublishHandlerFunc {
	chosen := newHandlerOptions(options)
	if bounds.Nothing(definition) {
		return func(*message.Message) error {
			return errors.New("start a workflow: the definition of StartHandler is nil: give what Define returns") // not the message's mistake
		}
	}
	return func(msg *message.Message) error {
		failed := func(err error) error { return fmt.Errorf("start workflow %q: %w", definition.Name(), err) }
		if err := definition.checkInput(msg.Payload); err != nil {
			return e.reject(msg, chosen, failed(err))
		}
		id, err := chosen.idOf(definition.Name(), msg)
		if err != nil {
			return e.reject(msg, chosen, failed(err))
		}
		ask, err := e.newStart(definition.Name(), json.RawMessage(msg.Payload), []StartOption{WithID(id)})
		if err != nil {
			return e.rejectUnlessClosed(msg, chosen, failed(err))
		}
		if _, err := e.start(chosen.contextOf(msg), ask); err != nil {
			return e.rejectIfPermanent(msg, chosen, failed(err))
		}
		chosen.care.succeeded()
		return nil
	}
}

// SendHandler returns a Watermill handler that publishes each message: on channel, with its payload, which has to be JSON, as the
// body and its metadata as the metadata. With [WithTarget] it is sent to the run that this names. Delivered twice by the broker within
// Config.SendKeyRetention, a message is sent once: its key, see [WithSendKey], is made from channel, topic and UUID, so that it is no
// key that the application uses. What a message says about a trace is left out, see [WithTraceFromMetadata].
//
// A message that can never be sent (no JSON, no UUID, a receiver that does not exist or has ended, or one that it names in its metadata
// where nobody asks for that) is rejected, see [Engine.StartHandler]; any other error is returned. The cause of a receiver that does not
// exist is also [ErrNotFound]: where the run may be started later, have WithRejected return it, and the message comes again.
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
		target, err := chosen.targetOf(msg)
		if err != nil {
			return e.reject(msg, chosen, failed(err))
		}
		key, err := chosen.idOf(channel, msg)
		if err != nil {
			return e.reject(msg, chosen, failed(err))
		}
		ask, err := newDelivery(target, channel, json.RawMessage(msg.Payload), []SendOption{
			WithSendKey(key), WithMetadata(chosen.metadataOf(msg)),
		})
		if err != nil {
			return e.reject(msg, chosen, failed(err))
		}
		if err := e.deliver(chosen.contextOf(msg), ask); err != nil {
			return e.rejectIfPermanent(msg, chosen, err)
		}
		chosen.care.succeeded()
		return nil
	}
}

func newHandlerOptions(options []HandlerOption) handlerOptions {
	chosen := handlerOptions{
		reject: func(*message.Message, error) error { return nil },
		care:   new(care),
	}
	for _, option := range options {
		if option != nil {
			option(&chosen)
		}
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
		chosen.care.pause(msg.Context())
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
		slog.String("message_uuid", clippedTo(msg.UUID, MaxIDLength)), slog.Any("error", cause))
	if err := chosen.reject(msg, cause); err != nil {
		return fmt.Errorf("message %s was rejected (%w), and that could not be noted: %w", msg.UUID, cause, err)
	}
	return nil
}
