package commit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// lane is a connection and the goroutine that writes on it, one flush after the other. While it waits for the database
// another lane may write operations of other runs.
type lane struct {
	committer *Committer
	extra     bool // works under load only

	// The goroutine's own.
	conn   *pgx.Conn
	direct bool         // the connection keeps its settings
	taken  []*operation // those of the flush under way
	most   int          // operations of the next flush, at most

	idle bool          // waits for wake; guarded by the committer's mutex
	wake chan struct{} // holds a token once it is not idle any more
}

// loop carries out flushes until the committer ends.
func (l *lane) loop(ctx context.Context) {
	defer l.hangUp()
	for {
		ops, goOn := l.next()
		switch {
		case !goOn:
			return
		case ops == nil:
			l.connect(ctx)
		default:
			began, queued, count := time.Now(), ops[0].queued, len(ops)
			l.done(l.carryOut(ctx, ops))
			if flushed := l.committer.config.Flushed; flushed != nil {
				flushed(count, began.Sub(queued), time.Since(began))
			}
		}
	}
}

// needed reports whether there is something to do for a lane that is idle. The caller holds the mutex.
func (l *lane) needed() bool {
	c := l.committer
	switch {
	case c.over():
		return true
	case c.closed && l.extra && l.conn == nil:
		return false // it would not connect any more
	case c.wakes.flying+c.others.flying > 0:
		return c.wakes.worth() || c.others.worth()
	case l.extra:
		return c.wakes.free+c.others.free > 0 && c.disconnected && l.conn != nil
	default:
		return c.wakes.free+c.others.free > 0
	}
}

// over reports whether nothing is left to do. What another lane has under way may come back, if that lane loses its connection. The
// caller holds the mutex.
func (c *Committer) over() bool {
	return c.stopped || c.closed && len(c.queue)+c.wakes.flying+c.others.flying == 0
}

// next waits for the operations of the next flush. Without any the lane is to connect first.
func (l *lane) next() (ops []*operation, goOn bool) {
	c := l.committer
	c.mu.Lock()
	defer c.mu.Unlock()
	for !l.needed() {
		l.idle = true
		c.mu.Unlock()
		<-l.wake
		c.mu.Lock()
	}
	if c.over() {
		c.rouse() // the others end, too
		return nil, false
	}
	if l.conn == nil {
		c.disconnected = c.disconnected || !l.extra
		return nil, true
	}
	c.disconnected = c.disconnected && l.extra
	return l.take(), true
}

// take removes from the queue what the next flush writes. The caller holds the mutex.
func (l *lane) take() []*operation {
	c := l.committer
	ops := make([]*operation, 0, min(len(c.queue), l.most))
	rest := c.queue[:0]
	wakes, others := c.wakes.worth(), c.others.worth()
	bytes := 0
	for i, op := range c.queue {
		// What has lost connections before may be what ends them, and goes alone.
		alone := op.losses > 1 || len(ops) > 0 && ops[0].losses > 1
		if full := len(ops) == l.most || len(ops) > 0 && (alone || bytes+op.bytes > maxFlushBytes); full {
			rest = append(rest, c.queue[i:]...)
			break
		}
		if _, busy := c.busy[op.run]; busy || op.wakes() && !wakes || !op.wakes() && !others {
			rest = append(rest, op)
			continue
		}
		ops = append(ops, op)
		bytes += op.bytes
	}
	clear(c.queue[len(rest):])
	c.queue = rest
	if wakes, others := apart(ops, c.idleLane()); len(others) > 0 {
		ops, c.queue = wakes, slices.Concat(others, c.queue)
	}
	for _, op := range ops {
		c.busy[op.run] = struct{}{}
		c.classOf(op).flying++
	}
	l.taken = slices.Clone(ops)
	c.flushes++
	c.operations += int64(len(ops))
	c.recount()
	c.rouse()
	return ops
}

// idleLane reports whether another lane is ready to take what this one leaves. The caller holds the mutex.
func (c *Committer) idleLane() bool {
	return slices.ContainsFunc(c.lanes, func(l *lane) bool { return l.idle && l.conn != nil })
}

// done ends a flush. What is unfinished goes back to where it was, in front of what came later.
func (l *lane) done(unfinished []*operation) {
	c := l.committer
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, op := range l.taken {
		delete(c.busy, op.run)
		c.classOf(op).flying--
	}
	if l.conn != nil {
		l.most = min(2*l.most, maxBatch)
	}
	l.taken = nil
	if len(unfinished) > 0 {
		c.queue = slices.Concat(unfinished, c.queue)
	}
	c.recount()
	c.rouse()
}

// dial connects, and makes the settings that a flush needs if they last.
func (l *lane) dial(ctx context.Context) error {
	c := l.committer
	ctx, cancel := context.WithTimeout(ctx, c.config.FlushTimeout)
	defer cancel()
	conn, err := c.config.Connect(ctx)
	if err != nil {
		return err
	}
	direct, err := c.config.Store.GuardSession(ctx, conn, c.config.LockTimeout)
	if err != nil {
		dial.HangUp(conn)
		return err
	}
	l.conn, l.direct = conn, direct
	return nil
}

