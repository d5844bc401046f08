package bus

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"runtime"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/outage"
)

// Keys of the metadata of a message from a [Subscriber].
const (
	// MetadataChannel: the PostgreSQL channel.
	MetadataChannel = "romancy_channel"
	// MetadataSource: [SourceNotify] or [SourceCatchUp].
	MetadataSource = "romancy_source"
	// MetadataPID: the process id of the backend that notified; absent after a catch-up.
	MetadataPID = "romancy_pid"
	// MetadataReceived: when this process received it, by its own clock, in RFC 3339 with nanoseconds.
	MetadataReceived = "romancy_received"

	// SourceNotify: a notification said it.
	SourceNotify = "notify"
	// SourceCatchUp: it was read from the schema.
	SourceCatchUp = "catchup"
)

// topic is one subscription of a [Subscriber]: a goroutine that takes notifications from the queue and lets messages out,
// and one for each message that waits for its acknowledgement.
type topic struct {
	channel   string
	event     Event
	ours      bool // event is known
	listener  *Listener
	sub       *Subscription
	pending   *catchUp // nil for a channel that is none of the four
	cfg       SubscriberConfig
	log       *slog.Logger
	out       chan *message.Message
	changed   chan struct{} // holds a token after the listener's state changed
	slots     chan struct{} // one for each message that is out
	metrics   topicMetrics
	unsettled sync.WaitGroup
	outage    *outage.Reporter // of catch-ups
	refused   *outage.Flood    // the subscriber's
	next      *draft           // nil if none is written

	// Of catch-ups that notifications ask for: what was received before answered is answered, and none begins before rested.
	answered, rested time.Time
	owed             bool // one is to begin then
}

const (
	// restShare is how many times as long as the reading of a catch-up took the next one is put off that a notification asks
	// for: whoever floods a channel has the tables read for a fifth of the time at most.
	restShare = 4
	// summary of what is not said of each notification that is refused.
	refusedSummary = "more notifications were dropped that are not what the channel carries"
)

// draft is a message that lacks what it is about. One is written while there is nothing else to do, because half of what
// a notification costs on its way to the handler is the same for each.
type draft struct {
	msg      *message.Message
	source   string
	alone    bool               // nothing else was waiting to be let out
	finished context.CancelFunc // ends the message's context
}

func newDraft(ctx context.Context, channel string) *draft {
	d := &draft{msg: message.NewMessage(watermill.NewUUID(), nil)}
	ctx, d.finished = context.WithCancel(ctx)
	d.msg.SetContext(ctx)
	d.msg.Metadata.Set(MetadataChannel, channel)
	return d
}

// copy returns the draft of a redelivery.
func (d *draft) copy(ctx context.Context) *draft {
	again := &draft{msg: d.msg.Copy(), source: d.source}
	ctx, again.finished = context.WithCancel(ctx)
	again.msg.SetContext(ctx)
	return again
}

func newTopic(s *Subscriber, sub *Subscription, channel string) *topic {
	t := &topic{
		channel:  channel,
		listener: s.cfg.Listener,
		sub:      sub,
		cfg:      s.cfg,
		log:      s.log.With("channel", channel),
		out:      make(chan *message.Message),
		changed:  make(chan struct{}, 1),
		slots:    make(chan struct{}, s.cfg.MaxInFlight),
		metrics:  s.metrics.of(channel),
		refused:  s.refused,
	}
	t.outage = outage.New(t.log, "cannot read what notifications may have been missed, trying again",
		"what notifications may have been missed can be read again")
	if t.event, t.ours = s.cfg.Channels.Event(channel); t.ours {
		t.pending = newCatchUp(s.cfg.Pool, s.queries, t.event, s.cfg.BatchSize)
	}
	return t
}

// run lets messages out until ctx or the subscription ends.
func (t *topic) run(ctx context.Context) {
	defer close(t.out)
	ctx, cancel := context.WithCancel(ctx)
	defer t.unsettled.Wait()
	defer cancel() // before the wait: the listener may be what ended it
	defer t.sub.Close()
	defer t.listener.OnChange(func(State) {
		select {
		case t.changed <- struct{}{}:
		default:
		}
	})()
	look := time.NewTimer(t.untilLook())
	defer look.Stop()
	if !t.listener.Healthy() {
		t.look(ctx) // the listener's first catch-up may be long in coming
	}
	for {
		select { // the look that is due does not wait for a pause in the notifications
		case <-look.C:
			t.look(ctx)
			look.Reset(t.untilLook())
		default:
		}
		t.sub.rest(ctx)
		n, ok, err := t.sub.take()
		switch {
		case err != nil || ctx.Err() != nil:
			return
		case ok && t.ours && n.CatchUp:
			if t.asks(n) {
				t.look(ctx)
			}
			look.Reset(t.untilLook())
			continue
		case ok:
			t.hear(ctx, n)
			continue
		}
		if t.next == nil {
			t.next = newDraft(ctx, t.channel) // if it is never sent, it ends with ctx
			t.next.alone = true
		}
		select {
		case <-t.sub.ready:
		case <-t.sub.done:
			return
		case <-ctx.Done():
			return
		case <-t.changed:
			look.Reset(t.untilLook())
		case <-look.C:
			t.look(ctx)
			look.Reset(t.untilLook())
		}
	}
}

