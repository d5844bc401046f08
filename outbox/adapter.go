package outbox

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/clamp"
)

const (
	// claimTimeout bounds a claim. A claim whose answer was lost is found again by the next one.
	claimTimeout = 10 * time.Second

	errorBackoffFirst, errorBackoffMost = 100 * time.Millisecond, 5 * time.Second
)

// errDraining ends the loop of watermill-sql's subscriber without a claim.
var errDraining = errors.New("the relay is shutting down")

// consumer is one watermill-sql subscriber and everything that subscriber asks for: its Beginner, SchemaAdapter,
// OffsetsAdapter and BackoffManager. There is one of each a consumer, because watermill-sql does not tell an adapter who
// is asking. The subscriber's loop is: BeginTx, SelectQuery, QueryContext (the claim), UnmarshalMessage, hand over the
// batch as one message, wait for its ack, AckMessageQuery, ExecContext (the settlement), HandleError.
type consumer struct {
	relay      *Relay
	owner      string
	claiming   string // what it does, for a person
	subscriber *watermillsql.Subscriber
	parked     chan struct{} // closed when the loop has seen that the relay is draining and holds no batch

	// Of the loop alone.
	isParked bool
	errors   int // in a row
	// outage counts batches in a row of which nothing could be published; consume writes it before the ack that lets the
	// loop read it.
	outage int
}

var (
	_ watermillsql.Beginner       = (*consumer)(nil)
	_ watermillsql.SchemaAdapter  = (*consumer)(nil)
	_ watermillsql.OffsetsAdapter = settler{}
	_ watermillsql.BackoffManager = (*consumer)(nil)
	_ watermillsql.Tx             = (*claim)(nil)
	_ watermillsql.Rows           = (*claimedRows)(nil)
)

func newConsumer(r *Relay, owner string) (*consumer, error) {
	c := &consumer{relay: r, owner: owner, claiming: "take events, as " + owner, parked: make(chan struct{})}
	// No deadline for the ack: a batch takes as long as its events, each of which has its own limit, and a batch that
	// watermill-sql gave up would be published again although it was published.
	var noDeadline time.Duration
	logger := watermill.NewSlogLoggerWithLevelMapping(r.config.Logger, map[slog.Level]slog.Level{
		slog.LevelInfo:  slog.LevelDebug,
		slog.LevelDebug: watermill.LevelTrace,
	})
	subscriber, err := watermillsql.NewSubscriber(c, watermillsql.SubscriberConfig{
		AckDeadline:    &noDeadline,
		BackoffManager: c,
		SchemaAdapter:  c,
		OffsetsAdapter: settler{c},
	}, withoutArgs{logger})
	c.subscriber = subscriber
	return c, err
}

// withoutArgs leaves out the arguments of the statements that watermill-sql traces: the errors of the publisher, among others.
type withoutArgs struct{ watermill.LoggerAdapter }

func (l withoutArgs) Trace(text string, fields watermill.LogFields) {
	shown := maps.Clone(fields)
	delete(shown, "query_args")
	l.LoggerAdapter.Trace(text, shown)
}

func (l withoutArgs) With(fields watermill.LogFields) watermill.LoggerAdapter {
	return withoutArgs{l.LoggerAdapter.With(fields)}
}

// consume publishes what the subscriber hands over. It always acknowledges: what became of each event is in the batch.
func (c *consumer) consume(batches <-chan *message.Message) {
	for msg := range batches {
		tx, _ := watermillsql.TxFromContext(msg.Context())
		cl, ok := tx.(*claim)
		if !ok {
			panic("outbox: watermill-sql handed over a message without its transaction")
		}
		b := cl.batch
		c.relay.publish(b)
		switch b.verdict() {
		case batchWorked:
			c.outage = 0
		case batchFailedAltogether:
			c.outage++
		case batchUndecided:
		}
		msg.Ack()
	}
}

