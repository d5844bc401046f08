package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

var (
	errEndedBefore = errors.New("the relays that took it ended every time before they could say what became of it: it may be what ends them")
	errGoexit      = errors.New("the publisher ended its goroutine (runtime.Goexit)")
)

// lane publishes the events of one key of a batch, one after the other. Different lanes run concurrently.
type lane struct {
	relay  *Relay
	batch  *batch
	events []*taken
	done   chan<- struct{} // one signal: nothing more will change in the batch through this lane

	// Guarded by the batch's mutex.
	current *taken // the one that is being tried
	over    bool   // done was signalled
	late    bool   // given up while the publisher has not returned
}

// publish works through a batch. When it returns, every event has its fate, although calls of the publisher that exceeded
// their limit may still be running.
func (r *Relay) publish(b *batch) {
	done := make(chan struct{}, len(b.events)) // never blocks a lane
	byKey := make(map[string]*lane, len(b.events))
	for _, event := range b.events {
		l := byKey[event.key]
		if l == nil {
			l = &lane{relay: r, batch: b, done: done}
			byKey[event.key] = l
			b.lanes = append(b.lanes, l)
		}
		l.events = append(l.events, event)
	}

	stalled := time.NewTimer(r.config.callLimit())
	defer stalled.Stop()
	waiting, running := b.lanes, 0
	for running > 0 || len(waiting) > 0 {
		var free chan<- struct{}
		if len(waiting) > 0 {
			free = r.lanes
		}
		select {
		case free <- struct{}{}:
			l := waiting[0]
			waiting = waiting[1:]
			running++
			r.calls.Go(l.run)
			stalled.Reset(r.config.callLimit())
		case <-done:
			running--
		case <-stalled.C:
			// All lanes are held by calls that do not return. Another relay's publisher may do better.
			waiting = nil
		case <-r.hard.Done():
			for _, l := range b.lanes {
				l.abandon()
			}
			return
		}
		if !b.mayBegin(r) {
			waiting = nil
		}
	}
}

// mayBegin reports whether there is time for another call before the lease could end.
func (b *batch) mayBegin(r *Relay) bool {
	select {
	case <-r.draining:
		return false
	default:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	return !b.stopped && time.Until(b.leaseEnds) >= r.config.callLimit()
}

// run publishes until an event fails. It occupies a place in relay.lanes until the publisher has really returned.
func (l *lane) run() {
	defer func() { <-l.relay.lanes }()
	defer l.finish()
	for _, event := range l.events {
		if !l.batch.mayBegin(l.relay) || !l.begin(event) || !l.try(event) {
			return
		}
	}
}

// begin reports whether the lane is still asked for event.
func (l *lane) begin(event *taken) bool {
	l.batch.mu.Lock()
	defer l.batch.mu.Unlock()
	l.current = event
	return !l.over
}

// try makes one attempt and reports whether the next event of the key may follow.
func (l *lane) try(event *taken) bool {
	r := l.relay
	if event.attempts > r.config.MaxAttempts {
		return l.decide(event, errEndedBefore)
	}
	if event.err != nil {
		return l.decide(event, event.err)
	}
	ctx, cancel := context.WithTimeout(r.hard, r.config.PublishTimeout)
	defer cancel()
	limit := time.AfterFunc(r.config.callLimit(), func() { l.exceeded(event) })
	defer limit.Stop()
	err := r.call(ctx, event)
	return l.decide(event, err)
}

// call calls the publisher. A panic is that event's failure, not the end of the process.
func (r *Relay) call(ctx context.Context, event *taken) (err error) {
	r.calling.Add(1)
	defer r.calling.Add(-1)
	defer func() {
		if v := recover(); v != nil {
			err = fmt.Errorf("the publisher panicked: %v\n%s", v, debug.Stack())
		}
	}()
	msg := message.NewMessageWithContext(ctx, event.eventID, event.payload)
	for name, value := range event.headers {
		msg.Metadata.Set(name, value)
	}
	msg.Metadata.Set(MetadataEventID, event.eventID)
	msg.Metadata.Set(MetadataKey, event.key)
	return r.config.Publisher.Publish(event.topic, msg)
}

// decide writes down what became of event, unless the lane was given up, and reports whether the next one may follow.
func (l *lane) decide(event *taken, err error) bool {
	l.batch.mu.Lock()
	defer l.batch.mu.Unlock()
	if l.over {
		return false
	}
	l.judge(event, err)
	l.current = nil
	return event.fate != failed
}

// judge needs the batch's mutex.
func (l *lane) judge(event *taken, err error) {
	event.err = err
	switch {
	case err == nil:
		event.fate = delivered
	case event.attempts >= l.relay.config.MaxAttempts:
		event.fate = dead
	default:
		event.fate = failed
	}
}

// exceeded gives the lane up, whose call has taken too long. The call goes on, and nobody waits for its result.
func (l *lane) exceeded(event *taken) {
	r := l.relay
	l.batch.mu.Lock()
	defer l.batch.mu.Unlock()
	if l.over || l.current != event {
		return // it has just returned
	}
	l.judge(event, fmt.Errorf("the publisher has not returned within PublishTimeout (%v)", r.config.PublishTimeout))
	l.giveUp()
	r.config.Logger.Warn("the outbox's publisher exceeds its time limit", slog.String("event_id", event.eventID), slog.String("topic", event.topic),
		slog.Duration("limit", r.config.PublishTimeout), slog.Int("lanes_in_use", len(r.lanes)), slog.Int("lanes", cap(r.lanes)))
}

// abandon gives the lane up at the end of Shutdown's patience. What becomes of its call is unknown and not the event's
// fault: it stays untried.
func (l *lane) abandon() {
	l.batch.mu.Lock()
	defer l.batch.mu.Unlock()
	if !l.over {
		l.giveUp()
	}
}

// giveUp needs the batch's mutex.
func (l *lane) giveUp() {
	if l.current != nil {
		l.late = true
		l.relay.late.Add(1)
	}
	l.signal()
}

// finish says that the lane is at its end, unless it was given up before.
func (l *lane) finish() {
	l.batch.mu.Lock()
	defer l.batch.mu.Unlock()
	if l.late {
		l.relay.late.Add(-1)
	}
	if l.over {
		return
	}
	if l.current != nil {
		l.judge(l.current, errGoexit) // decide was never reached
	}
	l.signal()
}

// signal needs the batch's mutex.
func (l *lane) signal() {
	l.over = true
	l.done <- struct{}{}
}
