package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
)

// closePatience is how long Close lets a statement in progress go on, before it cancels it.
const closePatience = 2 * time.Second

// WokenConfig configures a [WokenSubscriber].
type WokenConfig struct {
	// Listener hears the notifications. Whoever made it closes it, after the subscriber. Required.
	Listener *Listener

	// Channel returns the channel that publishers to topic notify. Default [TopicChannel], as of [NotifyingSchema].
	Channel func(topic string) string

	// Wake sets the intervals. Where it leaves the default, watermill-sql's config counts: its PollInterval is the
	// UnhealthyInterval, and its RetryInterval the RetryDelay.
	Wake WakeConfig

	// Logger. Default slog.Default(). What watermill-sql says for information is logged for debugging.
	Logger *slog.Logger
}

// WokenSubscriber is watermill-sql's subscriber, of any schema for PostgreSQL, that looks for messages when it is
// notified of them instead of every second: a message arrives within milliseconds of its commit, and an idle topic costs
// one look every 30 s. A notification only saves time: what publishers without [NotifyingSchema] insert arrives with the
// next look.
//
// It differs from watermill-sql's in two more points. Close does not wait for a statement that waits for a lock. And on
// a native pgx pool an error that comes with the rows is an error, where watermill-sql takes it for an empty topic; the
// transaction in a message's context is watermill-sql's *PgxTx as ever.
//
// A schema whose messages become due by time, such as watermill-sql's delayed one, needs a PollInterval as short as a
// delay may be exceeded.
type WokenSubscriber struct {
	db     watermillsql.Beginner
	config watermillsql.SubscriberConfig
	woken  WokenConfig
	logger watermill.LoggerAdapter
	tables *watermillsql.Subscriber // creates them, and has checked the config

	closing chan struct{}
	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

var (
	_ message.Subscriber           = (*WokenSubscriber)(nil)
	_ message.SubscribeInitializer = (*WokenSubscriber)(nil)
)

// NewWokenSubscriber returns a subscriber for what watermill-sql's NewSubscriber takes, but for the BackoffManager, and
// how it is woken. All mistakes are reported together.
func NewWokenSubscriber(db watermillsql.Beginner, config watermillsql.SubscriberConfig, woken WokenConfig) (*WokenSubscriber, error) {
	woken.Wake.UnhealthyInterval = cmp.Or(woken.Wake.UnhealthyInterval, config.PollInterval)
	woken.Wake.RetryDelay = cmp.Or(woken.Wake.RetryDelay, config.RetryInterval)
	if woken.Channel == nil {
		woken.Channel = TopicChannel
	}
	woken.Logger = refusal.Logger(cmp.Or(woken.Logger, slog.Default()))
	logger := watermill.NewSlogLoggerWithLevelMapping(woken.Logger, map[slog.Level]slog.Level{
		slog.LevelInfo:  slog.LevelDebug,
		slog.LevelDebug: watermill.LevelTrace,
	})

	errs := []error{woken.Wake.validate()}
	if woken.Listener == nil {
		errs = append(errs, errors.New("bus.WokenConfig.Listener is nil: give the listener that hears the notifications"))
	}
	if bounds.Nothing(db) {
		errs = append(errs, errors.New("the db of bus.NewWokenSubscriber is nil: give watermill-sql's BeginnerFromPgx of the application's pool"))
	}
	if config.BackoffManager != nil {
		errs = append(errs, errors.New("the BackoffManager of bus.NewWokenSubscriber is set: leave it nil, the subscriber brings its own"))
	}
	tables, err := watermillsql.NewSubscriber(db, config, logger)
	if err != nil && !bounds.Nothing(db) { // else it says the same
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("new woken subscriber: %w", err)
	}
	return &WokenSubscriber{
		db:      withRowErrors(db),
		config:  config,
		woken:   woken,
		logger:  logger,
		tables:  tables,
		closing: make(chan struct{}),
	}, nil
}

// SubscribeInitialize creates the tables of topic.
func (s *WokenSubscriber) SubscribeInitialize(topic string) error {
	return s.tables.SubscribeInitialize(topic)
}

// Subscribe returns the messages of topic, as watermill-sql's subscriber does, until ctx ends or Close. It returns an
// error for a channel name that PostgreSQL would refuse, whatever watermill-sql returns, and [ErrClosed] once the
// subscriber or its listener is closed.
func (s *WokenSubscriber) Subscribe(ctx context.Context, topic string) (<-chan *message.Message, error) {
	closed := fmt.Errorf("subscribe to %s: subscriber: %w", topic, ErrClosed)
	select {
	case <-s.closing:
		return nil, closed
	default:
	}
	started, err := s.start(ctx, topic)
	if err != nil {
		return nil, fmt.Errorf("subscribe to %s: %w", topic, err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed { // meanwhile
		started.end()
		return nil, closed
	}
	s.running.Go(func() {
		select {
		case <-ctx.Done():
		case <-s.closing:
		}
		started.end()
	})
	return started.messages, nil
}

// Close ends all subscriptions and returns when their channels are closed. It waits for no poll, and for a statement of
// theirs in progress no longer than two seconds; the database, the pool and the listener stay open. It may be called
// more than once.
func (s *WokenSubscriber) Close() error {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.closing)
	}
	s.mu.Unlock()
	s.running.Wait()
	return nil
}

// wokenSubscription is one Subscribe: a subscriber of watermill-sql's and a waker of its own.
type wokenSubscription struct {
	subscriber *watermillsql.Subscriber
	waker      *Waker
	cancel     context.CancelFunc
	messages   <-chan *message.Message
}

func (s *WokenSubscriber) start(ctx context.Context, topic string) (*wokenSubscription, error) {
	waker, err := WakeOn(s.woken.Listener, s.woken.Channel(topic), s.woken.Wake)
	if err != nil {
		return nil, err
	}
	waker.visibility = &visibility{db: s.db}
	config := s.config
	config.BackoffManager = waker
	subscriber, err := watermillsql.NewSubscriber(s.db, config, s.logger)
	if err != nil {
		waker.Close()
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	messages, err := subscriber.Subscribe(ctx, topic)
	if err != nil {
		cancel()
		waker.Close()
		return nil, err
	}
	return &wokenSubscription{subscriber: subscriber, waker: waker, cancel: cancel, messages: messages}, nil
}

// end ends the subscription and waits until its channel is closed.
func (s *wokenSubscription) end() {
	s.waker.Close()
	impatience := time.AfterFunc(closePatience, s.cancel)
	_ = s.subscriber.Close() // never fails
	impatience.Stop()
	s.cancel()
	// The channel is closed a moment after Close returned, and nothing is sent to it in between.
	for range s.messages {
	}
}
