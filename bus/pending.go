package bus

// pending is a bounded set of messages in the order they came. Beyond limit payloads a channel's rest becomes one empty
// payload, which tells its subscribers to look for themselves.
type pending struct {
	limit    int
	channels []string // in the order they came
	byName   map[string]*pendingChannel
}

type pendingChannel struct {
	payloads []string
	known    map[string]struct{}
	more     bool
}

func newPending(limit int) *pending {
	return &pending{limit: limit, byName: map[string]*pendingChannel{}}
}

func (p *pending) add(messages ...Message) {
	for _, m := range messages {
		c := p.byName[m.Channel]
		if c == nil {
			c = &pendingChannel{known: map[string]struct{}{}}
			p.byName[m.Channel] = c
			p.channels = append(p.channels, m.Channel)
		}
		if _, known := c.known[m.Payload]; known {
			continue
		}
		if m.Payload == "" || len(c.payloads) >= p.limit {
			c.more = true
			continue
		}
		c.known[m.Payload] = struct{}{}
		c.payloads = append(c.payloads, m.Payload)
	}
}

func (p *pending) empty() bool { return len(p.channels) == 0 }

func (p *pending) messages() []Message {
	var messages []Message
	for _, name := range p.channels {
		c := p.byName[name]
		for _, payload := range c.payloads {
			messages = append(messages, Message{Channel: name, Payload: payload})
		}
		if c.more {
			messages = append(messages, Message{Channel: name})
		}
	}
	return messages
}
