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

// add returns how many payloads were replaced by an empty one.
func (p *pending) add(messages ...Message) (collapsed int) {
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
			if m.Payload != "" {
				collapsed++
			}
			c.more = true
			continue
		}
		c.known[m.Payload] = struct{}{}
		c.payloads = append(c.payloads, m.Payload)
	}
	return collapsed
}

// size is how many messages there are.
func (p *pending) size() int {
	size := 0
	for _, c := range p.byName {
		size += len(c.payloads)
		if c.more {
			size++
		}
	}
	return size
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
