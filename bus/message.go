package bus

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"
)

// Message is a notification to send: a payload for a channel.
type Message struct {
	Channel string
	Payload string
}

// MessageError says why PostgreSQL would refuse a message: the channel's name or the payload is too long, not valid UTF-8,
// or contains a NUL byte. Nothing was sent, and no transaction was touched; trying again is in vain.
type MessageError struct {
	// Channel is where the message was to go.
	Channel string
	// Err says what is wrong, and what to do about it.
	Err error
}

// Error implements error.
func (e *MessageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e *MessageError) Unwrap() error { return e.Err }

// validate reports, as a *MessageError, why pg_notify would refuse the message, so that nobody's transaction has to find out.
func (m Message) validate() error {
	if err := m.refusal(); err != nil {
		return &MessageError{Channel: m.Channel, Err: err}
	}
	return nil
}

func (m Message) refusal() error {
	if err := checkChannel(m.Channel); err != nil {
		return err
	}
	switch {
	case len(m.Payload) > MaxPayload:
		return fmt.Errorf("payload for channel %q is %d bytes long: PostgreSQL allows %d, so send an id instead of the data", m.Channel, len(m.Payload), MaxPayload)
	case !utf8.ValidString(m.Payload):
		return fmt.Errorf("payload for channel %q is not valid UTF-8: encode binary data, for instance as base64", m.Channel)
	case strings.ContainsRune(m.Payload, 0):
		return fmt.Errorf("payload for channel %q contains a NUL byte, which PostgreSQL cannot store: leave it out", m.Channel)
	}
	return nil
}

func validateMessages(messages []Message) error {
	var errs []error
	for _, m := range messages {
		if err := m.validate(); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
