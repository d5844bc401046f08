// Package commit writes what the engine decides. All operations of a process queue up in front of one committer, which
// takes whatever is there, writes it as a few statements in one pipelined transaction, and answers each operation. A lone
// operation is written at once; under load hundreds share one commit.
//
// It has a connection of its own, so that user code which has emptied the pool cannot stop it, and it waits for nobody:
// what it writes belongs to runs of this worker, what others may hold is skipped, and a lock is waited for briefly.
package commit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

var (
	// ErrClosed answers operations that the committer did not carry out because it is closed.
	ErrClosed = errors.New("committer is closed")
	// ErrOutcomeUnknown answers operations that were under way when the connection was lost and must not be repeated.
	ErrOutcomeUnknown = errors.New("connection lost before the database answered")
	// ErrFenced answers operations of a run that this worker does not own any more; nothing was written.
	ErrFenced = errors.New("the run has another owner")
	// ErrLocked answers operations on rows that somebody else's transaction holds.
	ErrLocked = errors.New("held by another transaction")
)

// maxBatch bounds a flush, so that the first operation of a burst does not wait for all of it.
const maxBatch = 2000

// maxLosses is with how many connections an operation may go down before it is given up as the likely cause.
const maxLosses = 5

// maxConflictRetries is how often an operation that lost a deadlock alone is repeated.
const maxConflictRetries = 3

// Config configures a Committer.
type Config struct {
	Store   *store.Store
	Connect func(context.Context) (*pgx.Conn, error)
	// LockTimeout is how long one statement may wait for a lock. Default 1 s.
	LockTimeout time.Duration
	// FlushTimeout is after how long without an answer a connection counts as lost. Default 10 s.
	FlushTimeout time.Duration
	// Lazy: connect when there is something to do, not at Open.
	Lazy bool
	// Sent is told, after the commit, of the messages a flush put into mailboxes. It must not block.
	Sent   func([]store.Sent)
	Logger *slog.Logger
}

// Committer works from Open to Close.
type Committer struct {
	config Config

	mu     sync.Mutex
	queue  []*operation
	closed bool
	wake   chan struct{} // holds one token when there is something to do

	hardStop context.CancelFunc
	stopped  chan struct{}
	refusals sync.WaitGroup

	conn *pgx.Conn // the loop's

	flushes, operations int64 // guarded by mu
}

// New returns a committer that Open sets to work.
func New(config Config) *Committer {
	config.LockTimeout = cmp.Or(config.LockTimeout, time.Second)
	config.FlushTimeout = cmp.Or(config.FlushTimeout, 10*time.Second)
	return &Committer{config: config, wake: make(chan struct{}, 1), stopped: make(chan struct{})}
}

// Open connects, unless it is lazy, and begins to work. It returns an error if that first connection fails.
func (c *Committer) Open(ctx context.Context) error {
	if !c.config.Lazy {
		conn, err := c.config.Connect(ctx)
		if err != nil {
			return fmt.Errorf("connect the committer: %w", err)
		}
		c.conn = conn
	}
	loopCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	c.hardStop = cancel
	go c.loop(loopCtx)
	return nil
}

// Close carries out what is queued and ends. When ctx ends first, what is left is answered with ErrClosed. Operations that
// come after Close are answered with ErrClosed.
func (c *Committer) Close(ctx context.Context) {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.signal()
	select {
	case <-c.stopped:
	case <-ctx.Done():
		c.hardStop()
		<-c.stopped
	}
	c.hardStop()
	c.refusals.Wait()
}

// Stats returns how many transactions and operations there have been.
func (c *Committer) Stats() (flushes, operations int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flushes, c.operations
}

// Stream ties the operations of one run together: when one has failed, later ones are not attempted.
type Stream struct {
	failed error // the committer's
}

// operation is one queued request. answer is called once, from the committer's goroutine, and must not block.
type operation struct {
	kind      kind
	stream    *Stream
	ask       any
	custom    func(*pgx.Batch)
	repeat    bool // may be repeated although a first attempt may have been committed
	answer    func(result any, err error)
	result    any
	err       error
	conflicts int // lost deadlocks
	losses    int // lost connections
}

func (c *Committer) submit(op *operation) {
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		// Not from here: the caller may hold a lock that the answer needs.
		c.refusals.Go(func() { op.answer(nil, ErrClosed) })
		return
	}
	c.queue = append(c.queue, op)
	c.mu.Unlock()
	c.signal()
}

func (c *Committer) signal() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *Committer) take() (ops []*operation, closed bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.queue) <= maxBatch {
		ops, c.queue = c.queue, nil
	} else {
		ops = append(ops, c.queue[:maxBatch]...)
		c.queue = append([]*operation(nil), c.queue[maxBatch:]...)
	}
	if len(ops) > 0 {
		c.flushes++
		c.operations += int64(len(ops))
	}
	return ops, c.closed
}

func (c *Committer) loop(ctx context.Context) {
	defer close(c.stopped)
	defer c.disconnect()
	for {
		ops, closed := c.take()
		if len(ops) == 0 {
			if closed {
				return
			}
			select {
			case <-c.wake:
			case <-ctx.Done():
				c.refuse()
				return
			}
			continue
		}
		c.carryOut(ctx, ops)
		if ctx.Err() != nil {
			c.refuse()
			return
		}
	}
}

