package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// SubscriberConfig configures a [Subscriber]. Durations are 1 ms to 8760 h (a year), numbers 1 to 1,000,000, BatchSize
// to 10,000.
type SubscriberConfig struct {
	// Listener receives the notifications. It is neither started nor closed here; one that is not connected, or
	// disabled, makes the subscriber poll. Required.
	Listener *Listener

	// Pool is where catch-ups are read. No connection is held while a message is handled. Required.
	Pool *pgxpool.Pool

	// Schema of Romancy's tables. Default "romancy".
	Schema string

	// Channels of the four events. Default [ChannelsFor] the schema; a name left empty is taken from there.
	Channels Channels

	// FallbackInterval is how often it catches up although nothing seems to be missed, because a process can end between
	// its commit and the notification. Default 30 s.
	FallbackInterval time.Duration

	// PollInterval is how often it catches up while the listener has no connection. Default 1 s.
	PollInterval time.Duration

	// BatchSize is how many pending items are read at once. Where that is slow, or brings nothing new, it is up to 64
	// times as many. Default 100.
	BatchSize int

	// MaxInFlight is how many messages of a subscription may be unacknowledged at a time. With more than one, they are
	// handled concurrently and in no certain order. Default 1.
	MaxInFlight int

	// NackDelay is the time before a message is delivered again that was refused by Nack. Default 1 s.
	NackDelay time.Duration

	// QueueSize is how many notifications wait for a subscription's handler before they are replaced by a catch-up. One
	// with a payload of a KiB or more counts once more for each KiB: the queue never has more than QueueSize KiB of
	// payloads (or a single one). Default [DefaultQueue].
	QueueSize int

	// Logger. Default slog.Default().
	Logger *slog.Logger

	// MeterProvider makes the metrics romancy.subscriber.delivered (messages, by channel and source, redeliveries
	// included), romancy.subscriber.catch_ups (by channel and outcome) and romancy.subscriber.refused (notifications that
	// are not what their channel carries, by channel). Default otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
}

func (c SubscriberConfig) withDefaults() SubscriberConfig {
	c.Schema = cmp.Or(c.Schema, schema.Default)
	names := ChannelsFor(c.Schema)
	c.Channels.WorkflowResumable = cmp.Or(c.Channels.WorkflowResumable, names.WorkflowResumable)
	c.Channels.TimerExpired = cmp.Or(c.Channels.TimerExpired, names.TimerExpired)
	c.Channels.ChannelMessage = cmp.Or(c.Channels.ChannelMessage, names.ChannelMessage)
	c.Channels.OutboxPending = cmp.Or(c.Channels.OutboxPending, names.OutboxPending)
	c.FallbackInterval = cmp.Or(c.FallbackInterval, 30*time.Second)
	c.PollInterval = cmp.Or(c.PollInterval, time.Second)
	c.BatchSize = cmp.Or(c.BatchSize, 100)
	c.MaxInFlight = cmp.Or(c.MaxInFlight, 1)
	c.NackDelay = cmp.Or(c.NackDelay, time.Second)
	c.QueueSize = cmp.Or(c.QueueSize, DefaultQueue)
	c.Logger = refusal.Logger(cmp.Or(c.Logger, slog.Default()))
	return c
}

func (c SubscriberConfig) validate() error {
	var errs []error
	if c.Listener == nil {
		errs = append(errs, errors.New("bus.SubscriberConfig.Listener is nil: give the process's listener (a disabled one makes the subscriber poll)"))
	}
	if flaw := dial.Unusable(c.Pool); flaw != "" {
		errs = append(errs, fmt.Errorf("bus.SubscriberConfig.Pool %s: give the pgx pool that catch-ups are read with", flaw))
	}
	if err := sqlfile.CheckSchema(c.Schema); err != nil {
		errs = append(errs, fmt.Errorf("bus.SubscriberConfig.Schema: %w", err))
	} else if err := c.Channels.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("bus.SubscriberConfig.Channels: %w", err))
	}
	errs = append(errs,
		checkProvider("bus.SubscriberConfig.MeterProvider", c.MeterProvider),
		bounds.Interval("bus.SubscriberConfig.FallbackInterval", c.FallbackInterval),
		bounds.Interval("bus.SubscriberConfig.PollInterval", c.PollInterval),
		bounds.Batch("bus.SubscriberConfig.BatchSize", c.BatchSize),
		bounds.Count("bus.SubscriberConfig.MaxInFlight", c.MaxInFlight),
		bounds.Interval("bus.SubscriberConfig.NackDelay", c.NackDelay),
		bounds.Count("bus.SubscriberConfig.QueueSize", c.QueueSize))
	return errors.Join(errs...)
}

