package workflow

import (
	"encoding/json"
	"fmt"
	"io"
	"runtime"
	"strings"
	"unicode/utf8"

	"github.com/romancy-go/romancy/internal/refusal"
)

// MaxPayload is the most bytes that one value may have as JSON: the input and the result of a run, the result of an activity
// or a side effect, the body of a message together with its metadata, the data of an event. It is what the slowest connection that the
// engine puts up with (800 KB a second) sends within the ten seconds after which it is given up. What is larger belongs into a table
// or an object store, and its key into the workflow.
//
// It is no setting, because a workflow that is told [ErrTooLarge] may go on otherwise, and has to be told so in every execution.
const MaxPayload = 8 << 20

// What is stored of an error. Beyond that it is clipped, and says so.
const (
	maxErrorText    = 16 << 10
	maxErrorDetails = 1 << 20
)

// Every value of the application's (inputs, outputs, results of steps, bodies of messages, data of events, details of errors) is encoded
// by marshalValue, or, for its digest, by newValueEncoder, and decoded by decodeValue. What else is encoded in this package
// are the engine's own records, metadata and attributes, which it reads itself. A test holds the package to that.

// marshalValue encodes a value of the application's.
func marshalValue(value any) ([]byte, error) {
	text, err := json.Marshal(value)
	return text, refusal.Encoding(err)
}

// newValueEncoder returns what encodes values as marshalValue does, each followed by a line's end.
func newValueEncoder(w io.Writer) *json.Encoder { return json.NewEncoder(w) }

// encodeValue encodes a value that is to be stored. what and name say which it is.
func encodeValue(what, name string, value any) ([]byte, error) {
	text, err := marshalValue(value)
	if err != nil {
		return nil, fmt.Errorf("encode %s %q (%T): %w", what, name, value, err)
	}
	if err := checkSize(what, name, len(text)); err != nil {
		return nil, err
	}
	if !utf8.Valid(text) { // of a json.RawMessage or a MarshalJSON: encoding/json does not look
		return nil, fmt.Errorf("encode %s %q (%T): its JSON is not valid UTF-8, and cannot be stored", what, name, value)
	}
	if tooDeep(text) {
		return nil, fmt.Errorf("%s %q: %w: it is nested deeper than %d levels, and could not be read back", what, name, ErrTooLarge, maxNesting)
	}
	return text, nil
}

// maxNesting is how deep a value may be nested: encoding/json writes any depth and reads 10,000 levels, of which records have some around
// the value. A run whose history cannot be read is stuck for good, and whoever publishes to a broker's topic may choose a message.
const maxNesting = 9_990

// tooDeep reports whether JSON is nested too deep to be read as a part of a record.
func tooDeep(text []byte) bool {
	if len(text) <= 2*maxNesting { // what opens has to close
		return false
	}
	depth, quoted := 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case quoted:
		case c == '{' || c == '[':
			if depth++; depth > maxNesting {
				return true
			}
		case c == '}' || c == ']':
			depth--
		}
	}
	return false
}

// decodeValue decodes what is recorded into a value of the user's. A panic of its methods is an error, which quotes nothing either.
func decodeValue(text []byte, into any) (err error) {
	if len(text) == 0 {
		return nil
	}
	defer func() {
		if value := recover(); value != nil {
			err = newPanicError(" while decoding", unquoted(value))
		}
	}()
	return refusal.Decoding(json.Unmarshal(text, into))
}

// unquoted returns what can be told of a decoder's panic: it may quote what it was given, but for Go's own errors, which quote nothing.
func unquoted(value any) any {
	if err, ok := value.(runtime.Error); ok {
		return err
	}
	return fmt.Sprintf("with a %T, whose text may quote it and is withheld", value)
}

// checkSize returns ErrTooLarge if what has more bytes than are stored.
func checkSize(what, name string, bytes int) error {
	if bytes <= MaxPayload {
		return nil
	}
	return fmt.Errorf("%s %q: %w: %d bytes as JSON, where %d is the most: store it elsewhere and pass where", what, name, ErrTooLarge, bytes, MaxPayload)
}

// clipped returns as much of an error's text as is stored.
func clipped(text string) string { return clippedTo(strings.ToValidUTF8(text, "\uFFFD"), maxErrorText) }

// clippedTo returns text, or its beginning, of most bytes, with a note of how much is missing.
func clippedTo(text string, most int) string {
	if len(text) <= most {
		return text
	}
	end := most
	for end > 0 && text[end]&0xC0 == 0x80 { // within a character
		end--
	}
	return fmt.Sprintf("%s... (%d bytes more)", text[:end], len(text)-end)
}
