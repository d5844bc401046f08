package outbox

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// maxPublishTimeout is the longest PublishTimeout. Twice as long, and a tenth longer, are durations that work as well.
const maxPublishTimeout = 24 * time.Hour

// RelayConfig configures a Relay. Pool and Publisher are required. Durations are 1 ms to 8760 h (a year), except where
// they say otherwise.
type RelayConfig struct {
	// Pool lends a connection for each short transaction, never while an event is being published. Beside it, and made from
	// its configuration, the relay has a connection of its own that renews its leases, and, once the pool had none free for
	// what was published, a second one.
	Pool *pgxpool.Pool

	// Schema is where the tables are. Default "romancy".
	Schema string

	// Publisher gets the events, one message a call, from many goroutines at once. It must return nil only when the broker
	// has the message: with AMQP set ConfirmDelivery, with Kafka wait for all in-sync replicas. The relay does not close
	// it.
	Publisher message.Publisher

	// Listener wakes the relay. Nil, disabled or disconnected: it looks every PollInterval instead.
	Listener *bus.Listener

	// Channels names the notification channels. Default: those of Schema.
	Channels bus.Channels

	// BatchSize is how many events are taken at once, all from one slot (a 64th of the keys). Default 100, at most 10,000.
	BatchSize int

	// Consumers is how many batches are in work at the same time, each of another slot. Default 4, at most 64.
	Consumers int

	// Lanes is how many calls of Publisher may run at the same time, over all consumers. Default 64, at most 1,000,000.
	Lanes int

	// PublishTimeout is how long a call of Publisher may take. Then its message's context ends. Publishers that know no
	// context (NATS, Kafka) do not notice: a call that takes a tenth longer counts as failed and occupies its lane until it
	// returns. Default 10 s, at most 24 h.
	PublishTimeout time.Duration

	// Lease is how long the events in the hands of a relay that died stay with it. It is renewed while a batch is in work.
	// At least twice PublishTimeout. Default: that.
	Lease time.Duration

	// MaxAttempts is after how many attempts an event becomes a dead letter. Together with the backoff it says how long a
	// broker may be away: the defaults survive about 45 minutes, and Requeue brings back what a longer outage set aside.
	// Default 20, at most 1,000,000.
	MaxAttempts int

	// InitialBackoff is about how long an event waits after its first failure; each further one doubles it, up to
	// MaxBackoff. Defaults 200 ms and 5 min.
	InitialBackoff, MaxBackoff time.Duration

	// PollInterval is how often the relay looks for events while no notifications arrive. Default 1 s.
	PollInterval time.Duration

	// FallbackInterval is how often it looks although they do, in case one was lost. Default 30 s.
	FallbackInterval time.Duration

	// DeadLetterRetention is after how long Retain deletes a dead letter: at least 1 ms. Default 0: never.
	DeadLetterRetention time.Duration

	// HideErrorTexts leaves the texts of the publisher's errors out of the log, which then has their types only. The first 1000 bytes are
	// kept with the event either way. Default false: the log has as much.
	HideErrorTexts bool

	// Logger. Default slog.Default().
	Logger *slog.Logger
}

func (c RelayConfig) withDefaults() RelayConfig {
	c.Schema = cmp.Or(c.Schema, schema.Default)
	c.Channels = cmp.Or(c.Channels, bus.ChannelsFor(c.Schema))
	c.BatchSize = cmp.Or(c.BatchSize, 100)
	c.Consumers = cmp.Or(c.Consumers, 4)
	c.Lanes = cmp.Or(c.Lanes, 64)
	c.PublishTimeout = cmp.Or(c.PublishTimeout, 10*time.Second)
	c.Lease = cmp.Or(c.Lease, 2*c.PublishTimeout)
	c.MaxAttempts = cmp.Or(c.MaxAttempts, 20)
	c.InitialBackoff = cmp.Or(c.InitialBackoff, 200*time.Millisecond)
	c.MaxBackoff = cmp.Or(c.MaxBackoff, max(5*time.Minute, c.InitialBackoff))
	c.PollInterval = cmp.Or(c.PollInterval, time.Second)
	c.FallbackInterval = cmp.Or(c.FallbackInterval, 30*time.Second)
	c.Logger = refusal.Logger(cmp.Or(c.Logger, slog.Default()))
	return c
}

// validate reports every mistake in a configuration that has its defaults.
func (c RelayConfig) validate() error {
	var mistakes []error
	wrong := func(format string, args ...any) { mistakes = append(mistakes, fmt.Errorf(format, args...)) }
	if flaw := dial.Unusable(c.Pool); flaw != "" {
		wrong("Pool %s: pass the pool of the database that the outbox is in", flaw)
	}
	if bounds.Nothing(c.Publisher) {
		wrong("Publisher is nil: pass the Watermill publisher that the events go to")
	}
	if err := sqlfile.CheckSchema(c.Schema); err != nil {
		mistakes = append(mistakes, err)
	} else if err := c.Channels.Validate(); err != nil {
		mistakes = append(mistakes, err)
	}
	if c.Consumers < 1 || c.Consumers > slots {
		wrong("Consumers is %d: use 1 to %d, the number of slots", c.Consumers, slots)
	}
	mistakes = append(mistakes,
		bounds.Batch("BatchSize", c.BatchSize),
		bounds.Count("Lanes", c.Lanes),
		bounds.Count("MaxAttempts", c.MaxAttempts),
		bounds.Number("PublishTimeout", c.PublishTimeout, bounds.Shortest, maxPublishTimeout, ", or 0 for the default"),
		bounds.Interval("InitialBackoff", c.InitialBackoff),
		bounds.Interval("MaxBackoff", c.MaxBackoff),
		bounds.Interval("PollInterval", c.PollInterval),
		bounds.Interval("FallbackInterval", c.FallbackInterval),
		bounds.Interval("Lease", c.Lease),
		bounds.Age("DeadLetterRetention", c.DeadLetterRetention, bounds.Shortest, "to keep dead letters permanently"))
	if c.Lease < 2*c.PublishTimeout {
		wrong("Lease is %v: use at least twice PublishTimeout (%v), so that no call outlives it", c.Lease, c.PublishTimeout)
	}
	if c.MaxBackoff < c.InitialBackoff {
		wrong("MaxBackoff is %v: use at least InitialBackoff (%v)", c.MaxBackoff, c.InitialBackoff)
	}
	return errors.Join(mistakes...)
}

// callLimit is when a call of the publisher is given up. It is a little more than what the message's context allows, so
// that a publisher which honours that can say so itself.
func (c RelayConfig) callLimit() time.Duration { return c.PublishTimeout + c.PublishTimeout/10 }