// Subscriber delivers notifications as Watermill messages, at most once on any channel but those of the four events.
// There it delivers at least once: what is pending is delivered until it is acknowledged. A notification on any other
// channel is lost if nobody hears it. A topic is the name of a PostgreSQL channel.
//
// What a lost notification of the four would have said is read from the schema: after subscribing, after every reconnect,
// after the queue overflowed, and every FallbackInterval. It comes with the same payload ([MetadataSource] tells the
// difference). A notification is believed only as a hint, because every role of the database can send one: what was
// notified, and is still pending at the next catch-up, is delivered once more by that. What a catch-up has delivered is
// repeated only if it has changed since. What was not acknowledged when a subscription ends is delivered to the next, as is
// everything else that is pending then. Every subscription receives everything: there are no consumer groups.
//
// A notification carries its payload and nothing else. A message gets a UUID of its own, and as metadata what the
// Metadata constants say.
//
// It implements message.Subscriber and message.SubscribeInitializer.
type Subscriber struct {
	cfg     SubscriberConfig
	log     *slog.Logger
	queries sqlfile.Queries
	metrics *subscriberMetrics
	refused *outage.Flood // of notifications that are not what their channel carries

	ctx  context.Context // ended by Close
	stop context.CancelFunc

	mu     sync.Mutex
	closed bool
	topics sync.WaitGroup
}

var (
	_ message.Subscriber           = (*Subscriber)(nil)
	_ message.SubscribeInitializer = (*Subscriber)(nil)
	_ fmt.Stringer                 = (*Subscriber)(nil)
)

// NewSubscriber returns a subscriber. All mistakes in cfg are reported together.
func NewSubscriber(cfg SubscriberConfig) (*Subscriber, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	loaded, err := sqlfile.Load(queryFiles, "queries", cfg.Schema)
	if err != nil {
		return nil, err
	}
	metrics, err := newSubscriberMetrics(cfg.MeterProvider)
	if err != nil {
		return nil, fmt.Errorf("bus.SubscriberConfig.MeterProvider: %w", err)
	}
	s := &Subscriber{cfg: cfg, log: cfg.Logger, queries: loaded, metrics: metrics}
	s.refused = outage.NewFlood(s.log, refusedSummary, 1).Once()
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// subscribePatience is how long Subscribe waits for a connected listener to have its LISTEN committed.
const subscribePatience = 5 * time.Second

// Subscribe delivers a channel at most once unless it is one of the four, see [Subscriber]. It returns the messages of the
// channel called topic until ctx ends, or the subscriber or its listener is closed. If the listener is connected,
// everything that is notified after Subscribe has returned is delivered. It returns an error for a name that PostgreSQL
// would refuse, and [ErrClosed] after Close of the subscriber or of its listener.
func (s *Subscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	if err := checkChannel(topic); err != nil {
		return nil, fmt.Errorf("subscribe: %w", err)
	}
	t, err := s.open(ctx, topic)
	if err != nil {
		return nil, err
	}
	if s.cfg.Listener.Healthy() {
		limit := time.NewTimer(subscribePatience)
		defer limit.Stop()
		select {
		case <-t.sub.listening:
		case <-t.sub.done:
		case <-ctx.Done():
		case <-limit.C: // the connection is being lost: the catch-up will come with the next
		}
	}
	return t.out, nil
}

// open begins a subscription.
func (s *Subscriber) open(ctx context.Context, channel string) (*topic, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, fmt.Errorf("subscribe to %s: subscriber: %w", channel, ErrClosed)
	}
	sub, err := s.cfg.Listener.Subscribe(s.cfg.QueueSize, channel)
	if err != nil {
		return nil, err
	}
	s.sayUnknown(ctx, channel)
	t := newTopic(s, sub, channel)
	ctx, cancel := context.WithCancel(ctx)
	forget := context.AfterFunc(s.ctx, cancel)
	s.topics.Go(func() {
		defer cancel()
		defer forget()
		t.run(ctx)
	})
	return t, nil
}

// sayUnknown says that a channel is not one of the four although its name looks like theirs: it may be mistyped, and then nothing comes.
func (s *Subscriber) sayUnknown(ctx context.Context, channel string) {
	if _, known := s.cfg.Channels.Event(channel); known || !strings.HasPrefix(channel, s.cfg.Schema+"_") {
		return
	}
	s.log.WarnContext(ctx, "subscribed to a channel that begins with the schema's name and is none of its four: only what is notified on it while "+
		"somebody listens is delivered, see bus.Channels", "channel", channel, "channels", strings.Join(s.cfg.Channels.All(), ", "))
}

// SubscribeInitialize reports whether topic could be subscribed to: a PostgreSQL channel needs no preparation.
func (s *Subscriber) SubscribeInitialize(topic string) error {
	if err := checkChannel(topic); err != nil {
		return fmt.Errorf("subscribe: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return fmt.Errorf("subscribe to %s: subscriber: %w", topic, ErrClosed)
	}
	return nil
}

// Close ends all subscriptions, whatever they wait for, and returns when their channels are closed. Messages that are
// being handled have their contexts cancelled. The listener and the pool stay open. It may be called more than once.
func (s *Subscriber) Close() error {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.stop()
	s.topics.Wait()
	s.refused.Close()
	return nil
}

// String names the subscriber in logs.
func (s *Subscriber) String() string { return "bus.Subscriber(" + s.cfg.Schema + ")" }
