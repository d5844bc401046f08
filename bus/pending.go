package bus

// pending is a bounded set of messages in the order they came. What a channel has beyond limit, by weight, becomes one
// empty payload, which tells its subscribers to look for themselves.
type pending struct {
	limit    int
	channels indexed
	contents []pendingChannel // by the channel's place
}

type pendingChannel struct {
	payloads indexed
	weight   int // of payloads
	more     bool
}

func newPending(limit int) *pending { return &pending{limit: limit} }

// reset empties p, which keeps the room it has.
func (p *pending) reset(limit int) {
	p.limit = limit
	for i := range p.contents {
		p.contents[i].payloads.reset()
		p.contents[i].weight, p.contents[i].more = 0, false
	}
	p.contents = p.contents[:0]
	p.channels.reset()
}

// add returns how many payloads were replaced by an empty one.
func (p *pending) add(messages ...Message) (collapsed int) {
	for _, m := range messages {
		place, known := p.channels.place(m.Channel)
		if !known {
			p.channels.append(m.Channel)
			if place < cap(p.contents) {
				p.contents = p.contents[:place+1] // with the room that reset has left
			} else {
				p.contents = append(p.contents, pendingChannel{})
			}
		}
		c := &p.contents[place]
		if m.Payload == "" {
			c.more = true
			continue
		}
		if _, known := c.payloads.place(m.Payload); known {
			continue
		}
		if !fits(m.Payload, c.weight, p.limit) {
			collapsed++
			c.more = true
			continue
		}
		c.payloads.append(m.Payload)
		c.weight += weight(m.Payload)
	}
	return collapsed
}

// size is how many messages there are.
func (p *pending) size() int {
	size := 0
	for i := range p.contents {
		size += len(p.contents[i].payloads.texts)
		if p.contents[i].more {
			size++
		}
	}
	return size
}

// weight is what they count in bounds.
func (p *pending) weight() int {
	sum := 0
	for i := range p.contents {
		sum += p.contents[i].weight
		if p.contents[i].more {
			sum++
		}
	}
	return sum
}

func (p *pending) empty() bool { return len(p.contents) == 0 }

func (p *pending) messages() []Message {
	messages := make([]Message, 0, p.size())
	for i, name := range p.channels.texts {
		for _, payload := range p.contents[i].payloads.texts {
			messages = append(messages, Message{Channel: name, Payload: payload})
		}
		if p.contents[i].more {
			messages = append(messages, Message{Channel: name})
		}
	}
	return messages
}

// indexed is a list of different texts. Most are short, because most transactions announce one thing or two, and those do
// without a map.
type indexed struct {
	texts  []string
	places map[string]int // nil while there are few
}

// fewTexts are compared one by one.
const fewTexts = 8

// place returns where text is, or where it would be appended.
func (x *indexed) place(text string) (place int, known bool) {
	if x.places != nil {
		if place, known = x.places[text]; known {
			return place, true
		}
		return len(x.texts), false
	}
	for i, t := range x.texts {
		if t == text {
			return i, true
		}
	}
	return len(x.texts), false
}

// append adds a text that is not yet there.
func (x *indexed) append(text string) {
	x.texts = append(x.texts, text)
	switch {
	case x.places != nil:
		x.places[text] = len(x.texts) - 1
	case len(x.texts) > fewTexts:
		x.places = make(map[string]int, 4*fewTexts)
		for i, t := range x.texts {
			x.places[t] = i
		}
	}
}

func (x *indexed) reset() {
	clear(x.texts)
	x.texts, x.places = x.texts[:0], nil
}
