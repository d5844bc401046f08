package workflow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/clamp"
	"github.com/romancy-go/romancy/internal/planted"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// toReceiver takes a message to the run that it is for: by wake, with the mutex held, if that listens in memory here, else by a sweep.
func (e *Engine) toReceiver(channel, receiver string, wake func(r *run, on listening)) {
	e.mu.Lock()
	defer e.mu.Unlock()
	r := e.cache.runs[receiver]
	if r == nil {
		e.mailRuns.add(receiver)
		return
	}
	if on, listens := r.on(channel); listens {
		wake(r, on)
	}
}

// sent is told by the committer which messages it has delivered: receivers in this process need not wait for the echo.
func (e *Engine) sent(messages []store.Sent) {
	for _, message := range messages {
		e.config.Notifier.Notify(e.config.Channels.ChannelMessage, announcement(message))
		e.mail.sent(message.Channel, message.ID)
		switch {
		case !e.executes():
		case message.Receiver == "":
			e.published.add(message.Channel)
		default:
			e.toReceiver(message.Channel, message.Receiver, e.wakeLocked)
		}
	}
}

// publishedLoop wakes the receivers parked here of what was published: those that have a copy of their own, and as many of
// the competing ones as there are messages.
func (e *Engine) publishedLoop(ctx context.Context) {
	rounds := spacing{gap: 2 * time.Millisecond, share: 1, credit: 100 * time.Millisecond}
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.published.some:
		}
		rounds.begin(time.Now())
		channels, more := e.published.take()
		if more {
			e.looking.everybody()
			e.mailRuns.tooMany()
		}
		for channel, messages := range channels {
			e.mu.Lock()
			e.publishedLocked(channel, messages)
			e.mu.Unlock()
			e.mailChannels.add(channel)
		}
		rounds.rest(ctx)
	}
}

// publishedLocked has the receivers of a channel polled for after messages were published on it.
func (e *Engine) publishedLocked(channel string, messages int) {
	var polling []*run // one of these may take another message than those that have come now
	for r := range e.cache.receiving[channel] {
		on, _ := r.on(channel)
		switch {
		case !on.competing:
			e.looking.add(r, channel)
		case r.reasons.polling:
			polling = append(polling, r)
		case messages > 0:
			e.hintLocked(r, on)
			messages--
		}
	}
	for _, r := range polling[:min(messages, len(polling))] {
		on, _ := r.on(channel)
		e.hintLocked(r, on)
	}
}

// look closes the gap of parking: a message committed before the run's row said waiting was announced to nobody.
func (e *Engine) look(r *run) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, on := range r.listening {
		e.lookLocked(e.committer, r, on, func() {})
	}
}

// lookFor looks for the mail of those of the runs that wait here. Each has continued a run that a message was announced for: every
// worker that listens has heard that, and asks, so the one that has the run finds it.
func (e *Engine) lookFor(runs []string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, id := range runs {
		if r := e.cache.runs[id]; r != nil {
			for _, on := range r.listening {
				e.looking.add(r, on.channel)
			}
		}
	}
}

// poller asks the database whether a parked run has messages or events: the committer, or its way for hints.
type poller interface {
	Look(ask store.Wake, then func(bool, error))
	LookEvent(ask store.WakeEvent, then func(bool, error))
}

// lookLocked looks whether r has mail on a channel, and wakes it if so. One that waits without being parked
// looks itself. answered is called when that is done, and must not block.
func (e *Engine) lookLocked(with poller, r *run, on listening, answered func()) {
	if r.phase != parked {
		r.tellMail()
		answered()
		return
	}
	fence := r.fence()
	then := func(found bool, err error) {
		defer answered()
		if errors.Is(err, commit.ErrClosed) || err == nil && !found {
			return
		}
		// After a failure a wake is tried, which is tried again until it is answered.
		e.mu.Lock()
		defer e.mu.Unlock()
		if now, listens := r.on(on.channel); listens { // it may have resumed, and wait for something else by now
			e.wakeLocked(r, now)
		} else if r.phase == gone {
			e.rousing.add(fence) // evicted meanwhile, perhaps
		}
	}
	if on.event != nil {
		with.LookEvent(e.asWakeEvent(r, on), then)
		return
	}
	with.Look(e.asWake(r, on), then)
}

func (r *run) tellMail() {
	r.mailed.Store(true)
	r.poke()
}

// passOn has what was published polled for by others if the run has not polled since it was told of it.
func (r *run) passOn(channels []listening) {
	if r.mailed.Swap(false) {
		r.engine.mu.Lock()
		defer r.engine.mu.Unlock()
		r.engine.passOnLocked(channels)
	}
}