// asks reports whether n, which says to catch up, is to be followed at once. What came before the last pass began has been
// answered by it, and what comes soon after an expensive one is answered by the next, a little later.
func (t *topic) asks(n Notification) bool {
	if n.Received.Before(t.answered) {
		return false
	}
	t.owed = time.Now().Before(t.rested)
	return !t.owed
}

// untilLook returns the time until the next catch-up: one that is owed, or one that nobody has asked for, spread so that
// the processes of a cluster do not all look at once.
func (t *topic) untilLook() time.Duration {
	if t.owed {
		return time.Until(t.rested)
	}
	interval := t.cfg.FallbackInterval
	if t.outage.Err() != nil || !t.listener.Healthy() {
		interval = min(interval, t.cfg.PollInterval)
	}
	return interval - rand.N(interval/10+1)
}

// hear lets out what a notification said.
func (t *topic) hear(ctx context.Context, n Notification) {
	switch {
	case n.PID == 0:
		// None of the four: there is nowhere to look.
		t.log.Debug("notifications may have been missed")
		return
	case t.ours:
		if err := checkEvent(t.event, n.Channel, n.Payload); err != nil {
			t.refuse(ctx, n, err)
			return
		}
	}
	d := t.write(ctx, n.Payload, SourceNotify, n.Received)
	d.msg.Metadata.Set(MetadataPID, strconv.FormatUint(uint64(n.PID), 10))
	t.deliver(ctx, d)
}

// refuse counts a notification that is dropped, and says so of the first.
func (t *topic) refuse(ctx context.Context, n Notification, err error) {
	t.metrics.refuse(ctx)
	if t.refused.Pass("") {
		t.log.WarnContext(ctx, "notification dropped", "error", err, "pid", n.PID)
	}
}

// look catches up, if the channel is one of the four.
func (t *topic) look(ctx context.Context) {
	if !t.ours {
		return
	}
	began := time.Now()
	t.owed = false
	err := t.pending.pass(ctx, func(payload string) bool {
		return t.deliver(ctx, t.write(ctx, payload, SourceCatchUp, time.Now()))
	})
	if ctx.Err() != nil {
		return
	}
	t.rested = time.Now().Add(min(restShare*t.pending.cost, t.cfg.PollInterval))
	t.metrics.caughtUp(ctx, err)
	if err != nil {
		t.outage.Failed(ctx, err, "poll_interval", seconds(t.cfg.PollInterval))
		return
	}
	t.answered = began
	t.outage.Succeeded(ctx)
	t.listener.Retry()
}

// write completes the draft there is, or a new one.
func (t *topic) write(ctx context.Context, payload, source string, received time.Time) *draft {
	d := t.next
	if t.next = nil; d == nil {
		d = newDraft(ctx, t.channel)
	}
	d.source = source
	d.msg.Payload = []byte(payload)
	d.msg.Metadata.Set(MetadataSource, source)
	d.msg.Metadata.Set(MetadataReceived, received.UTC().Format(time.RFC3339Nano))
	return d
}

// deliver lets a message out as soon as there is a slot for it, and reports whether it did before ctx or the subscription
// ended.
func (t *topic) deliver(ctx context.Context, d *draft) bool {
	select {
	case t.slots <- struct{}{}:
	case <-t.sub.done:
		d.finished()
		return false
	case <-ctx.Done():
		d.finished()
		return false
	}
	if !t.letOut(ctx, d) {
		<-t.slots
		return false
	}
	settled := func() {
		defer func() { <-t.slots }()
		t.settle(ctx, d)
	}
	if t.cfg.MaxInFlight == 1 {
		settled() // nothing can be let out before, so a goroutine would only take the handler's turn
	} else {
		t.unsettled.Go(settled)
	}
	return true
}

// letOut hands the message to the handler. If ctx or the subscription ends before, its context is finished.
func (t *topic) letOut(ctx context.Context, d *draft) bool {
	select {
	case t.out <- d.msg:
		if d.alone {
			runtime.Gosched() // the handler goes first: what is left to do here can wait
		}
		t.metrics.delivered(ctx, d.source)
		return true
	case <-t.sub.done:
	case <-ctx.Done():
	}
	d.finished()
	return false
}

// settle waits for the message to be acknowledged, and delivers copies of it for as long as it is refused, until ctx or
// the subscription ends.
func (t *topic) settle(ctx context.Context, d *draft) {
	for {
		select {
		case <-d.msg.Acked():
			d.finished()
			return
		case <-t.sub.done:
			d.finished()
			return
		case <-ctx.Done():
			d.finished()
			return
		case <-d.msg.Nacked():
			d.finished()
		}
		delay := time.NewTimer(t.cfg.NackDelay)
		select {
		case <-delay.C:
		case <-t.sub.done:
		case <-ctx.Done():
		}
		delay.Stop()
		if d = d.copy(ctx); !t.letOut(ctx, d) {
			return
		}
	}
}
