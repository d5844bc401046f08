package bus

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
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
	unsettled sync.WaitGroup
	failing   bool // the last catch-up failed
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
	}
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
		n, ok, err := t.sub.take()
		switch {
		case err != nil || ctx.Err() != nil:
			return
		case ok && t.ours && n.CatchUp:
			t.look(ctx)
			look.Reset(t.untilLook())
			continue
		case ok:
			t.hear(ctx, n)
			continue
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

// untilLook returns the time until the next catch-up that nobody has asked for, spread so that the processes of a cluster
// do not all look at once.
func (t *topic) untilLook() time.Duration {
	interval := t.cfg.FallbackInterval
	if t.failing || !t.listener.Healthy() {
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
			t.log.Warn("notification dropped", "error", err, "pid", n.PID)
			return
		}
	}
	msg := message.NewMessage(watermill.NewUUID(), []byte(n.Payload))
	msg.Metadata.Set(MetadataSource, SourceNotify)
	msg.Metadata.Set(MetadataPID, strconv.FormatUint(uint64(n.PID), 10))
	t.deliver(ctx, msg, n.Received)
}

// look catches up, if the channel is one of the four.
func (t *topic) look(ctx context.Context) {
	if !t.ours {
		return
	}
	err := t.pending.pass(ctx, func(payload string) bool {
		msg := message.NewMessage(watermill.NewUUID(), []byte(payload))
		msg.Metadata.Set(MetadataSource, SourceCatchUp)
		return t.deliver(ctx, msg, time.Now())
	})
	if ctx.Err() != nil {
		return
	}
	if err != nil && !t.failing {
		t.log.Warn("cannot read what notifications may have been missed, trying again", "error", err, "poll_interval", seconds(t.cfg.PollInterval))
	}
	t.failing = err != nil
}

// deliver lets msg out as soon as there is a slot for it, and reports whether it did before ctx ended.
func (t *topic) deliver(ctx context.Context, msg *message.Message, received time.Time) bool {
	msg.Metadata.Set(MetadataChannel, t.channel)
	msg.Metadata.Set(MetadataReceived, received.UTC().Format(time.RFC3339Nano))
	select {
	case t.slots <- struct{}{}:
	case <-ctx.Done():
		return false
	}
	finished, ok := t.letOut(ctx, msg)
	if !ok {
		<-t.slots
		return false
	}
	t.unsettled.Go(func() {
		defer func() { <-t.slots }()
		t.settle(ctx, msg, finished)
	})
	return true
}

// letOut hands msg to the handler, with a context that lasts until finished is called.
func (t *topic) letOut(ctx context.Context, msg *message.Message) (finished context.CancelFunc, ok bool) {
	msgCtx, finished := context.WithCancel(ctx)
	msg.SetContext(msgCtx)
	select {
	case t.out <- msg:
		return finished, true
	case <-ctx.Done():
		finished()
		return nil, false
	}
}

// settle waits for msg to be acknowledged, and delivers copies of it for as long as it is refused.
func (t *topic) settle(ctx context.Context, msg *message.Message, finished context.CancelFunc) {
	for {
		select {
		case <-msg.Acked():
			finished()
			return
		case <-ctx.Done():
			finished()
			return
		case <-msg.Nacked():
			finished()
		}
		if !pause(ctx, t.cfg.NackDelay) {
			return
		}
		msg = msg.Copy()
		var ok bool
		if finished, ok = t.letOut(ctx, msg); !ok {
			return
		}
	}
}