// BeginTx begins nothing: each statement of a claim commits by itself, and no connection is held while events are being
// published. It waits until the publisher has a lane free, so that a publisher that hangs does not make the relay take
// events that others could publish.
func (c *consumer) BeginTx(ctx context.Context, _ *sql.TxOptions) (watermillsql.Tx, error) {
	select {
	case <-c.relay.draining:
		return nil, errDraining
	default:
	}
	select {
	case c.relay.lanes <- struct{}{}:
		<-c.relay.lanes
		return &claim{consumer: c}, nil
	case <-c.relay.draining:
		return nil, errDraining
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// ExecContext implements watermillsql.Beginner. The subscriber calls it to create tables only, which migrations do here.
func (c *consumer) ExecContext(context.Context, string, ...any) (watermillsql.Result, error) {
	return nil, errors.ErrUnsupported
}

// QueryContext implements watermillsql.Beginner, see ExecContext.
func (c *consumer) QueryContext(context.Context, string, ...any) (watermillsql.Rows, error) {
	return nil, errors.ErrUnsupported
}

// SelectQuery implements watermillsql.SchemaAdapter.
func (c *consumer) SelectQuery(watermillsql.SelectQueryParams) (watermillsql.Query, error) {
	return watermillsql.Query{
		Query: c.relay.queries.Get("ClaimBatch"),
		Args:  []any{c.owner, c.relay.config.BatchSize, maxBatchBytes},
	}, nil
}

// UnmarshalMessage implements watermillsql.SchemaAdapter. The one row is a whole batch, and so is the one message: it
// carries nothing, its receiver takes the batch from the transaction in its context.
func (c *consumer) UnmarshalMessage(params watermillsql.UnmarshalMessageParams) (watermillsql.Row, error) {
	var b *batch
	if err := params.Row.Scan(&b); err != nil {
		return watermillsql.Row{}, err
	}
	return watermillsql.Row{
		Offset:    b.token, // at least 1; the subscriber takes 0 for nothing acknowledged
		Msg:       message.NewMessage(fmt.Sprintf("slot %d token %d", b.slot, b.token), nil),
		ExtraData: map[string]any{extraBatch: b},
	}, nil
}

const extraBatch = "batch"

// SubscribeIsolationLevel implements watermillsql.SchemaAdapter, see BeginTx.
func (c *consumer) SubscribeIsolationLevel() sql.IsolationLevel { return sql.LevelReadCommitted }

// InsertQuery implements watermillsql.SchemaAdapter: events are written by a Writer.
func (c *consumer) InsertQuery(watermillsql.InsertQueryParams) (watermillsql.Query, error) {
	return watermillsql.Query{}, errors.ErrUnsupported
}

// SchemaInitializingQueries implements watermillsql.SchemaAdapter: migrations create the tables.
func (c *consumer) SchemaInitializingQueries(watermillsql.SchemaInitializingQueriesParams) ([]watermillsql.Query, error) {
	return nil, nil
}

// settler is a consumer's OffsetsAdapter. There are no offsets: an event has one receiver, the relay, and is deleted once
// delivered.
type settler struct{ consumer *consumer }

// AckMessageQuery implements watermillsql.OffsetsAdapter.
func (s settler) AckMessageQuery(params watermillsql.AckMessageQueryParams) (watermillsql.Query, error) {
	r := s.consumer.relay
	b, ok := params.LastRow.ExtraData[extraBatch].(*batch)
	if !ok {
		return watermillsql.Query{}, errors.New("watermill-sql acknowledged a row that is not ours")
	}
	return watermillsql.Query{Query: r.queries.Get("Settle"), Args: r.settlement(b)}, nil
}

// ConsumedMessageQuery implements watermillsql.OffsetsAdapter.
func (settler) ConsumedMessageQuery(watermillsql.ConsumedMessageQueryParams) (watermillsql.Query, error) {
	return watermillsql.Query{}, nil
}

// NextOffsetQuery implements watermillsql.OffsetsAdapter. Only schemas that ship with watermill-sql ask for it.
func (settler) NextOffsetQuery(watermillsql.NextOffsetQueryParams) (watermillsql.Query, error) {
	return watermillsql.Query{}, errors.ErrUnsupported
}

// SchemaInitializingQueries implements watermillsql.OffsetsAdapter.
func (settler) SchemaInitializingQueries(watermillsql.OffsetsSchemaInitializingQueriesParams) ([]watermillsql.Query, error) {
	return nil, nil
}

// BeforeSubscribingQueries implements watermillsql.OffsetsAdapter.
func (settler) BeforeSubscribingQueries(watermillsql.BeforeSubscribingQueriesParams) ([]watermillsql.Query, error) {
	return nil, nil
}

// HandleError implements watermillsql.BackoffManager: it is where a consumer waits, because here, unlike in a sleep of
// the subscriber, both a notification and Shutdown end the waiting.
func (c *consumer) HandleError(_ watermill.LoggerAdapter, noMsg bool, err error) time.Duration {
	switch {
	case errors.Is(err, errDraining):
	case err != nil:
		c.errors++
		wait := backoff(c.errors, errorBackoffFirst, errorBackoffMost)
		c.relay.troubles.failed(context.Background(), c.claiming, err)
		c.wait(wait, nil)
	case noMsg:
		c.errors = 0
		c.wait(0, c.relay.alarm.woken)
	case c.outage > 0:
		c.errors = 0
		// Nothing gets through. Going on at full speed would spend an attempt of every waiting event.
		c.wait(backoff(c.outage, errorBackoffFirst, errorBackoffMost), nil)
	default:
		c.errors = 0
	}
	select {
	case <-c.relay.draining:
		if !c.isParked {
			c.isParked = true
			close(c.parked)
		}
		return time.Hour // Close ends it
	default:
		return 0
	}
}

// wait waits for d (0: for ever) or a wake, whichever is first, but not beyond the beginning of a shutdown.
func (c *consumer) wait(d time.Duration, wake <-chan struct{}) {
	var elapsed <-chan time.Time
	if d > 0 {
		timer := time.NewTimer(d)
		defer timer.Stop()
		elapsed = timer.C
	}
	select {
	case <-elapsed:
	case <-wake:
	case <-c.relay.draining:
	}
}

// backoff returns how long to wait after the n-th failure in a row: first, doubling, at most most, of which half is random
// so that those who failed together do not come back together.
func backoff(n int, first, most time.Duration) time.Duration {
	d := first
	for ; n > 1 && d < most; n-- {
		d *= 2
	}
	d = min(d, most)
	return d/2 + rand.N(d/2+1)
}

// claim stands in for a transaction: what watermill-sql queries and executes in it is the claim and the settlement of one
// batch.
type claim struct {
	consumer *consumer
	batch    *batch
	sent     int // settlements of it
}

// QueryContext takes a slot and, with query, a batch of it. It reads everything before it returns, since
// watermillsql.Rows has no way to report an error.
func (cl *claim) QueryContext(ctx context.Context, query string, args ...any) (watermillsql.Rows, error) {
	c := cl.consumer
	r := c.relay
	// Detached: the server may carry out a claim that is cancelled, and its events would be nobody's until the lease ends.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), claimTimeout)
	defer cancel()

	var b *batch
	var more bool
	var dueIn *float64
	inWork := r.keeper.slots()
	asked := time.Now() // the lease begins later than this
	err := r.onPool(ctx, claimTimeout, work{guard: r.queries.Get("GuardClaim"), queue: func(queue *pgx.Batch) {
		queue.Queue(r.queries.Get("TakeSlot"), c.owner, r.config.Lease.Milliseconds(), inWork)
		queue.Queue(query, args...).Query(func(rows pgx.Rows) (err error) {
			b, err = scanBatch(rows)
			return err
		})
		queue.Queue(r.queries.Get("Outlook"), c.owner, inWork).QueryRow(func(row pgx.Row) error { return row.Scan(&more, &dueIn) })
	}})
	if err != nil {
		return nil, fmt.Errorf("claim a batch: %w", err)
	}
	r.troubles.worked(ctx, c.claiming)
	r.alarm.found(b != nil)
	if more {
		r.alarm.wake()
	}
	if dueIn != nil {
		r.alarm.wakeAt(time.Now().Add(clamp.Millis(*dueIn)))
	}
	if b != nil {
		b.owner, b.leaseEnds = c.owner, asked.Add(r.config.Lease)
		cl.batch = b
		r.keeper.hold(b)
	}
	return &claimedRows{batch: b}, nil
}

// ExecContext settles the batch.
func (cl *claim) ExecContext(ctx context.Context, query string, args ...any) (watermillsql.Result, error) {
	cl.settle(ctx, query, args)
	return rowsAffected(1), nil
}

// Commit ends the work on the batch. There is no transaction, see BeginTx.
func (cl *claim) Commit() error { return cl.Rollback() }

// Rollback is the same: an unsettled batch is anybody's when its lease ends.
func (cl *claim) Rollback() error {
	if cl.batch != nil {
		cl.consumer.relay.keeper.letGo(cl.batch)
	}
	return nil
}

type rowsAffected int64

// RowsAffected implements watermillsql.Result.
func (n rowsAffected) RowsAffected() (int64, error) { return int64(n), nil }

// claimedRows is a batch as the only row of a result, or no row.
type claimedRows struct{ batch *batch }

// Next implements watermillsql.Rows.
func (r *claimedRows) Next() bool { return r.batch != nil }

// Scan implements watermillsql.Rows.
func (r *claimedRows) Scan(dest ...any) error {
	target, ok := dest[0].(**batch)
	if !ok {
		return fmt.Errorf("a claimed batch cannot be read into %T", dest[0])
	}
	*target = r.batch
	r.batch = nil
	return nil
}

// Close implements watermillsql.Rows.
func (r *claimedRows) Close() error { return nil }
