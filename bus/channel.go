package bus

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/romancy-go/romancy/internal/schema"
)

// MaxChannelName is the longest name of a channel in bytes, PostgreSQL's NAMEDATALEN - 1.
const MaxChannelName = 63

// Event is one of the four things that are notified. Its text is the last part of the channel's name.
type Event string

const (
	// EventWorkflowResumable says that a run became runnable or was resumed. Its payload is [WorkflowResumable].
	EventWorkflowResumable Event = "workflow_resumable"
	// EventTimerExpired says that a timer was registered. Its payload is [TimerRegistered].
	EventTimerExpired Event = "timer_expired"
	// EventChannelMessage says that a message was published. Its payload is [ChannelMessage].
	EventChannelMessage Event = "channel_message"
	// EventOutboxPending says that an event is ready to be relayed. Its payload is [OutboxPending].
	EventOutboxPending Event = "outbox_pending"
)

// Events returns the four events, always in the same order.
func Events() []Event {
	return []Event{EventWorkflowResumable, EventTimerExpired, EventChannelMessage, EventOutboxPending}
}

// Channels holds the name of the PostgreSQL channel of each event. Names are case-sensitive: they are quoted in LISTEN,
// as pg_notify takes them literally.
type Channels struct {
	WorkflowResumable string
	TimerExpired      string
	ChannelMessage    string
	OutboxPending     string
}

// ChannelsFor returns the default names for a schema: the schema, an underscore and the event. Two schemas in one
// database therefore never wake each other.
func ChannelsFor(schema string) Channels {
	name := func(e Event) string { return schema + "_" + string(e) }
	return Channels{
		WorkflowResumable: name(EventWorkflowResumable),
		TimerExpired:      name(EventTimerExpired),
		ChannelMessage:    name(EventChannelMessage),
		OutboxPending:     name(EventOutboxPending),
	}
}

// Validate reports every name that PostgreSQL would refuse or cut, every name used for two events, and every name like those of the
// channels on which engines talk to each other.
func (c Channels) Validate() error {
	var errs []error
	owner := map[string]Event{}
	for _, event := range Events() {
		name := c.Name(event)
		if err := checkChannel(name); err != nil {
			errs = append(errs, fmt.Errorf("channel of %s: %w", event, err))
			continue
		}
		if other, taken := owner[name]; taken {
			errs = append(errs, fmt.Errorf("channel %q is named for both %s and %s: give each event a channel of its own", name, other, event))
			continue
		}
		if schema.PrivateChannel(name) {
			errs = append(errs, fmt.Errorf("channel %q of %s is named like one on which engines talk to each other: choose another name", name, event))
		}
		owner[name] = event
	}
	return errors.Join(errs...)
}

// Name returns the channel of event, or the empty string for an event that is none of the four.
func (c Channels) Name(event Event) string {
	switch event {
	case EventWorkflowResumable:
		return c.WorkflowResumable
	case EventTimerExpired:
		return c.TimerExpired
	case EventChannelMessage:
		return c.ChannelMessage
	case EventOutboxPending:
		return c.OutboxPending
	}
	return ""
}

// Event returns the event that is notified on the channel called name, and whether there is one.
func (c Channels) Event(name string) (Event, bool) {
	if name == "" {
		return "", false
	}
	for _, event := range Events() {
		if c.Name(event) == name {
			return event, true
		}
	}
	return "", false
}

// All returns the four names in the order of [Events].
func (c Channels) All() []string {
	names := make([]string, 0, 4)
	for _, event := range Events() {
		names = append(names, c.Name(event))
	}
	return names
}

// checkChannel reports why PostgreSQL would refuse, or silently cut, the channel name.
func checkChannel(name string) error {
	switch {
	case name == "":
		return errors.New("channel name is empty: name the PostgreSQL channel")
	case len(name) > MaxChannelName:
		return fmt.Errorf("channel name %.40q... is %d bytes long: use at most the %d that PostgreSQL allows", name, len(name), MaxChannelName)
	case !utf8.ValidString(name):
		return fmt.Errorf("channel name %q is not valid UTF-8: use text that is", name)
	case strings.ContainsRune(name, 0):
		return fmt.Errorf("channel name %q contains a NUL byte, which PostgreSQL cannot store: leave it out", name)
	}
	return nil
}
