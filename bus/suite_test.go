package bus

import (
	"crypto/sha256"
	"fmt"
	"log/slog"
	"strconv"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/tests"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// never is a poll interval that no test lives to see: what arrives was notified.
const never = time.Hour

// wokenSQL is watermill-sql, of one of its schemas, on a database and a listener.
type wokenSQL struct {
	pool     *pgxpool.Pool
	db       watermillsql.Beginner
	listener *Listener
	schema   watermillsql.SchemaAdapter
	offsets  watermillsql.OffsetsAdapter
	wake     WakeConfig
}

func newWokenSQL(t *testing.T) *wokenSQL {
	t.Helper()
	return wokenSQLOn(t, pgtest.Pool(t))
}

func wokenSQLOn(t *testing.T, pool *pgxpool.Pool) *wokenSQL {
	t.Helper()
	return &wokenSQL{
		pool:     pool,
		db:       watermillsql.BeginnerFromPgx(pool),
		listener: startListener(t, pool),
		schema:   watermillsql.DefaultPostgreSQLSchema{GeneratePayloadType: bytea},
		offsets:  watermillsql.DefaultPostgreSQLOffsetsAdapter{},
		wake:     WakeConfig{PollInterval: never, UnhealthyInterval: never},
	}
}

// queue returns the same with watermill-sql's other schema.
func (s *wokenSQL) queue() *wokenSQL {
	q := *s
	q.schema = watermillsql.PostgreSQLQueueSchema{GeneratePayloadType: bytea, GenerateMessagesTableName: queueTable}
	q.offsets = watermillsql.PostgreSQLQueueOffsetsAdapter{DeleteOnAck: true, GenerateMessagesTableName: queueTable}
	return &q
}

// queueTable is short. The sequences of two tables with long names that differ at the end only would be given the same
// name, when both are created at once, and this schema takes no lock for that.
func queueTable(topic string) string {
	return fmt.Sprintf(`"queue_%x"`, sha256.Sum256([]byte(topic)))[:30] + `"`
}

func bytea(string) string { return "BYTEA" }

func (s *wokenSQL) publisher(t *testing.T) message.Publisher {
	t.Helper()
	publisher, err := watermillsql.NewPublisher(s.db, watermillsql.PublisherConfig{SchemaAdapter: NotifyingSchema(s.schema)}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	return publisher
}

func (s *wokenSQL) subscriber(t *testing.T, group string) *WokenSubscriber {
	t.Helper()
	subscriber, err := NewWokenSubscriber(s.db, watermillsql.SubscriberConfig{
		ConsumerGroup:  group,
		ResendInterval: 5 * time.Millisecond,
		SchemaAdapter:  s.schema,
		OffsetsAdapter: s.offsets,
	}, WokenConfig{Listener: s.listener, Wake: s.wake, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { subscriber.Close() }) // the suite forgets some
	return subscriber
}

func (s *wokenSQL) pubSub(t *testing.T) (message.Publisher, message.Subscriber) {
	return s.publisher(t), s.subscriber(t, "")
}

func (s *wokenSQL) groupPubSub(t *testing.T, group string) (message.Publisher, message.Subscriber) {
	return s.publisher(t), s.subscriber(t, group)
}

// Watermill's universal suite, with polls so rare that every message depends on its notification. All of it shares one
// database and one listener, so that channels come and go, and transactions hide each other's messages.
func TestWokenSubscriberPassesTheUniversalSuite(t *testing.T) {
	t.Parallel()
	// Watermill-sql's subscribers of one group wait for their turn inside a transaction, and a test that has subscribed
	// half of its fifty needs connections for the others before it reads anything. So there must be enough for all the
	// tests that run at once: where there are not, they wait for each other until one of them fails.
	const connections = 600
	server := pgtest.Private(t, pgtest.Setting("max_connections", strconv.Itoa(connections+20)))
	s := wokenSQLOn(t, pgtest.Connect(t, server.URL(), func(c *pgxpool.Config) { c.MaxConns = connections }))
	features := tests.Features{ConsumerGroups: true, ExactlyOnceDelivery: true, GuaranteedOrder: true, Persistent: true}

	t.Run("exactly once", func(t *testing.T) {
		t.Parallel()
		tests.TestPubSub(t, features, s.pubSub, s.groupPubSub)
	})
	// Leaves nothing out: the suite skips two tests of losses where delivery is exactly once.
	t.Run("at least once", func(t *testing.T) {
		t.Parallel()
		features := features
		features.ExactlyOnceDelivery = false
		tests.TestPubSub(t, features, s.pubSub, s.groupPubSub)
	})
	// Watermill-sql's queue has no groups, and forgets what is not acknowledged when it is closed amid a batch.
	t.Run("queue", func(t *testing.T) {
		t.Parallel()
		features := features
		features.ConsumerGroups = false
		features.ForceShort = true
		tests.TestPubSub(t, features, s.queue().pubSub, nil)
	})
	// Ten suites at once (STRESS_TEST_COUNT says how many).
	t.Run("stress", func(t *testing.T) {
		t.Parallel()
		features := features
		features.ExactlyOnceDelivery = false
		features.ForceShort = true
		tests.TestPubSubStressTest(t, features, s.pubSub, s.groupPubSub)
	})
}
