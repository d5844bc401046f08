package workflow

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/clamp"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// sleep waits for time alone. Its row in history is the deadline; that it has passed is plain from whatever follows.
func (r *run) sleep(name string, end until) error {
	position, record, recorded, err := r.issue(journal.Timer, name)
	if err != nil {
		return err
	}
	var ask store.Wait
	switch {
	case recorded && r.journal.Replaying():
		if next, _ := r.journal.Next(); next.Kind == journal.Cancelled && next.Position == position+1 {
			return r.cancelWait(true)
		}
		return nil
	case recorded:
		ask.AtMicros = r.firesAt(position, record)
	default:
		ask.TimerPosition, ask.TimerName = position, name
		end.fill(&ask)
	}
	if outcome, _ := r.await(&ask, nil, nil); outcome != store.Cancelled {
		return nil
	}
	return r.cancelWait(recorded || ask.TimerPosition == 0)
}

// cancelWait has the workflow told that its run is cancelled, in place of the wait that it has come to. Its last command either
// is recorded, so that the next position is for that, or is not and gives its own.
func (r *run) cancelWait(recorded bool) error {
	if recorded {
		_, _, _, err := r.issue(journal.Cancelled, "")
		return err
	}
	return r.recordCancelled(r.journal.Issued())
}

func (r *run) firesAt(position int32, record journal.Record) *int64 {
	var timer timerRecord
	if err := json.Unmarshal(record.Payload, &timer); err != nil {
		r.stuck(fmt.Errorf("history is damaged: position %d: %w", position, refusal.Decoding(err)))
	}
	fires := bounds.InstantMicros(timer.FiresAtMicros) // former builds took others, too
	return &fires
}

// listening is a channel that a run waits on.
type listening struct {
	channel   string
	competing bool
	event     *store.EventWait // it waits for an event instead of a message; see eventChannel
}

func (r *run) listenTo(channel string) listening {
	return listening{channel: channel, competing: r.subscriptions[channel] == Competing}
}

// receive waits for a message. A timeout has a row of its own before it: the deadline, stored with the first wait.
func (r *run) receive(channel string, timeout *time.Duration) (storedMessage, error) {
	end := r.within(timeout, journal.Receive)
	payload, err := r.choose(journal.Receive, channel, "receive:"+channel, end, []listening{r.listenTo(channel)}, nil)
	if err != nil {
		return storedMessage{}, err
	}
	message := r.decodeMessage(payload)
	if message.Timeout {
		return storedMessage{}, ErrTimeout
	}
	return message, nil
}

// receiveMany takes what is there besides the first message in one step of its own.
func (r *run) receiveMany(channel string, timeout *time.Duration, limit int) ([]storedMessage, error) {
	first, err := r.receive(channel, timeout)
	if err != nil || limit == 1 {
		return []storedMessage{first}, err
	}
	position, record, recorded, err := r.issue(journal.ReceiveMore, channel)
	if err != nil {
		// The first is taken and recorded: the workflow gets it, and learns at its next command that it is cancelled.
		return []storedMessage{first}, nil //nolint:nilerr // told later
	}
	payload := record.Payload
	if !recorded {
		payload = r.takeMore(position, channel, limit-1)
	}
	var more []storedMessage
	if err := json.Unmarshal(payload, &more); err != nil {
		r.stuck(fmt.Errorf("history is damaged: position %d: %w", position, refusal.Decoding(err)))
	}
	return append([]storedMessage{first}, more...), nil
}

func (r *run) takeMore(position int32, channel string, limit int) []byte {
	r.settle()
	on := r.listenTo(channel)
	ask := store.More{
		Fence: r.fence(), Position: position, Channel: channel, Limit: limit, Bytes: MaxPayload,
		Competing: on.competing, Since: r.engine.mail.since(channel),
	}
	mail, err := commit.Await(context.Background(), func(then func(store.Mail, error)) {
		r.engine.committer.TakeMore(r.stream, ask, then)
	})
	if err != nil {
		r.giveUp(err)
	}
	r.engine.mail.took(channel, mail.Shared)
	if mail.Left {
		r.engine.published.add(channel)
	}
	r.traceMore(channel, position, mail.Messages)
	return mail.Messages
}

