package outbox

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// maxEventSize is the largest MaxEventSize: PostgreSQL takes a GiB with one statement.
const maxEventSize = 256 << 20

// WriterConfig configures a Writer. The zero value is ready to use.
type WriterConfig struct {
	// Schema is where the tables are. Default "romancy".
	Schema string

	// Notifier tells relays of what was written, after the commit. Nil: the notification is part of the transaction, which
	// makes every such commit of the cluster wait for the one before it; fine while they are few.
	Notifier *bus.Notifier

	// Channels names the notification channels. Default: those of Schema.
	Channels bus.Channels

	// MaxEventSize is the largest payload and headers together, in bytes. Set it to what the broker takes: a larger event
	// would be written, refused at every attempt and end as a dead letter. Default 1 MiB, which NATS and Kafka take unless
	// configured otherwise; at most 256 MiB.
	MaxEventSize int
}

func (c WriterConfig) withDefaults() WriterConfig {
	c.Schema = cmp.Or(c.Schema, schema.Default)
	c.Channels = cmp.Or(c.Channels, bus.ChannelsFor(c.Schema))
	c.MaxEventSize = cmp.Or(c.MaxEventSize, 1<<20)
	return c
}

func (c WriterConfig) validate() error {
	var mistakes []error
	if err := sqlfile.CheckSchema(c.Schema); err != nil {
		mistakes = append(mistakes, err)
	} else if err := c.Channels.Validate(); err != nil {
		mistakes = append(mistakes, err)
	}
	mistakes = append(mistakes, bounds.Number("MaxEventSize", c.MaxEventSize, 1, maxEventSize, ", or 0 for the default"))
	return errors.Join(mistakes...)
}

// Writer writes events in a caller's transaction. It has no pool and takes no connection of its own, so it cannot wait
// for one while the caller holds another. It is safe for concurrent use.
type Writer struct {
	config  WriterConfig
	queries sqlfile.Queries
}

// NewWriter returns a writer, or an error that names all mistakes in the configuration.
func NewWriter(config WriterConfig) (*Writer, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("outbox writer: %w", err)
	}
	queries, err := loadQueries(config.Schema)
	if err != nil {
		return nil, fmt.Errorf("outbox writer: %w", err)
	}
	return &Writer{config: config, queries: queries}, nil
}

// Add writes events in tx, all in one statement and in the order given. They are published if and only if tx commits.
//
// It checks all events before it touches tx, and then returns one *InvalidEventError for every mistake, joined. After any
// other error tx can only be rolled back.
func (w *Writer) Add(ctx context.Context, tx pgx.Tx, events ...Event) error {
	if w == nil {
		return errors.New("add to the outbox: the writer is nil: make one with NewWriter, or start the App that you have it from")
	}
	if len(events) == 0 {
		return nil
	}
	if bounds.Nothing(tx) {
		return errors.New("add to the outbox: tx is nil: pass the transaction that the events belong to")
	}
	c, err := encode(events, w.config.MaxEventSize)
	if err != nil {
		return fmt.Errorf("add to the outbox: %w", refusal.Public(err))
	}
	channel := w.config.Channels.OutboxPending
	if w.config.Notifier == nil {
		payloads := make([]string, len(c.ids))
		for i, id := range c.ids {
			payloads[i] = bus.Encode(bus.OutboxPending{EventID: id})
		}
		if _, err := tx.Exec(ctx, w.queries.Get("AddEventsAndNotify"),
			c.ids, c.topics, c.keys, c.slots, c.payloads, c.headers, channel, payloads); err != nil {
			return fmt.Errorf("add to the outbox: %w", refusal.Public(err))
		}
		return nil
	}
	var xid string // so that notifying need not ask for it
	if err := tx.QueryRow(ctx, w.queries.Get("AddEvents"),
		c.ids, c.topics, c.keys, c.slots, c.payloads, c.headers).Scan(&xid); err != nil {
		return fmt.Errorf("add to the outbox: %w", refusal.Public(err))
	}
	messages := make([]bus.Message, len(c.ids))
	for i, id := range c.ids {
		messages[i] = bus.Message{Channel: channel, Payload: bus.Encode(bus.OutboxPending{EventID: id})}
	}
	if err := w.config.Notifier.NotifyTxID(ctx, tx, xid, messages); err != nil {
		return fmt.Errorf("add to the outbox: notify: %w", err)
	}
	return nil
}

// Tx returns a Watermill publisher that writes to the outbox in tx, for a CQRS event bus or whatever else takes one. A
// message's UUID becomes the event's ID, its metadata the headers, its metadata MetadataKey the key (default: the UUID),
// and the context of the first message of a call bounds the writing. Metadata that another relay set on a message, should
// it be passed on, is replaced. Close only ends the publisher; the transaction stays the caller's.
func (w *Writer) Tx(tx pgx.Tx) message.Publisher { return &txPublisher{writer: w, tx: tx} }

type txPublisher struct {
	writer *Writer
	tx     pgx.Tx
	closed atomic.Bool
}

// Publish implements message.Publisher.
func (p *txPublisher) Publish(topic string, messages ...*message.Message) error {
	if p.closed.Load() {
		return errors.New("add to the outbox: the publisher is closed")
	}
	if len(messages) == 0 {
		return nil
	}
	events := make([]Event, len(messages))
	for i, msg := range messages {
		if msg == nil {
			return fmt.Errorf("add to the outbox: message %d of %d is nil: pass one made by message.NewMessage", i+1, len(messages))
		}
		headers := make(map[string]string, len(msg.Metadata))
		for name, value := range msg.Metadata {
			if name != MetadataEventID && name != MetadataKey {
				headers[name] = value
			}
		}
		events[i] = Event{ID: msg.UUID, Topic: topic, Key: msg.Metadata.Get(MetadataKey), Payload: msg.Payload, Headers: headers}
	}
	return p.writer.Add(messages[0].Context(), p.tx, events...)
}

// Close implements message.Publisher.
func (p *txPublisher) Close() error {
	p.closed.Store(true)
	return nil
}

// defaultWriter is made on first use; the zero configuration is valid.
var defaultWriter = sync.OnceValue(func() *Writer {
	w, err := NewWriter(WriterConfig{})
	if err != nil {
		panic(err)
	}
	return w
})

// Add is Writer.Add with the default configuration: schema "romancy", notified within the transaction.
func Add(ctx context.Context, tx pgx.Tx, events ...Event) error {
	return defaultWriter().Add(ctx, tx, events...)
}

// Tx is Writer.Tx with the default configuration: schema "romancy", notified within the transaction.
func Tx(tx pgx.Tx) message.Publisher { return defaultWriter().Tx(tx) }
