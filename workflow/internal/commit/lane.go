package commit

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
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
	tier   int          // that of the last flush

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
	case c.flying() > 0:
		return c.wakes.worth() || c.others.worth() || c.wides.worth() || c.hints.worth()
	case l.extra:
		return c.anyFree() && c.disconnected && l.conn != nil
	default:
		return c.anyFree()
	}
}

// over reports whether nothing is left to do. What another lane has under way may come back, if that lane loses its connection. The
// caller holds the mutex.
func (c *Committer) over() bool {
	return c.stopped || c.closed && len(c.queue)+c.flying() == 0
}

// anyFree reports whether there is anything that a lane may take. The caller holds the mutex.
func (c *Committer) anyFree() bool { return c.wakes.free+c.others.free+c.wides.free+c.hints.free > 0 }

// next waits for the operations of the next flush. Without any the lane is to connect first.
func (l *lane) next() (ops []*operation, goOn bool) {
	c := l.committer
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for !l.needed() {
			l.rest()
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
		if ops := l.take(); len(ops) > 0 {
			return ops, true
		}
		l.rest() // what there is waits for a flush that is under way
	}
}

// rest waits until the lane is roused. The caller holds the mutex.
func (l *lane) rest() {
	c := l.committer
	l.idle = true
	c.mu.Unlock()
	<-l.wake
	c.mu.Lock()
}

// take removes from the queue what the next flush writes. The caller holds the mutex.
func (l *lane) take() []*operation {
	c := l.committer
	var ops []*operation
	for range tiers { // in turn
		if l.tier = (l.tier + 1) % tiers; c.ready[l.tier] == 0 {
			continue
		}
		if ops = l.choose(l.tier); len(ops) > 0 {
			break
		}
	}
	if wakes, others := apart(ops, c.idleLane()); len(others) > 0 {
		ops, c.queue = wakes, slices.Concat(others, c.queue)
	}
	for _, op := range ops {
		if !op.aside() {
			c.busy[op.run] = struct{}{}
		}
		c.classOf(op).flying++
	}
	l.taken = slices.Clone(ops)
	c.flushes++
	c.operations += int64(len(ops))
	c.recount()
	c.rouse()
	return ops
}

// choose removes from the queue what shares the next flush, of one tier. The caller holds the mutex.
func (l *lane) choose(tier int) []*operation {
	switch tier {
	case healthy:
	case wide:
		return l.committer.chooseWide()
	default:
		return l.chooseSuspects(tier)
	}
	c := l.committer
	wakes, others := c.wakes.worth(), c.others.worth()
	if ops := l.chooseHealthy(func(op *operation) bool {
		return wakes && c.classOf(op) == &c.wakes || others && c.classOf(op) == &c.others
	}); len(ops) > 0 || !c.hints.worth() {
		return ops
	}
	return l.chooseHealthy(func(op *operation) bool { return op.hinted })
}

// chooseHealthy removes from the queue what shares the next flush, of the classes that may. The caller holds the mutex.
func (l *lane) chooseHealthy(may func(*operation) bool) []*operation {
	c := l.committer
	now := time.Now()
	ops := make([]*operation, 0, min(len(c.queue), l.most))
	rest := c.queue[:0]
	bytes := 0
	passed := map[string]struct{}{} // runs of which an earlier operation stays
	for i, op := range c.queue {
		if full := len(ops) == l.most || len(ops) > 0 && bytes+op.bytes > maxFlushBytes; full {
			rest = append(rest, c.queue[i:]...)
			break
		}
		_, busy := c.busy[op.run]
		_, waits := passed[op.run]
		if busy || waits || op.tier() != healthy || c.caution.due(op).After(now) {
			rest = append(rest, op)
			if op.run != "" {
				passed[op.run] = struct{}{}
			}
			continue
		}
		if !may(op) {
			rest = append(rest, op)
			continue
		}
		ops = append(ops, op)
		bytes += op.bytes
	}
	clear(c.queue[len(rest):])
	c.queue = rest
	return ops
}

// chooseSuspects takes suspects of one kind, those first whose last attempt is longest ago: one that is refused again and again keeps no
// other from being tried. The caller holds the mutex.
func (l *lane) chooseSuspects(tier int) []*operation {
	c := l.committer
	now := time.Now()
	worth := map[*class]bool{&c.wakes: c.wakes.worth(), &c.others: c.others.worth(), &c.hints: c.hints.worth()}
	var eligible []*operation
	passed := map[string]struct{}{} // runs of which an earlier operation comes first
	for _, op := range c.queue {
		_, busy := c.busy[op.run]
		_, waits := passed[op.run]
		if op.run != "" {
			passed[op.run] = struct{}{}
		}
		if busy || waits || op.tier() != tier || c.caution.due(op).After(now) || !worth[c.classOf(op)] {
			continue
		}
		eligible = append(eligible, op)
	}
	if len(eligible) == 0 {
		return nil
	}
	slices.SortStableFunc(eligible, func(a, b *operation) int { return a.tried.Compare(b.tried) })
	first := eligible[0]
	most := min(l.most, c.caution.kinds[first.kind].limit())
	chosen := map[*operation]bool{}
	var ops []*operation
	bytes := 0
	for _, op := range eligible {
		// What is not kept and has lost connections before goes alone: it is given up soon.
		alone := !op.kept() && op.losses > 1
		if op.kind != first.kind || len(ops) > 0 && (len(ops) == most || alone || !first.kept() && first.losses > 1 || bytes+op.bytes > maxFlushBytes) {
			continue
		}
		chosen[op] = true
		ops = append(ops, op)
		bytes += op.bytes
	}
	c.queue = slices.DeleteFunc(c.queue, func(op *operation) bool { return chosen[op] })
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
		if !op.aside() {
			delete(c.busy, op.run)
		}
		c.classOf(op).flying--
	}
	widen(unfinished)
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
		switch {
		case err == nil:
			l.committer.connecting.Succeeded(ctx)
			return
		case !l.extra && ctx.Err() == nil:
			l.committer.connecting.Failed(ctx, err)
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
	ops = l.committer.refuse(ctx, ops)
	if len(ops) == 0 || l.conn == nil {
		return ops
	}
	ops, err := l.recall(ctx, ops)
	switch {
	case err != nil && l.conn == nil:
		return ops
	case err != nil:
		return l.answered(ctx, ops, nil, err)
	case len(ops) == 0:
		return nil
	case onlyWakes(ops):
		return l.carryOutWakes(ctx, ops)
	case ops[0].wide:
		group, err := l.publish(ctx, ops[0])
		return l.answered(ctx, ops, []*opGroup{group}, err)
	}
	groups, err := l.flush(ctx, ops)
	return l.answered(ctx, ops, groups, err)
}

