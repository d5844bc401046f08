package bus

import (
	"context"
	"slices"
	"sync"
	"time"
)

// DefaultQueue is how many notifications a [Subscription] keeps for its receiver, unless told otherwise. One with a payload
// of a KiB or more counts once more for each KiB, so that they have a MiB of payloads at most.
const DefaultQueue = 1000

// Subscription is the bounded queue of one receiver. When it is full, what it holds is replaced by one catch-up for each
// channel concerned, so a slow receiver loses precision and nothing else, and never holds up the connection. What
// comes for these channels before the receiver has taken their catch-ups is dropped as well.
type Subscription struct {
	listener *Listener
	channels []string
	limit    int // by weight

	listening chan struct{} // closed when LISTEN was committed for all channels, the first time
	ready     chan struct{} // holds a token while there may be something to take
	done      chan struct{}

	mu       sync.Mutex
	queue    []Notification
	weight   int      // of queue
	missed   []string // channels to catch up on, each once
	lossy    []string // those of them of which an overflow has dropped something: more of them is dropped at once
	heard    bool     // listening is closed
	closed   bool
	overload overload
}

func newSubscription(l *Listener, limit int, channels []string) *Subscription {
	return &Subscription{
		listener:  l,
		channels:  channels,
		limit:     limit,
		listening: make(chan struct{}),
		ready:     make(chan struct{}, 1),
		done:      make(chan struct{}),
	}
}

// Next returns what came first, and waits for it if nothing is there. It returns ctx's error when ctx ends before, and
// [ErrClosed] once the subscription or its listener is closed. It may be called by several goroutines at once. For a
// second after notifications were dropped for a catch-up it rests for 2 ms out of 4.
func (s *Subscription) Next(ctx context.Context) (Notification, error) {
	for {
		s.rest(ctx)
		n, ok, err := s.take()
		if ok || err != nil {
			return n, err
		}
		select {
		case <-s.ready:
		case <-s.done:
		case <-ctx.Done():
			return Notification{}, ctx.Err()
		}
	}
}

// Close ends the subscription: Next returns [ErrClosed], and the listener stops listening to channels that nobody else
// wants. It does not wait for that, and may be called more than once.
func (s *Subscription) Close() {
	if s.end() {
		s.listener.unsubscribe(s)
	}
}

// end closes the queue and reports whether it was open.
func (s *Subscription) end() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.closed = true
	s.queue, s.weight, s.missed, s.lossy = nil, 0, nil, nil
	close(s.done)
	return true
}

// take returns what is first in line, if anything is.
func (s *Subscription) take() (Notification, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var n Notification
	switch {
	case s.closed:
		return n, false, ErrClosed
	case len(s.missed) > 0:
		n = Notification{Channel: s.missed[0], CatchUp: true, Received: time.Now()}
		s.missed = s.missed[1:]
		s.lossy = slices.DeleteFunc(s.lossy, func(channel string) bool { return channel == n.Channel })
	case len(s.queue) > 0:
		n = s.queue[0]
		s.queue[0] = Notification{} // lets go of the payload
		s.queue = s.queue[1:]
		s.weight -= weight(n.Payload)
	default:
		return n, false, nil
	}
	if len(s.missed)+len(s.queue) > 0 {
		s.signal() // another receiver may be waiting
	}
	return n, true, nil
}

// push adds a notification and returns how many were dropped for a catch-up. It never blocks.
func (s *Subscription) push(n Notification) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return 0
	}
	if slices.Contains(s.lossy, n.Channel) {
		return 1 // the catch-up that is on its way to the receiver is for this one, too
	}
	defer s.signal()
	if fits(n.Payload, s.weight, s.limit) {
		s.queue = append(s.queue, n)
		s.weight += weight(n.Payload)
		return 0
	}
	dropped := len(s.queue) + 1
	for _, old := range s.queue {
		s.lose(old.Channel)
	}
	s.lose(n.Channel)
	clear(s.queue)
	s.queue, s.weight = s.queue[:0], 0
	s.overload.overflowed(time.Now())
	return dropped
}

func (s *Subscription) lose(channel string) {
	s.miss(channel)
	if !slices.Contains(s.lossy, channel) {
		s.lossy = append(s.lossy, channel)
	}
}

// rest returns at once, unless more comes than the receiver gets through, see overload, or ctx has ended.
func (s *Subscription) rest(ctx context.Context) {
	s.mu.Lock()
	wait := s.overload.rest(time.Now())
	s.mu.Unlock()
	pause(ctx, wait)
}

// catchUp tells the receiver to catch up on channels, whose LISTEN is committed. all: so it is for all of its channels.
func (s *Subscription) catchUp(channels []string, all bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	for _, channel := range channels {
		s.miss(channel)
	}
	if all && !s.heard {
		s.heard = true
		close(s.listening)
	}
	if len(channels) > 0 {
		s.signal()
	}
}

func (s *Subscription) miss(channel string) {
	if !slices.Contains(s.missed, channel) {
		s.missed = append(s.missed, channel)
	}
}

func (s *Subscription) signal() {
	select {
	case s.ready <- struct{}{}:
	default:
	}
}