func (r *run) decodeMessage(payload []byte) storedMessage {
	var message storedMessage
	if err := json.Unmarshal(payload, &message); err != nil {
		r.stuck(fmt.Errorf("history is damaged: position %d: %w", r.journal.Issued(), refusal.Decoding(err)))
	}
	r.engine.mail.seen(message.ID)
	return message
}

// choose waits for the first of what a command waits for, and returns what is recorded of it: a message of one of the channels,
// that the deadline has passed, or what landed says of a step that has ended.
func (r *run) choose(kind journal.Kind, name, timerName string, end *until, channels []listening, landed func() []byte) ([]byte, error) {
	var ask store.Wait
	if end != nil {
		next := r.journal.Issue
		if landed != nil {
			next = r.journal.Launch // a choice that was made at once has left the timer's place empty
		}
		position, record, recorded, err := r.take(next, journal.Timer, timerName)
		switch {
		case err != nil:
			return nil, err
		case recorded:
			ask.AtMicros = r.firesAt(position, record)
		default:
			ask.TimerPosition, ask.TimerName = position, timerName
			end.fill(&ask)
		}
	}
	position, record, recorded, err := r.issue(kind, name)
	if err != nil || recorded {
		return record.Payload, err
	}
	ask.Position, ask.Kind = position, kind
	var chosen []byte
	began := time.Now()
	outcome, message := r.await(&ask, channels, func() bool {
		if landed != nil {
			chosen = landed()
		}
		return chosen != nil
	})
	if outcome != store.Cancelled {
		r.traceChoice(kind, name, position, began, outcome, message)
	}
	switch outcome {
	case store.GotMessage:
		return message, nil
	case store.Landed:
		r.settle()
		r.append(position, kind, name, chosen)
		return chosen, nil
	case store.Cancelled:
		if ask.TimerPosition > 0 { // nor was the deadline recorded
			r.journal.Withdraw()
		}
		return nil, r.cancelWait(false)
	default:
		return timedOut, nil
	}
}

// timedOut is the record of a wait whose deadline has passed, as the database writes it.
var timedOut = []byte(`{"timeout":true}`)

// await returns once the run may go on: with a message of one of the channels, because the deadline of ask has passed or
// landed says so, or because it is to be cancelled. Unless other steps of the run execute it is parked meanwhile.
func (r *run) await(ask *store.Wait, channels []listening, landed func() bool) (outcome string, message []byte) {
	ask.Heeds, ask.Channels = !r.compensating && !r.finishing, beyondOne(channels)
	unparked := false
	defer func() {
		if unparked {
			r.engine.listenUnparked(r, nil)
			r.passOn(channels)
		}
	}()
	var next <-chan time.Time // when a run that is not parked looks again
	for look, full := true, endsAtOnce(ask); ; {
		r.checkpoint()
		if outcome := r.decideStay(ask, landed); outcome != "" {
			return outcome, nil
		}
		if ask.Stay && len(channels) > 0 {
			unparked = true
			r.engine.listenUnparked(r, channels) // before it looks: what comes later is told
			look = r.mailed.Swap(false) || look
		}
		waited := store.Waited{Outcome: store.Nothing}
		if look || !ask.Stay {
			if waited = r.tryWait(ask, channels, full); waited.Outcome == store.Nothing {
				next = r.untilNextLook(waited, channels)
			}
		}
		switch waited.Outcome {
		case store.Nothing:
			look = r.idle(next)
		case store.Parked:
			unparked = false
			resumed := r.stayParked(*ask, waited, channels)
			r.takeOff()
			if resumed.outcome == store.GotMessage || resumed.outcome == store.Due {
				return resumed.outcome, resumed.message
			}
			full = resumed.outcome == claimed // a sweep has found what the look from the mark on did not
		default:
			if waited.Outcome == store.Cancelled {
				r.learnCancelled()
			}
			r.takeOff()
			return waited.Outcome, waited.Message
		}
	}
}

