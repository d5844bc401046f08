package workflow

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// sleep waits for time alone. Its row in history is the deadline; that it has passed is plain from whatever follows.
func (r *run) sleep(name string, end until) error {
	position, record, recorded := r.issue(journal.Timer, name)
	var ask store.Wait
	switch {
	case recorded && r.journal.Replaying():
		return nil
	case recorded:
		ask.AtMicros = r.firesAt(position, record)
	default:
		ask.TimerPosition, ask.TimerName = position, name
		end.fill(&ask)
	}
	r.wait(ask)
	return nil
}

func (d until) fill(ask *store.Wait) {
	micros := d.at.UnixMicro()
	if d.relative {
		micros = d.delay.Microseconds()
		ask.DelayMicros = &micros
		return
	}
	ask.AtMicros = &micros
}

func (r *run) firesAt(position int32, record journal.Record) *int64 {
	var timer timerRecord
	if err := json.Unmarshal(record.Payload, &timer); err != nil {
		r.stuck(fmt.Errorf("history is damaged: position %d: %w", position, err))
	}
	return &timer.FiresAtMicros
}

// receive waits for a message. A timeout has a row of its own before it: the deadline, stored with the first wait.
func (r *run) receive(channel string, timeout time.Duration) (storedMessage, error) {
	var ask store.Wait
	if timeout > 0 {
		name := "receive:" + channel
		position, record, recorded := r.issue(journal.Timer, name)
		if recorded {
			ask.AtMicros = r.firesAt(position, record)
		} else {
			ask.TimerPosition, ask.TimerName = position, name
			until{relative: true, delay: timeout}.fill(&ask)
		}
	}
	position, record, recorded := r.issue(journal.Receive, channel)
	payload := record.Payload
	if !recorded {
		ask.Position, ask.Channel, ask.Competing = position, channel, r.subscriptions[channel] == Competing
		outcome, message := r.wait(ask)
		if outcome == store.Due {
			return storedMessage{}, ErrTimeout
		}
		payload = message
	}
	var message storedMessage
	if err := json.Unmarshal(payload, &message); err != nil {
		r.stuck(fmt.Errorf("history is damaged: position %d: %w", position, err))
	}
	if message.Timeout {
		return storedMessage{}, ErrTimeout
	}
	return message, nil
}

// wait returns once the run may go on: with a message, or because its deadline has passed.
func (r *run) wait(ask store.Wait) (outcome string, message []byte) {
	ask.Since = r.engine.mail.since(ask.Channel)
	for {
		ask.Fence = store.Fence{ID: r.id, Token: r.token}
		r.checkpoint()
		waited, err := commit.Await(context.Background(), func(then func(store.Waited, error)) {
			r.engine.committer.Wait(r.stream, ask, then)
		})
		if err != nil {
			r.giveUp(err)
		}
		r.pending = nil // carried out before the wait, in the same stream
		r.engine.mail.took(ask.Channel, waited.Shared)
		if waited.Outcome != store.Parked {
			return waited.Outcome, waited.Message
		}
		if ask.TimerPosition > 0 {
			r.engine.tellTimer(r.id, ask.TimerPosition, *waited.FiresAtMicros)
		}
		ask.TimerPosition, ask.TimerName, ask.DelayMicros, ask.AtMicros = 0, "", nil, waited.FiresAtMicros
		resumed := r.stayParked(ask, waited)
		if resumed.outcome != claimed {
			return resumed.outcome, resumed.message
		}
		ask.Since = 0 // a sweep has found what the look from the mark on did not
	}
}

// stayParked keeps the goroutine until the run, whose row says waiting, is resumed. If it never is, here, the goroutine ends.
func (r *run) stayParked(ask store.Wait, waited store.Waited) resumption {
	ask.Token = r.token
	parked := waiting{wait: ask}
	if waited.RemainingMicros != nil {
		parked.timed, parked.remaining = true, time.Duration(*waited.RemainingMicros)*time.Microsecond
	}
	if !r.engine.park(r, parked) {
		r.lost.Store(true) // the row says waiting: nothing to hand over
		r.exit()
	}
	if ask.Channel != "" {
		r.engine.look(r)
	}
	resumed := <-r.resume
	if resumed.exit {
		r.exit()
	}
	return resumed
}

// deliver sends a message to one run, or publishes it (no target).
func (r *run) deliver(ask store.Deliver) error {
	kind := journal.Publish
	if ask.Target != "" {
		kind = journal.Send
	}
	position, record, recorded := r.issue(kind, ask.Channel)
	if recorded {
		if record.Payload != nil {
			return ErrUndeliverable
		}
		return nil
	}
	ask.Fence, ask.Position = store.Fence{ID: r.id, Token: r.token}, position
	delivered, err := commit.Await(context.Background(), func(then func(commit.Delivered, error)) {
		r.engine.committer.Deliver(r.stream, ask, then)
	})
	if err != nil {
		r.giveUp(err)
	}
	r.pending = nil // carried out before the delivery, in the same stream
	if ask.Target != "" && delivered.Receivers == 0 {
		return ErrUndeliverable
	}
	return nil
}

type subscribeRecord struct {
	Taken string `json:"taken"`
}

func (r *run) subscribe(channel string, mode Mode) error {
	position, record, recorded := r.issue(journal.Subscribe, channel)
	var taken string
	if recorded {
		var done subscribeRecord
		if err := json.Unmarshal(record.Payload, &done); err != nil {
			r.stuck(fmt.Errorf("history is damaged: position %d: %w", position, err))
		}
		taken = done.Taken
	} else {
		taken = r.changeSubscription(position, channel, mode)
	}
	if taken != "" {
		return fmt.Errorf("subscribe to channel %q in %s mode: %w: others are subscribed in %s mode", channel, mode, ErrModeConflict, taken)
	}
	r.subscriptions[channel] = mode
	return nil
}

func (r *run) unsubscribe(channel string) error {
	position, _, recorded := r.issue(journal.Unsubscribe, channel)
	if !recorded {
		r.changeSubscription(position, channel, "")
	}
	delete(r.subscriptions, channel)
	return nil
}

func (r *run) changeSubscription(position int32, channel string, mode Mode) (taken string) {
	taken, err := commit.Await(context.Background(), func(then func(string, error)) {
		r.engine.committer.Subscribe(r.stream, store.Subscribe{
			Fence: store.Fence{ID: r.id, Token: r.token}, Position: position, Channel: channel, Mode: string(mode),
		}, then)
	})
	if err != nil {
		r.giveUp(err)
	}
	r.pending = nil // carried out before, in the same stream
	return taken
}
