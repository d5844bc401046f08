package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
)

// PublisherConfig configures a [Publisher].
type PublisherConfig struct {
	// Timeout bounds each Publish, the wait for a connection of the pool included: 1 ms to 8760 h (a year). Default 10
	// s.
	Timeout time.Duration
}

// Publisher notifies PostgreSQL channels as a Watermill publisher, at most once: nothing is stored, so who does not listen
// at the moment does not hear it. A topic is the name of a channel, and only the message's payload travels: no UUID, no
// metadata, at most [MaxPayload] bytes of UTF-8. Messages of one call with the same payload arrive as one, because
// PostgreSQL sends what a transaction notifies twice only once. It implements message.Publisher.
//
// Every Publish is a notifying transaction, of which PostgreSQL commits one at a time in the whole cluster. Where that is
// too slow, publish several messages at once, or use a [Notifier].
type Publisher struct {
	pool *pgxpool.Pool
	cfg  PublisherConfig

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

var _ message.Publisher = (*Publisher)(nil)

// NewPublisher returns a publisher that uses pool. All mistakes are reported together.
func NewPublisher(pool *pgxpool.Pool, cfg PublisherConfig) (*Publisher, error) {
	cfg.Timeout = cmp.Or(cfg.Timeout, 10*time.Second)
	var errs []error
	if flaw := dial.Unusable(pool); flaw != "" {
		errs = append(errs, fmt.Errorf("the pool of bus.NewPublisher %s: give the pgx pool to publish with", flaw))
	}
	errs = append(errs, bounds.Interval("bus.PublisherConfig.Timeout", cfg.Timeout))
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &Publisher{pool: pool, cfg: cfg}, nil
}

// Publish notifies topic of all messages or, after an error, of none. It ends early with the context of the first
// message. It returns a [*MessageError] for one that PostgreSQL would refuse, and [ErrClosed] after Close.
func (p *Publisher) Publish(topic string, messages ...*message.Message) error {
	p.mu.Lock()
	if p.closed {
		p.mu.Unlock()
		return fmt.Errorf("publish to %s: publisher: %w", topic, ErrClosed)
	}
	p.running.Add(1)
	p.mu.Unlock()
	defer p.running.Done()

	notifications, ctx, err := outgoing(topic, messages)
	if err != nil || len(notifications) == 0 {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, p.cfg.Timeout)
	defer cancel()
	channels, payloads := columns(notifications)
	if _, err := p.pool.Exec(ctx, queries.Get("Publish"), channels, payloads); err != nil {
		return fmt.Errorf("publish to %.40s: %w", topic, refusal.Public(err))
	}
	return nil
}

// Close waits for every Publish in progress. The pool stays open. It may be called more than once.
func (p *Publisher) Close() error {
	p.mu.Lock()
	p.closed = true
	p.mu.Unlock()
	p.running.Wait()
	return nil
}

// TxPublisher returns a publisher whose notifications are sent, at most once, when tx commits, with the limits of
// [Publisher]. What PostgreSQL would refuse is a [*MessageError] before tx is touched; any other error comes from tx, which is then
// aborted. It is good for one goroutine, as tx is, and Close does nothing.
func TxPublisher(tx pgx.Tx) message.Publisher { return txPublisher{tx} }

type txPublisher struct{ tx pgx.Tx }

func (p txPublisher) Publish(topic string, messages ...*message.Message) error {
	notifications, ctx, err := outgoing(topic, messages)
	if err != nil || len(notifications) == 0 {
		return err
	}
	if bounds.Nothing(p.tx) {
		return fmt.Errorf("publish to %s: %w", topic, errNoTx)
	}
	if err := notifyIn(ctx, p.tx, notifications); err != nil {
		return fmt.Errorf("publish to %.40s: %w", topic, refusal.Public(err))
	}
	return nil
}

func (p txPublisher) Close() error { return nil }

// outgoing checks the messages, and returns the context of the first.
func outgoing(topic string, messages []*message.Message) ([]Message, context.Context, error) {
	var notifications []Message
	for i, msg := range messages {
		if msg == nil {
			return nil, nil, fmt.Errorf("publish: message %d of %d is nil: give one made by message.NewMessage", i+1, len(messages))
		}
		notifications = append(notifications, Message{Channel: topic, Payload: string(msg.Payload)})
	}
	if err := validateMessages(notifications); err != nil {
		return nil, nil, fmt.Errorf("publish: %w", err)
	}
	if len(messages) == 0 {
		return nil, nil, nil
	}
	return notifications, messages[0].Context(), nil
}
