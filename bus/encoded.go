package bus

import (
	"strconv"
	"strings"
)

// readEncoded reads a payload that is written exactly as [Encode] writes it, without escapes: what decoding JSON in full
// costs is half of a notification's way through this process. It reports false for everything else, which may still be a
// good payload.
func readEncoded[T Payload](payload string) (v T, ok bool) {
	r := reader{rest: payload}
	switch p := any(&v).(type) {
	case *WorkflowResumable:
		r.expect(`{"instance_id":"`)
		p.InstanceID = r.text()
		r.expect(`,"workflow_name":"`)
		p.WorkflowName = r.text()
	case *ChannelMessage:
		r.expect(`{"channel_name":"`)
		p.ChannelName = r.text()
		r.expect(`,"message_id":`)
		p.MessageID = r.number()
		if strings.HasPrefix(r.rest, ",") {
			r.expect(`,"target_instance_id":"`)
			p.TargetInstanceID = r.text()
		}
	case *OutboxPending:
		r.expect(`{"event_id":"`)
		p.EventID = r.text()
	case *TimerRegistered: // has a time
		r.failed = true
	}
	r.expect(`}`)
	if r.failed || r.rest != "" {
		var zero T
		return zero, false
	}
	return v, true
}

// reader takes a text from the front.
type reader struct {
	rest   string
	failed bool // something was not as expected
}

func (r *reader) expect(literal string) {
	rest, found := strings.CutPrefix(r.rest, literal)
	r.rest = rest
	r.failed = r.failed || !found
}

// text takes the rest of a JSON string of ASCII without escapes, and the quote that ends it.
func (r *reader) text() string {
	for i := range len(r.rest) {
		switch c := r.rest[i]; {
		case c == '"':
			text := r.rest[:i]
			r.rest = r.rest[i+1:]
			return text
		case c < ' ' || c > '~' || c == '\\':
			r.failed = true
			return ""
		}
	}
	r.failed = true
	return ""
}

// number takes a whole number that JSON allows, of up to 18 digits.
func (r *reader) number() int64 {
	n := 0
	for n < len(r.rest) && '0' <= r.rest[n] && r.rest[n] <= '9' {
		n++
	}
	digits := r.rest[:n]
	r.rest = r.rest[n:]
	number, err := strconv.ParseInt(digits, 10, 64)
	r.failed = r.failed || err != nil || n > 18 || n > 1 && digits[0] == '0'
	return number
}