// endsAtOnce reports whether no poll follows the first one of a wait, which so must not begin at a mark that it may miss
// messages below.
func endsAtOnce(ask *store.Wait) bool { return ask.DelayMicros != nil && *ask.DelayMicros == 0 }

// decideStay returns the outcome of a wait if it is known, else whether steps keep the run from being parked, in ask.
func (r *run) decideStay(ask *store.Wait, landed func() bool) (outcome string) {
	if outcome = r.known(ask, landed); outcome != "" {
		return outcome
	}
	ask.Stay, ask.NudgeMicros = r.air.recallDelayed()
	if outcome = r.known(ask, landed); outcome != "" {
		r.takeOff() // a step has landed in between: nobody would tell the run once it is parked
	}
	return outcome
}

// known returns the outcome of a wait if the database need not be asked for it.
func (r *run) known(ask *store.Wait, landed func() bool) string {
	switch {
	case landed != nil && landed():
		return store.Landed
	case ask.Heeds && r.asked.Load() != nil:
		return store.Cancelled
	default:
		return ""
	}
}

// beyondOne returns the names of the channels if there are several.
func beyondOne(channels []listening) (names []string) {
	if len(channels) > 1 {
		for _, on := range channels {
			names = append(names, on.channel)
		}
	}
	return names
}

// tryWait asks for what the run waits for: on one channel after the other, and with the last, it is parked.
func (r *run) tryWait(ask *store.Wait, channels []listening, full bool) store.Waited {
	if ask.Stay && len(channels) == 0 && ask.AtMicros == nil && ask.TimerPosition == 0 {
		return store.Waited{Outcome: store.Nothing} // it waits for nothing that the database knows of
	}
	var waited store.Waited
	for i := range max(1, len(channels)) {
		try := *ask
		if i < len(channels) {
			try.Channel, try.Competing = channels[i].channel, channels[i].competing
		}
		if !full {
			try.Since = r.engine.mail.since(try.Channel)
		}
		last := i+1 >= len(channels)
		if try.Stay = ask.Stay || !last; !last {
			try.TimerPosition, try.TimerName, try.DelayMicros, try.AtMicros = 0, "", nil, nil // mail goes before the deadline
		}
		try.Fence, try.Heir = r.fence(), r.heir
		var err error
		waited, err = commit.Await(context.Background(), func(then func(store.Waited, error)) {
			if i < len(channels) && channels[i].event != nil {
				r.engine.committer.WaitEvent(r.stream, store.WaitEvent{Wait: try, EventWait: *channels[i].event}, then)
				return
			}
			r.engine.committer.Wait(r.stream, try, then)
		})
		if err != nil {
			r.giveUp(err)
		}
		r.pending = nil // carried out before the wait, in the same stream
		r.engine.answered(try.Channel, waited)
		if try.TimerPosition > 0 && waited.Outcome != store.Cancelled {
			if waited.Outcome == store.Parked || waited.Outcome == store.Nothing {
				r.engine.tellTimer(r.id, ask.TimerPosition, *waited.FiresAtMicros)
			}
			r.traceTimer(*ask, *waited.FiresAtMicros)
			ask.TimerPosition, ask.TimerName, ask.DelayMicros, ask.AtMicros = 0, "", nil, waited.FiresAtMicros
		}
		if waited.Outcome != store.Nothing {
			break
		}
	}
	return waited
}

// untilNextLook returns when a run that waits without being parked looks again by itself: at its deadline, and for mail of which
// the notification was lost.
func (r *run) untilNextLook(waited store.Waited, channels []listening) <-chan time.Time {
	var until time.Duration
	if len(channels) > 0 {
		until = r.engine.fallback()
	}
	if left := waited.RemainingMicros; left != nil {
		due := clamp.Micros(max(*left, 0))
		if until == 0 || due < until {
			until = due
		}
	}
	if len(channels) == 0 && waited.RemainingMicros == nil {
		return nil
	}
	return time.After(until)
}

