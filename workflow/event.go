package workflow

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/google/uuid"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Event is what WaitEvent returns: something that has happened, for everybody who waits for it.
type Event[T any] struct {
	Type       string
	Source     string
	ID         string // of its own within the source
	Attributes map[string]string
	SentAt     time.Time
	Data       T
}

// OutgoingEvent is an event to send. Type, Source and ID have 1 to 255 bytes.
type OutgoingEvent struct {
	// Type is what runs wait for, such as "order.paid".
	Type string
	// Source says where it has happened. Default, for an event that a run sends: the name of its workflow.
	Source string
	// ID makes sending idempotent: an event with the source and the id of one that has not expired is ignored. Default: a new UUID.
	ID string
	// Attributes are what runs can choose events by: up to 32, of 800 bytes in all. Names are not empty.
	Attributes map[string]string
	// Data is encoded as JSON.
	Data any
	// Retention is how long it is kept: 1 µs or more. Default Config.EventRetention.
	Retention time.Duration
}

const (
	maxAttributes     = 32
	maxAttributeBytes = 800 // so that those a run waits for fit into an index
)

// EventOption sets which events WaitEvent takes, and how long it waits: WithAttributes and WithTimeout.
type EventOption interface{ applyEvent(o *eventOptions) }

type eventOptions struct {
	timeout    *time.Duration // nil: none was given
	attributes map[string]string
}

func (t TimeoutOption) applyEvent(o *eventOptions) { o.timeout = &t.d }

// AttributesOption is made by WithAttributes.
type AttributesOption struct{ attributes map[string]string }

// WithAttributes takes only events that have all of these attributes, and perhaps others.
func WithAttributes(attributes map[string]string) AttributesOption {
	return AttributesOption{attributes: maps.Clone(attributes)}
}

func (a AttributesOption) applyEvent(o *eventOptions) {
	if o.attributes == nil {
		o.attributes = map[string]string{}
	}
	maps.Copy(o.attributes, a.attributes)
}

// WaitEvent waits for an event of a type and returns it: the oldest that is kept and that this run has not had. Events are
// not taken from anybody: each run gets each event that it waits for, once, also those sent before it waited or before it
// began, until they expire. It returns ErrTimeout when WithTimeout is given and nothing came in time.
//
// A run that continues as new is another run, and gets again what is still kept. Having had many events that are still kept
// makes waiting for more of their type slower: have messages published to a channel for a stream of them.
func WaitEvent[T any](ctx *Context, eventType string, options ...EventOption) (Event[T], error) {
	var event Event[T]
	var chosen eventOptions
	for _, option := range options {
		if option != nil {
			option.applyEvent(&chosen)
		}
	}
	attributes, err := encodeAttributes(chosen.attributes)
	if err := errors.Join(checkName("event type", eventType), err); err != nil {
		return event, fmt.Errorf("wait for an event: %w", err)
	}
	stored, err := carryOut(ctx.current(), commandWaitEvent, func() (storedEvent, error) {
		return ctx.run.waitEvent(eventType, attributes, chosen.timeout)
	})
	if err != nil {
		return event, err
	}
	event = Event[T]{Type: stored.Type, Source: stored.Source, ID: stored.EventID, Attributes: stored.Attributes, SentAt: stored.SentAt}
	if err := decodeValue(stored.Data, &event.Data); err != nil {
		return event, fmt.Errorf("decode event %q of %q (%s) into %T: %w", stored.EventID, stored.Source, stored.Type, event.Data, err)
	}
	return event, nil
}

// SendEvent sends an event, which is kept for every run that waits for it or will. It is sent once, however often the run is
// executed.
func SendEvent(ctx *Context, event OutgoingEvent) error {
	if ctx.current() == nil {
		return fmt.Errorf("send event: %w", errNoContext)
	}
	if event.Source == "" {
		event.Source = ctx.WorkflowName()
	}
	ask, err := ctx.run.engine.newEvent(event)
	if err != nil {
		return err
	}
	return ctx.current().carryOut(commandSendEvent, func() error { return ctx.run.sendEvent(ask) })
}

// newEvent checks and encodes an event.
func (e *Engine) newEvent(event OutgoingEvent) (store.SendEvent, error) {
	if event.ID == "" {
		id, err := uuid.NewV7()
		if err != nil {
			return store.SendEvent{}, fmt.Errorf("send event: make an id: %w", err)
		}
		event.ID = id.String()
	}
	attributes, attributesErr := encodeAttributes(event.Attributes)
	data, dataErr := encodeValue("the data of event", event.Type, event.Data)
	if dataErr == nil && !utf8.Valid(data) {
		dataErr = errors.New("the data is not valid UTF-8: encode it by json.Marshal")
	}
	retentionErr := bounds.Age("OutgoingEvent.Retention", event.Retention, time.Microsecond, "for the default")
	if event.Retention == 0 {
		event.Retention = e.config.EventRetention
	}
	if err := errors.Join(
		checkName("event type", event.Type), checkName("event source", event.Source), checkName("event id", event.ID),
		attributesErr, dataErr, retentionErr,
	); err != nil {
		return store.SendEvent{}, fmt.Errorf("send event: %w", err)
	}
	return store.SendEvent{
		Type: event.Type, Source: event.Source, EventID: event.ID, Attributes: attributes, Data: data,
		KeepMicros: event.Retention.Microseconds(),
	}, nil
}

func encodeAttributes(attributes map[string]string) ([]byte, error) {
	if len(attributes) == 0 {
		return []byte("{}"), nil
	}
	if len(attributes) > maxAttributes {
		return nil, fmt.Errorf("%d attributes: use at most %d", len(attributes), maxAttributes)
	}
	size := 0
	for name, value := range attributes {
		size += len(name) + len(value)
		switch {
		case name == "":
			return nil, errors.New("an attribute has no name: give it one")
		case !utf8.ValidString(name) || !utf8.ValidString(value):
			return nil, fmt.Errorf("attribute %.40q is not valid UTF-8: use text that is", name)
		case strings.ContainsRune(name, 0) || strings.ContainsRune(value, 0):
			return nil, fmt.Errorf("attribute %.40q contains a NUL byte, which PostgreSQL cannot store: leave it out", name)
		}
	}
	if size > maxAttributeBytes {
		return nil, fmt.Errorf("the attributes are %d bytes long: use at most %d", size, maxAttributeBytes)
	}
	return json.Marshal(attributes)
}

// eventPrefix begins the names under which events are announced on the channel for messages. No channel has such a name.
const eventPrefix = "event:"

func eventChannel(eventType string) string { return eventPrefix + eventType }

// checkChannel reports why channel cannot be a channel for messages.
func checkChannel(channel string) error {
	if strings.HasPrefix(channel, eventPrefix) {
		return fmt.Errorf("channel %.40q: names that begin with %q are those of events: use another", channel, eventPrefix)
	}
	return checkName("channel", channel)
}