// refuse answers what is not to be carried out any more, and returns the rest.
func (c *Committer) refuse(ctx context.Context, ops []*operation) []*operation {
	if !slices.ContainsFunc(ops, func(op *operation) bool { return op.stream != nil && op.stream.failed != nil || !c.holds(op) }) {
		return ops
	}
	var rest, lost []*operation
	for _, op := range ops {
		switch {
		case op.stream != nil && op.stream.failed != nil:
			op.err = op.stream.failed
			c.settle(op)
		case !c.holds(op):
			lost = append(lost, op)
		default:
			rest = append(rest, op)
		}
	}
	c.abandon(ctx, lost)
	return rest
}

// settle answers op with what the flush stored in it.
func (c *Committer) settle(op *operation) {
	c.release(op)
	if op.unheard {
		c.hint(op)
	}
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

// queue adds the statements of ops to a batch.
func (l *lane) queue(ops []*operation, batch *pgx.Batch) []*opGroup {
	l.guard(ops, batch)
	groups := group(ops)
	for _, g := range groups {
		g.queue(l.committer.config.Store, batch)
	}
	return groups
}

// guard makes the settings of the transaction that carries out ops, unless the session has them.
func (l *lane) guard(ops []*operation, batch *pgx.Batch) {
	config := l.committer.config
	lockTimeout := config.LockTimeout
	if ops[0].suspect {
		lockTimeout = min(lockTimeout, suspectLockTimeout)
	}
	if !l.direct || ops[0].suspect {
		config.Store.Guard(batch, lockTimeout)
	}
}

// begin begins a transaction, whatever the session's defaults are, unless they are ours.
func (l *lane) begin() string {
	if l.direct {
		return "begin"
	}
	return "begin isolation level read committed read write"
}

// flush writes ops in one transaction and stores their results in them.
func (l *lane) flush(ctx context.Context, ops []*operation) ([]*opGroup, error) {
	ctx, cancel := context.WithTimeout(ctx, l.committer.config.FlushTimeout)
	defer cancel()
	for _, op := range ops {
		op.result, op.err = nil, nil
	}
	batch := &pgx.Batch{} // without BEGIN: a pipeline up to its one Sync is a transaction, in every exec mode
	if !l.direct {
		batch.Queue(l.begin())
	}
	groups := l.queue(ops, batch)
	if !l.direct {
		batch.Queue("commit")
	}
	err := refusal.Public(l.conn.SendBatch(ctx, batch).Close())
	if err != nil && !l.direct {
		err = l.rollback(ctx, err)
	}
	return groups, err
}

// rollback ends a transaction that has failed because of cause, which it returns, or why it could not.
func (l *lane) rollback(ctx context.Context, cause error) error {
	if l.conn.IsClosed() {
		return cause
	}
	if _, err := l.conn.Exec(ctx, "rollback"); err != nil {
		return refusal.Public(err)
	}
	return cause
}

// conclude answers a flush that was committed. Nothing that fails from here on has it carried out again: what cannot be answered yet
// is returned, and finds what it has done.
func (l *lane) conclude(ctx context.Context, ops []*operation, groups []*opGroup) (unfinished []*operation) {
	c := l.committer
	if ops[0].suspect {
		c.cleared(ops)
	}
	for _, g := range groups {
		if len(g.sent) > 0 && c.config.Sent != nil {
			c.config.Sent(g.sent)
		}
		if len(g.events) > 0 && c.config.SentEvents != nil {
			c.config.SentEvents(g.events)
		}
	}
	var taken, fenced []*operation
	for _, op := range ops {
		switch {
		case op.kind == kindStart && op.result == nil:
			taken = append(taken, op)
		case op.sent && errors.Is(op.err, ErrFenced):
			fenced = append(fenced, op)
		case op.putOff():
			unfinished = append(unfinished, op)
		default:
			c.settle(op)
		}
	}
	if len(taken) > 0 {
		ctx, cancel := context.WithTimeout(ctx, c.config.FlushTimeout)
		defer cancel()
		unfinished = append(unfinished, l.findStarted(ctx, taken)...)
	}
	return append(unfinished, l.recallOrFence(ctx, fenced)...)
}