// stayParked keeps the goroutine until the run, whose row says waiting, is resumed. If it never is, here, the goroutine ends.
func (r *run) stayParked(ask store.Wait, waited store.Waited, channels []listening) resumption {
	parked := waiting{position: ask.Position, kind: ask.Kind}
	if waited.RemainingMicros != nil {
		parked.due = r.engine.due(waited)
	}
	if at, nudge := ask.AtMicros, ask.NudgeMicros; nudge != nil && (at == nil || *nudge < *at) {
		parked.nudged = true
	}
	if !r.engine.park(r, parked, channels) {
		r.lost.Store(true) // the row says waiting: nothing to hand over
		r.exit()
	}
	if len(channels) > 0 {
		r.engine.look(r)
	}
	r.endSegment(segmentParked, nil)
	resumed := *<-r.resume
	if resumed.exit {
		r.exit()
	}
	r.pending, r.woken = resumed.durable, resumed.durable
	r.beginSegment(false)
	r.engine.metrics.resumed(resumed)
	return resumed
}

// deliver sends a message to one run, or publishes it (no target).
func (r *run) deliver(ask store.Deliver) error {
	kind := journal.Publish
	if ask.Target != "" {
		kind = journal.Send
	}
	position, record, recorded, err := r.issue(kind, ask.Channel)
	if err != nil {
		return err
	}
	if recorded {
		if record.Payload != nil {
			return ErrUndeliverable
		}
		return nil
	}
	ask.Fence, ask.Position = r.fence(), position
	ask.KeepMicros = r.engine.config.SendKeyRetention.Microseconds()
	span := r.beginSend(&ask)
	var delivered store.Delivered
	r.untilFree(func() (held bool, err error) {
		delivered, err = commit.Await(context.Background(), func(then func(store.Delivered, error)) {
			r.engine.committer.Deliver(r.stream, ask, then)
		})
		if span != nil && (err != nil || !delivered.Held) {
			endSpan(span, err)
		}
		return delivered.Held, err
	})
	if ask.Target != "" && delivered.Receivers == 0 {
		return ErrUndeliverable
	}
	return nil
}

// untilFree carries out an operation of the run, again and again while a transaction of somebody else's holds what it needs.
func (r *run) untilFree(operation func() (held bool, err error)) {
	for wait := heldAtFirst; ; wait = min(2*wait, heldAtMost) {
		held, err := operation()
		if err != nil {
			r.giveUp(err)
		}
		r.pending = nil // carried out before, in the same stream
		if !held {
			return
		}
		select {
		case <-time.After(wait):
		case <-r.lifetime().Done():
		}
		r.checkpoint()
	}
}

type subscribeRecord struct {
	Taken string `json:"taken"`
}

func (r *run) subscribe(channel string, mode Mode) error {
	position, record, recorded, err := r.issue(journal.Subscribe, channel)
	if err != nil {
		return err
	}
	var taken string
	if recorded {
		var done subscribeRecord
		if err := json.Unmarshal(record.Payload, &done); err != nil {
			r.stuck(fmt.Errorf("history is damaged: position %d: %w", position, refusal.Decoding(err)))
		}
		taken = done.Taken
	} else {
		taken = r.changeSubscription(position, channel, mode)
	}
	if taken != "" {
		return fmt.Errorf("subscribe to channel %q in %s mode: %w: others are subscribed in %s mode", channel, mode, ErrModeConflict, taken)
	}
	if r.subscriptions == nil {
		r.subscriptions = map[string]Mode{}
	}
	r.subscriptions[channel] = mode
	return nil
}

func (r *run) unsubscribe(channel string) error {
	position, _, recorded, err := r.issue(journal.Unsubscribe, channel)
	if err != nil {
		return err
	}
	if !recorded {
		r.changeSubscription(position, channel, "")
	}
	delete(r.subscriptions, channel)
	return nil
}

func (r *run) changeSubscription(position int32, channel string, mode Mode) (taken string) {
	taken, err := commit.Await(context.Background(), func(then func(string, error)) {
		r.engine.committer.Subscribe(r.stream, store.Subscribe{
			Fence: r.fence(), Position: position, Channel: channel, Mode: string(mode),
		}, then)
	})
	if err != nil {
		r.giveUp(err)
	}
	r.pending = nil // carried out before, in the same stream
	return taken
}
