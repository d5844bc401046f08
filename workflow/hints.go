package workflow

import (
	"context"
	"encoding/json"
	"strings"
	"sync"
	"time"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// A notification is a hint and never a command: whoever may connect to the database can send it, on any
// channel and with any payload, and may repeat, forge and flood. So what is heard here only names a row, and
// the statement that follows decides.
//
//  - Nothing is believed: an id is looked up, a number or an instant moves no mark up, and there is no text
//    in a payload that anybody is shown.
//  - Of one run and channel one poll is under way and one more is remembered, however many notifications name
//    it. The loops that hints drive are spaced by what their statements cost.
//  - What does not fit into an id's or a channel's length names nothing, and is not kept.
//
// What this process has committed itself goes the direct way, without a notification.

// listen takes what the listener brings, one notification after the other, without blocking on any.
func (e *Engine) listen(ctx context.Context, subscription *bus.Subscription) {
	defer subscription.Close()
	for {
		notification, err := subscription.Next(ctx)
		if err != nil {
			return // closed, or ctx ended
		}
		e.heard(notification)
	}
}

// heard has whatever a notification may be about looked at.
func (e *Engine) heard(notification bus.Notification) {
	switch notification.Channel {
	case e.config.Channels.WorkflowResumable:
		e.heardResumable(notification)
	case e.config.Channels.ChannelMessage:
		e.heardMessage(notification)
	case e.endedOn:
		e.heardEnded(notification)
	case e.cancelledOn:
		e.heardCancelled(notification)
	case e.laterOn:
		e.laters.give() // which looks at the deadlines that come soon, whoever is said to have started something
	case e.leftOn:
		e.takeovers.give() // which takes over those whose lease has run out, whoever is said to have left
	}
}

// foreign counts a payload that is not one of ours. What it says stands nowhere: it is anybody's text.
func (e *Engine) foreign(channel string) {
	e.metrics.foreignPayload(channel)
	if e.reports.foreign.Pass("") { // one for all channels: the metric tells them apart
		e.logger.Warn("foreign payload ignored: somebody else notifies on this channel", "channel", channel)
	}
}

// namedRun is all that is read of payloads which name a run.
type namedRun struct {
	InstanceID string `json:"instance_id"`
}

// runOf returns the id of the run that a payload names, or false if it cannot be that of one.
func (e *Engine) runOf(notification bus.Notification) (id string, ok bool) {
	var named namedRun
	if json.Unmarshal([]byte(notification.Payload), &named) != nil || checkName("instance id", named.InstanceID) != nil {
		e.foreign(notification.Channel)
		return "", false
	}
	return named.InstanceID, true
}

// heardResumable has ready runs looked for, unless the notification is of one that executes here: most of
// those that this process starts.
func (e *Engine) heardResumable(notification bus.Notification) {
	if !notification.CatchUp {
		id, ok := e.runOf(notification)
		if !ok {
			return
		}
		e.mu.Lock()
		r := e.cache.runs[id]
		here := r != nil && r.phase == executing
		e.mu.Unlock()
		if here {
			return
		}
	}
	e.claims.give()
}

// heardEnded has a run looked at that somebody here waits for. The row says whether it has ended, and how.
func (e *Engine) heardEnded(notification bus.Notification) {
	if notification.CatchUp {
		e.watch.asked.tooMany()
		return
	}
	if id, ok := e.runOf(notification); ok && e.watch.awaited(id) {
		e.watch.asked.add(id)
	}
}

// heardCancelled has a run looked at that is in memory here. The row says whether it is to be cancelled, or
// has been, and why: what builds before this one add to the id is not read.
func (e *Engine) heardCancelled(notification bus.Notification) {
	if notification.CatchUp {
		e.held.tooMany()
		return
	}
	id, ok := e.runOf(notification)
	if !ok {
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.cache.runs[id] != nil {
		e.held.add(id)
	}
}

// heardMessage has those polled for whom a message, or an event, may be for.
func (e *Engine) heardMessage(notification bus.Notification) {
	if notification.CatchUp {
		e.mail.reset()
		e.looking.everybody()
		e.mailRuns.tooMany()
		e.coldEvents.tooMany()
		return
	}
	var message bus.ChannelMessage
	if json.Unmarshal([]byte(notification.Payload), &message) != nil {
		e.foreign(notification.Channel)
		return
	}
	eventType, isEvent := strings.CutPrefix(message.ChannelName, eventPrefix)
	named := message.ChannelName
	if isEvent {
		named = eventType
	}
	if checkName("channel", named) != nil || message.TargetInstanceID != "" && checkName("instance id", message.TargetInstanceID) != nil {
		e.foreign(notification.Channel)
		return
	}
	if isEvent {
		e.heardEvent(store.SentEvent{ID: message.MessageID, Type: eventType})
		return
	}
	e.mail.heard(message.ChannelName, message.MessageID)
	if message.TargetInstanceID == "" {
		e.heardPublished(message.ChannelName)
		return
	}
	e.toReceiver(message.ChannelName, message.TargetInstanceID, e.hintLocked)
}

// heardPublished has the receivers of a channel polled for, those that wait here and, later, all others.
func (e *Engine) heardPublished(channel string) {
	e.mu.Lock()
	here := len(e.cache.receiving[channel]) > 0
	e.mu.Unlock()
	if here {
		e.published.add(channel) // which tells the others as well
		return
	}
	e.mailChannels.add(channel)
}

// hintLocked has a run polled for that waits here: at once for as long as hints prove true, else in its turn,
// after a look that locks and writes nothing and takes no slot.
func (e *Engine) hintLocked(r *run, on listening) {
	if e.trust.any(time.Now()) {
		if r.phase != parked {
			e.trust.misled() // until it finds something: it polls by itself
		}
		e.wakeLocked(r, on)
		return
	}
	e.looking.add(r, on.channel)
}

const (
	// mostTrust is how many polls in a row may find nothing before hints are looked into first.
	mostTrust = 2000
	// trustPerSecond is how much comes back by itself: what has come late, or twice, finds nothing either.
	trustPerSecond = 100
)

// trust is how far hints are followed without a look. A poll that finds something earns as much as one that
// finds nothing costs. Its zero value trusts fully. It is safe for concurrent use.
type trust struct {
	mu   sync.Mutex
	lost float64
	at   time.Time // when that was
}

// any reports whether a hint is to be followed at once.
func (t *trust) any(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost = max(0, t.lost-trustPerSecond*now.Sub(t.at).Seconds())
	t.at = now
	return t.lost < mostTrust
}

func (t *trust) misled() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost++
}

func (t *trust) earned() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.lost = max(0, t.lost-1)
}

