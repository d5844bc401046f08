package outbox

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/ThreeDotsLabs/watermill"
)

// Metadata keys of a published message, beside the event's headers.
const (
	// MetadataEventID holds the event's ID, which is also the message's UUID. Not every broker carries the UUID.
	MetadataEventID = "romancy_event_id"
	// MetadataKey holds the event's key. The publisher of [Writer.Tx] takes the key from it.
	MetadataKey = "romancy_key"
)

// MaxIDLength is the longest ID, topic and key in bytes.
const MaxIDLength = 255

// Event is something to tell the world if the transaction commits.
type Event struct {
	// ID identifies the event to its consumers, who should drop what they have seen before. 1 to 255 bytes. Default: a new
	// UUID. The outbox does not check that it is new: an ID used by two calls is published twice.
	ID string
	// Topic is passed to the publisher. 1 to 255 bytes. Required.
	Topic string
	// Key: events of one key are published in the order in which they were written, whatever their topics. 1 to 255 bytes.
	// Default: ID, that is no order.
	Key string
	// Payload is passed on as it is. It may be empty.
	Payload []byte
	// Headers become the message's metadata. The names MetadataEventID and MetadataKey are taken.
	Headers map[string]string
}

// InvalidEventError says what is wrong with an event. Nothing was written then, and the transaction is as it was.
type InvalidEventError struct {
	// Index is the event's place among those of the call.
	Index int
	// ID is the event's ID, possibly empty.
	ID string
	// Field is the field's name, such as "Topic" or "Headers".
	Field string
	// Problem says what is wrong and what to do.
	Problem string
}

// Error implements error.
func (e *InvalidEventError) Error() string {
	return fmt.Sprintf("event %d (ID %.300q): %s %s", e.Index, e.ID, e.Field, e.Problem)
}

// columns are the events of one call, as the arrays of one statement.
type columns struct {
	ids, topics, keys []string
	slots             []int32
	payloads          [][]byte
	headers           []string
}

// encode checks all events and reports all mistakes together.
func encode(events []Event, maxSize int) (columns, error) {
	var c columns
	var mistakes []error
	seen := make(map[string]int, len(events))
	for i, event := range events {
		if event.ID == "" {
			event.ID = watermill.NewUUID()
		}
		if event.Key == "" {
			event.Key = event.ID
		}
		headers, found := event.check(maxSize)
		if first, twice := seen[event.ID]; twice {
			found = append(found, problem{"ID", fmt.Sprintf("is also the ID of event %d of the same call: consumers would drop one of them", first)})
		}
		seen[event.ID] = i
		for _, p := range found {
			mistakes = append(mistakes, &InvalidEventError{Index: i, ID: event.ID, Field: p.field, Problem: p.text})
		}
		if event.Payload == nil {
			event.Payload = []byte{} // nil would be NULL
		}
		c.ids = append(c.ids, event.ID)
		c.topics = append(c.topics, event.Topic)
		c.keys = append(c.keys, event.Key)
		c.slots = append(c.slots, slotOf(event.Key))
		c.payloads = append(c.payloads, event.Payload)
		c.headers = append(c.headers, headers)
	}
	return c, errors.Join(mistakes...)
}

// headersField is the field that most can be wrong with.
const headersField = "Headers"

type problem struct{ field, text string }

// check returns the encoded headers ("" for none) and everything that is wrong.
func (e *Event) check(maxSize int) (headers string, found []problem) {
	for _, name := range []problem{{"ID", e.ID}, {"Topic", e.Topic}, {"Key", e.Key}} {
		if text := checkName(name.text); text != "" {
			found = append(found, problem{name.field, text})
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Headers)) {
		value := e.Headers[name]
		switch {
		case name == "":
			found = append(found, problem{headersField, "has an empty name"})
		case name == MetadataEventID || name == MetadataKey:
			found = append(found, problem{headersField, fmt.Sprintf("has the name %s, which the relay sets itself: use the fields ID and Key", name)})
		case !utf8.ValidString(name) || !utf8.ValidString(value):
			found = append(found, problem{headersField, fmt.Sprintf("%.40q is not valid UTF-8: encode binary values, for instance in base64", name)})
		case strings.ContainsRune(name, 0) || strings.ContainsRune(value, 0):
			found = append(found, problem{headersField, fmt.Sprintf("%.40q contains a NUL character, which PostgreSQL cannot store: leave it out", name)})
		}
	}
	if len(e.Headers) > 0 {
		text, err := json.Marshal(e.Headers)
		if err != nil {
			found = append(found, problem{headersField, err.Error()})
		}
		headers = string(text)
	}
	if size := len(e.Payload) + len(headers); size > maxSize {
		found = append(found, problem{"Payload", fmt.Sprintf("is %d bytes with its headers, more than the %d of WriterConfig.MaxEventSize: send a reference to the data, or raise the limit if the broker takes it", size, maxSize)})
	}
	return headers, found
}

func checkName(name string) string {
	switch {
	case name == "":
		return fmt.Sprintf("is empty: use 1 to %d bytes", MaxIDLength)
	case len(name) > MaxIDLength:
		return fmt.Sprintf("is %d bytes long: use at most %d", len(name), MaxIDLength)
	case !utf8.ValidString(name):
		return "is not valid UTF-8: encode binary values, for instance in base64"
	case strings.ContainsRune(name, 0):
		return "contains a NUL character, which PostgreSQL cannot store: leave it out"
	}
	return ""
}

// slots is the number of rows of outbox_slots. It and slotOf are part of the schema: rows written by one build are
// relayed by another.
const slots = 64

func slotOf(key string) int32 {
	hash := fnv.New32a()
	_, _ = hash.Write([]byte(key)) // never fails
	return int32(hash.Sum32() % slots)
}