// connect tries until it succeeds or ctx ends: what is queued has nowhere else to go. An extra lane leaves it to the first
// one if it does not succeed.
func (l *lane) connect(ctx context.Context) {
	if l.extra {
		ctx = l.committer.closing
	}
	for wait := 10 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		err := l.dial(ctx)
		if err == nil {
			return
		}
		if l.extra && ctx.Err() == nil {
			l.committer.config.Logger.WarnContext(ctx, "no second connection for the committer: it writes more slowly", "error", err)
			wait = time.Second
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
		if l.extra {
			return
		}
	}
}

func (l *lane) hangUp() {
	if l.conn != nil {
		dial.HangUp(l.conn)
		l.conn = nil
	}
}

// carryOut answers every one of ops, except those that it returns: the connection was lost, and another flush has to carry
// them out.
func (l *lane) carryOut(ctx context.Context, ops []*operation) (unfinished []*operation) {
	ops = refuseFailedStreams(ops)
	if len(ops) == 0 || l.conn == nil {
		return ops
	}
	if onlyWakes(ops) {
		return l.carryOutWakes(ctx, ops)
	}
	return l.answered(ctx, ops, l.flush(ctx, ops))
}

// answered is what follows a flush that ended with err.
func (l *lane) answered(ctx context.Context, ops []*operation, err error) (unfinished []*operation) {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		for _, op := range ops {
			op.settle()
		}
	case l.conn.IsClosed() || !errors.As(err, &pgErr):
		return l.lose(ctx, ops, err)
	case len(ops) > 1:
		// One of them cannot be carried out. Halving finds it, and the rest is done.
		half := len(ops) / 2
		return slices.Concat(l.carryOut(ctx, ops[:half]), l.carryOut(ctx, ops[half:]))
	case (pgErr.Code == "40P01" || pgErr.Code == "40001") && ops[0].conflicts < maxConflictRetries:
		ops[0].conflicts++
		return l.carryOut(ctx, ops)
	case (ops[0].kind == kindAppend || ops[0].kind == kindFail) && store.IsUniqueViolation(err):
		l.answerRecorded(ctx, ops[0], err)
	case pgErr.Code == "55P03":
		ops[0].err = fmt.Errorf("%w: %w", ErrLocked, err)
		ops[0].settle()
	default:
		ops[0].err = err
		ops[0].settle()
	}
	return nil
}

// answerRecorded answers an append whose position is taken: by itself, before a reply was lost, or by an earlier owner.
func (l *lane) answerRecorded(ctx context.Context, op *operation, conflict error) {
	ctx, cancel := context.WithTimeout(ctx, l.committer.config.FlushTimeout)
	defer cancel()
	own, err := l.committer.config.Store.OwnRecords(ctx, l.conn, records([]*operation{op}))
	if err != nil || len(own) == 0 {
		op.err = errors.Join(conflict, err)
	}
	op.settle()
}

func refuseFailedStreams(ops []*operation) []*operation {
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
func (op *operation) settle() {
	op.tell()
	op.confirm(nil)
}

func (op *operation) tell() {
	if op.err != nil && op.stream != nil {
		op.stream.failed = op.err
	}
	op.answer(op.result, op.err)
}

// confirm says whether what was told without an error was committed.
func (op *operation) confirm(err error) {
	if op.committed != nil && op.err == nil {
		op.committed(err)
	}
}

// lose follows a lost connection. What was not sent, and what recognises its own traces, is returned to be repeated.
func (l *lane) lose(ctx context.Context, ops []*operation, cause error) (again []*operation) {
	unsent := pgconn.SafeToRetry(cause)
	l.committer.config.Logger.WarnContext(ctx, "committer connection lost, reconnecting", "error", cause)
	l.hangUp()
	if errors.Is(cause, context.DeadlineExceeded) {
		l.most = max(len(ops)/4, 1) // more than gets through in time, perhaps: answers may be long
	}
	for _, op := range ops {
		op.losses++
		if (unsent || op.repeat) && op.losses <= maxLosses {
			again = append(again, op)
			continue
		}
		op.err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause)
		op.settle()
	}
	return again
}

// queue adds the statements of ops to a batch.
func (l *lane) queue(ops []*operation, batch *pgx.Batch) []*opGroup {
	config := l.committer.config
	if !l.direct {
		config.Store.Guard(batch, config.LockTimeout)
	}
	groups := group(ops)
	for _, g := range groups {
		g.queue(config.Store, batch)
	}
	return groups
}

// flush writes ops in one transaction and stores their results in them.
func (l *lane) flush(ctx context.Context, ops []*operation) error {
	config := l.committer.config
	ctx, cancel := context.WithTimeout(ctx, config.FlushTimeout)
	defer cancel()
	for _, op := range ops {
		op.result, op.err = nil, nil
	}
	batch := &pgx.Batch{} // without BEGIN: a pipeline up to its one Sync is a transaction, in every exec mode
	groups := l.queue(ops, batch)
	if err := l.conn.SendBatch(ctx, batch).Close(); err != nil {
		return err
	}
	for _, g := range groups {
		if len(g.sent) > 0 && config.Sent != nil {
			config.Sent(g.sent)
		}
		if len(g.events) > 0 && config.SentEvents != nil {
			config.SentEvents(g.events)
		}
		if err := g.complete(ctx, config.Store, l.conn); err != nil {
			return err
		}
	}
	return nil
}