// answered takes note of what a poll of a channel has found.
func (e *Engine) answered(channel string, waited store.Waited) {
	e.mail.took(channel, waited.Shared)
	if waited.Outcome == store.GotMessage {
		e.trust.earned()
	}
}

// lookPage is how many looks are under way at a time because of hints.
const lookPage = 250

// looking holds the runs that are to be looked at for mail or events, each channel of each once: no more than
// wait here.
type looking struct {
	some signal

	mu  sync.Mutex
	at  map[lookedAt]struct{}
	all bool
}

type lookedAt struct {
	run     *run
	channel string
}

func newLooking() *looking { return &looking{some: newSignal(), at: map[lookedAt]struct{}{}} }

func (l *looking) add(r *run, channel string) {
	l.mu.Lock()
	l.at[lookedAt{r, channel}] = struct{}{}
	l.mu.Unlock()
	l.some.give()
}

// everybody has all looked at who wait here, because notifications may have been lost.
func (l *looking) everybody() {
	l.mu.Lock()
	l.all = true
	l.mu.Unlock()
	l.some.give()
}

// everybodyAsked reports, once, whether all are to be looked at.
func (l *looking) everybodyAsked() (asked bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	asked, l.all = l.all, false
	return asked
}

func (l *looking) take() (page []lookedAt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for at := range l.at {
		if len(page) == lookPage {
			l.some.give()
			break
		}
		page = append(page, at)
		delete(l.at, at)
	}
	return page
}

// lookLoop looks at those that hints name, a page at a time: what comes meanwhile for one that is being
// looked at is one more look.
func (e *Engine) lookLoop(ctx context.Context) {
	rounds := spacing{gap: 2 * time.Millisecond, share: 2, credit: 200 * time.Millisecond}
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.looking.some:
		}
		rounds.begin(time.Now())
		if e.looking.everybodyAsked() {
			e.mu.Lock()
			for channel, runs := range e.cache.receiving {
				for r := range runs {
					e.looking.add(r, channel)
				}
			}
			e.mu.Unlock()
		}
		e.lookAt(ctx, e.looking.take())
		rounds.rest(ctx)
	}
}

// lookAt looks at a page of runs and returns when that is answered.
func (e *Engine) lookAt(ctx context.Context, page []lookedAt) {
	answered := make(chan struct{}, len(page)) // so that nobody blocks who answers
	e.mu.Lock()
	looks := 0
	for _, at := range page {
		if on, listens := at.run.on(at.channel); listens {
			e.lookLocked(e.committer.Hinted(), at.run, on, func() { answered <- struct{}{} })
			looks++
		}
	}
	e.mu.Unlock()
	for range looks {
		select {
		case <-answered:
		case <-ctx.Done():
			return
		}
	}
}

// longestRest is how long a round is put off at most.
const longestRest = time.Second

// spacing keeps a loop that hints drive from being driven faster than it does good: a round costs share times
// as long as it took, gap at least, and rounds are put off, by longestRest at most, when they cost more than
// the time that has passed and credit. It belongs to one loop.
type spacing struct {
	gap    time.Duration
	share  int
	credit time.Duration

	began time.Time
	paid  time.Time // up to when time is spent
}

func (s *spacing) begin(now time.Time) { s.began = now }

// end ends a round and returns how long to wait before the next.
func (s *spacing) end(now time.Time) time.Duration {
	if earliest := now.Add(-s.credit); s.paid.Before(earliest) {
		s.paid = earliest
	}
	s.paid = s.paid.Add(max(s.gap, time.Duration(s.share)*now.Sub(s.began)))
	if latest := now.Add(longestRest); s.paid.After(latest) {
		s.paid = latest
	}
	return max(0, s.paid.Sub(now))
}

// rest ends a round and waits until there may be another, or until ctx ends.
func (s *spacing) rest(ctx context.Context) {
	wait := s.end(time.Now())
	if wait == 0 {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(wait):
	}
}