func (c *Committer) refuse() {
	c.mu.Lock()
	ops := c.queue
	c.queue, c.closed = nil, true
	c.mu.Unlock()
	for _, op := range ops {
		op.answer(nil, ErrClosed)
	}
}

func (c *Committer) disconnect() {
	if c.conn != nil {
		dial.HangUp(c.conn)
		c.conn = nil
	}
}

// carryOut answers every one of ops.
func (c *Committer) carryOut(ctx context.Context, ops []*operation) {
	ops = c.refuseFailedStreams(ops)
	if len(ops) == 0 {
		return
	}
	if c.conn == nil {
		if err := c.connect(ctx); err != nil {
			for _, op := range ops {
				op.err = fmt.Errorf("%w: %w", ErrClosed, err)
				c.settle(op)
			}
			return
		}
	}
	err := c.flush(ctx, ops)
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		for _, op := range ops {
			c.settle(op)
		}
	case c.conn.IsClosed() || !errors.As(err, &pgErr):
		c.carryOutAgain(ctx, ops, err)
	case len(ops) > 1:
		// One of them cannot be carried out. Halving finds it, and the rest is done.
		half := len(ops) / 2
		c.carryOut(ctx, ops[:half])
		c.carryOut(ctx, ops[half:])
	case (pgErr.Code == "40P01" || pgErr.Code == "40001") && ops[0].conflicts < maxConflictRetries:
		ops[0].conflicts++
		c.carryOut(ctx, ops)
	case (ops[0].kind == kindAppend || ops[0].kind == kindFail) && store.IsUniqueViolation(err):
		c.answerRecorded(ctx, ops[0], err)
	case pgErr.Code == "55P03":
		ops[0].err = fmt.Errorf("%w: %w", ErrLocked, err)
		c.settle(ops[0])
	default:
		ops[0].err = err
		c.settle(ops[0])
	}
}

// answerRecorded answers an append whose position is taken: by itself, before a reply was lost, or by an earlier owner.
func (c *Committer) answerRecorded(ctx context.Context, op *operation, conflict error) {
	ctx, cancel := context.WithTimeout(ctx, c.config.FlushTimeout)
	defer cancel()
	own, err := c.config.Store.OwnRecords(ctx, c.conn, records([]*operation{op}))
	if err != nil || len(own) == 0 {
		op.err = errors.Join(conflict, err)
	}
	c.settle(op)
}

func (c *Committer) refuseFailedStreams(ops []*operation) []*operation {
	var rest []*operation
	for _, op := range ops {
		if op.stream != nil && op.stream.failed != nil {
			op.answer(nil, op.stream.failed)
			continue
		}
		rest = append(rest, op)
	}
	return rest
}

// settle answers op with what the flush stored in it.
func (c *Committer) settle(op *operation) {
	if op.err != nil && op.stream != nil {
		op.stream.failed = op.err
	}
	op.answer(op.result, op.err)
}

// carryOutAgain follows a lost connection. What was not sent, and what recognises its own traces, is repeated: one by one
// if it was lost before, in case one of the operations is what ends connections.
func (c *Committer) carryOutAgain(ctx context.Context, ops []*operation, cause error) {
	unsent := pgconn.SafeToRetry(cause)
	c.config.Logger.WarnContext(ctx, "committer connection lost, reconnecting", "error", cause)
	c.disconnect()
	var again []*operation
	suspicious := false
	for _, op := range ops {
		op.losses++
		if (unsent || op.repeat) && op.losses <= maxLosses {
			again = append(again, op)
			suspicious = suspicious || op.losses > 1
			continue
		}
		op.err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause)
		c.settle(op)
	}
	if !suspicious {
		c.carryOut(ctx, again)
		return
	}
	for i := range again {
		c.carryOut(ctx, again[i:i+1])
	}
}

// connect tries until it succeeds or ctx ends: what is queued has nowhere else to go.
func (c *Committer) connect(ctx context.Context) error {
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		connectCtx, cancel := context.WithTimeout(ctx, c.config.FlushTimeout)
		conn, err := c.config.Connect(connectCtx)
		cancel()
		if err == nil {
			c.conn = conn
			return nil
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return errors.Join(ctx.Err(), err)
		}
	}
}

// flush writes ops in one transaction and stores their results in them.
func (c *Committer) flush(ctx context.Context, ops []*operation) error {
	ctx, cancel := context.WithTimeout(ctx, c.config.FlushTimeout)
	defer cancel()
	for _, op := range ops {
		op.result, op.err = nil, nil
	}
	batch := &pgx.Batch{} // without BEGIN: a pipeline up to its one Sync is a transaction, in every exec mode
	c.config.Store.Guard(batch, c.config.LockTimeout)
	groups := group(ops)
	for _, g := range groups {
		g.queue(c.config.Store, batch)
	}
	if err := c.conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	for _, g := range groups {
		if len(g.sent) > 0 && c.config.Sent != nil {
			c.config.Sent(g.sent)
		}
		if err := g.complete(ctx, c.config.Store, c.conn); err != nil {
			return err
		}
	}
	return nil
}