func (e *Engine) asWake(r *run, on listening) store.Wake {
	return store.Wake{
		Fence: r.fence(), Position: r.waiting.position, Kind: r.waiting.kind,
		Nudged:  r.waiting.nudged || len(r.listening) > 1, // then it looks at all channels before its deadline decides
		Channel: on.channel, Competing: on.competing, Since: e.mail.since(on.channel), Heir: r.heir,
	}
}

// wakeLocked tries to resume a run that may have a message on a channel, or is due (on is the zero value then), as soon as there is
// a slot for it. A run that waits without being parked polls for itself.
func (e *Engine) wakeLocked(r *run, on listening) {
	if r.phase != parked {
		r.tellMail()
		return
	}
	r.reasons.add(on)
	e.pollLocked(r)
}

// pollLocked polls for a parked run that there is a reason for. One poll is under way at a time.
func (e *Engine) pollLocked(r *run) {
	if r.reasons.polling || !r.reasons.waiting() || !e.slotLocked(r) {
		return
	}
	on := r.reasons.begin()
	if on.channel == "" && len(r.listening) > 0 {
		on = r.listening[0] // messages go before the deadline
	}
	ask, durable, outcome := e.asWake(r, on), make(chan error, 1), ""
	then := func(waited store.Waited, err error) {
		outcome = waited.Outcome
		e.woken(r, ask, waited, durable, err)
	}
	committed := func(err error) {
		durable <- err // never blocks: it is sent once
		if outcome != store.Parked {
			e.wokenDurably(r, ask, outcome, err)
		}
	}
	if on.event != nil {
		e.committer.WakeEvent(e.asWakeEvent(r, on), then, committed)
		return
	}
	e.committer.Wake(ask, then, committed)
}

// wokenDurably follows woken when the outcome is committed, or may not be: then the run ends at its next side effect, and is
// found as running here, or is still parked and made ready.
func (e *Engine) wokenDurably(r *run, ask store.Wake, outcome string, err error) {
	if err != nil {
		e.rousing.add(ask.Fence)
		e.orphans.give()
		return
	}
	e.tellResumable(r.id, r.definition.Name())
	e.mu.Lock()
	defer e.mu.Unlock()
	r.unproven = false
	if ask.Competing && outcome == store.GotMessage {
		e.nextCompetitorLocked(ask.Channel)
	}
}

// woken continues a run with the outcome of a wake operation.
func (e *Engine) woken(r *run, ask store.Wake, waited store.Waited, durable chan error, err error) {
	e.answered(ask.Channel, waited)
	e.observeClock(waited)
	e.mu.Lock()
	defer e.mu.Unlock()
	if r.phase != parked || r.token != ask.Token {
		if err == nil && waited.Outcome != store.Parked {
			e.orphans.give() // the row says running, but the run was dropped meanwhile
		}
		return
	}
	if err == nil {
		e.wakes.Succeeded(context.Background())
	}
	switch {
	case errors.Is(err, commit.ErrClosed):
		e.freeLocked(r)
		e.dropLocked(r)
	case err != nil:
		if !errors.Is(err, commit.ErrFenced) {
			e.wakes.Failed(context.Background(), err, "run", r.id)
		}
		e.freeLocked(r)
		e.verifyLocked(r)
	case waited.Outcome != store.Parked:
		if waited.Outcome == store.Due || waited.Outcome == store.Nudged {
			e.metrics.late(-clamp.Micros(*waited.RemainingMicros))
		}
		e.resumeLocked(r, ask.Token+1, resumption{outcome: waited.Outcome, message: waited.Message, durable: durable})
	default:
		if ask.Channel != "" {
			e.trust.misled()
		}
		r.reasons.nothing()
		e.foundNothingLocked(r, waited)
	}
}

// foundNothingLocked follows a poll for a run that has neither a message nor passed its deadline.
func (e *Engine) foundNothingLocked(r *run, waited store.Waited) {
	if r.reasons.waiting() {
		e.pollLocked(r) // it still has its slot
		return
	}
	e.freeLocked(r)
	if waited.RemainingMicros != nil && r.timed() {
		// It has just been said how long. Not by e.clock: if the database's clock has been set back, that would be now, again and again.
		e.armLocked(r, time.Now().Add(clamp.Micros(*waited.RemainingMicros)))
	}
}

// nextCompetitorLocked polls whether another competitor has something to take: one that was woken for a published message
// may have taken another, or none, and the message then has nobody. It reports false if there is no other competitor in memory.
func (e *Engine) nextCompetitorLocked(channel string) (found bool) {
	var polling *run
	for r := range e.cache.receiving[channel] {
		on, _ := r.on(channel)
		switch {
		case !on.competing:
		case r.reasons.polling:
			polling = r
		default:
			e.lookLocked(e.committer, r, on, func() {})
			return true
		}
	}
	if polling == nil {
		return false
	}
	on, _ := polling.on(channel)
	e.wakeLocked(polling, on)
	return true
}

// passOnLocked follows the end of a wait that there were reasons for which were not answered: what was sent to the run alone is found
// by the run, but what was published may be for another competitor.
func (e *Engine) passOnLocked(left []listening) {
	for _, on := range left {
		if on.competing && !e.draining.Load() && !e.nextCompetitorLocked(on.channel) {
			e.mailChannels.add(on.channel)
		}
	}
}

// verifyLocked finds out why a poll for a parked run was not answered. Another worker has the run, and it is dropped here; or it was
// made ready, and is claimed again; or its row is held for a moment or the database in trouble, and the poll is repeated.
func (e *Engine) verifyLocked(r *run) {
	if planted.Has(planted.WakeForgotten) {
		r.reasons.end()
		return
	}
	wait, fence, rows := r.reasons.fail(), r.fence(), new([]store.ParkedRun)
	then := func(_ struct{}, err error) {
		e.mu.Lock()
		defer e.mu.Unlock()
		if r.phase != parked || r.token != fence.Token || r.reasons.polling {
			return
		}
		var there store.ParkedRun // the zero value: it is gone
		if len(*rows) > 0 {
			there = (*rows)[0]
		}
		switch {
		case errors.Is(err, commit.ErrClosed):
			e.dropLocked(r)
		case err != nil, there.Token == r.token && there.Status == string(StatusWaiting) && there.Worker == r.worker:
			e.armLocked(r, time.Now().Add(wait))
		case there.Token == r.token && there.Status == string(StatusWaiting) && there.Worker == 0:
			e.rousing.add(fence)
		case there.Token == r.token && there.Status == string(StatusReady):
			e.claims.give()
		default:
			if row := (store.Run{Token: there.Token, Worker: there.Worker}); len(*rows) == 0 {
				e.sayForgotten(fence, r.definition.Name(), nil)
			} else if forgotten(fence, row) {
				e.sayForgotten(fence, r.definition.Name(), []store.Run{row})
			}
			e.dropLocked(r)
			e.orphans.give() // if it is running here: the answer to the poll was lost, which has resumed it
		}
	}
	e.committer.Do(true, func(b *pgx.Batch) { e.store.ParkedRuns(b, []string{fence.ID}, rows) }, then)
}

// timerLoop wakes parked runs when they are due, and has those claimed that are not in memory.
func (e *Engine) timerLoop(ctx context.Context) {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.timers:
		}
		next, ok := e.wakeDue()
		if ok {
			timer.Reset(time.Until(next))
		} else {
			timer.Stop()
		}
	}
}

// wakeDue returns when it is to be called again.
func (e *Engine) wakeDue() (next time.Time, ok bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	var cold []string
	for _, entry := range e.cache.deadlines.PopDue(time.Now(), e.config.MaxTimersPerBatch) {
		r := e.cache.runs[entry.ID]
		switch {
		case entry.ID == relook:
			e.relookLocked(entry.At)
		case r == nil && e.cache.cold[entry.ID] == entry.Token:
			delete(e.cache.cold, entry.ID)
			cold = append(cold, entry.ID)
		case r == nil:
		case r.phase == parked && r.token == entry.Token:
			e.wakeLocked(r, listening{})
		}
	}
	if len(cold) > 0 {
		e.cold.add(cold...)
	}
	return e.cache.deadlines.Next()
}

func (e *Engine) tellResumable(id, workflow string) {
	e.config.Notifier.Notify(e.config.Channels.WorkflowResumable, bus.Encode(bus.WorkflowResumable{InstanceID: id, WorkflowName: workflow}))
}

func (e *Engine) tellTimer(id string, position int32, firesAtMicros int64) {
	e.config.Notifier.Notify(e.config.Channels.TimerExpired, timerAnnouncement(id, position, firesAtMicros))
}

func timerAnnouncement(id string, position int32, firesAtMicros int64) string {
	return bus.Encode(bus.TimerRegistered{
		InstanceID: id, TimerID: fmt.Sprintf("timer:%d", position), ExpiresAt: time.UnixMicro(bounds.InstantMicros(firesAtMicros)).UTC(),
	})
}
