// Package commit writes what the engine decides. All operations of a process queue up in front of one committer, which
// takes whatever is there, writes it as a few statements in one pipelined transaction, and answers each operation. A lone
// operation is written at once; under load hundreds share one commit, and a second lane fills and writes a transaction while
// the first waits for the database.
//
// It has connections of its own, so that user code which has emptied the pool cannot stop it, and it waits for nobody:
// what it writes belongs to runs of this worker, what others may hold is skipped, and a lock is waited for briefly.
//
// What a run has done is never given up while its worker holds its lease: operations of runs are kept, whatever the database
// says (refused.go), and one whose answer was lost is not taken for undone (recall.go). Everything else is answered with the error.
package commit

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

var (
	// ErrClosed answers operations that the committer did not carry out because it is closed.
	ErrClosed = errors.New("committer is closed")
	// ErrOutcomeUnknown answers operations from outside that were under way when the connection was lost and must not be
	// repeated, and whoever does not wait any more for one that is queued or under way.
	ErrOutcomeUnknown = errors.New("the database has not answered")
	// ErrFenced answers operations of a run that this worker does not own any more; nothing was written. It may have lost
	// its lease.
	ErrFenced = errors.New("the run has another owner")
	// ErrLocked answers operations on rows that somebody else's transaction holds.
	ErrLocked = errors.New("held by another transaction")
)

// worthALane is how many operations must be waiting before another lane takes them while a flush of their class is under way,
// and no fewer than that flush has: shared commits cost less than what a few gain by leaving at once. Wakes are worth it
// as soon as they are as many as in that flush, because runs wait for them that are due.
const worthALane = 64

// A class is the wakes, what is wide, what hints ask for, or everything else. Wakes are answered before the disk has them, and wait
// for no flush that does. A run that is to be woken is parked, and has nothing else in the queue but polls, which may
// as well come after. Hints are the last: see hints.go.
type class struct {
	free   int // queued operations that a lane may take: those of runs that are not busy
	flying int // operations of the flushes under way
	least  int // see worthALane
}

// worth reports whether there is enough for a lane of its own.
func (c *class) worth() bool {
	return c.free > 0 && (c.flying == 0 || c.free >= max(c.least, c.flying))
}

// classOf returns the class of op. The caller holds the mutex.
func (c *Committer) classOf(op *operation) *class {
	switch {
	case op.wakes():
		return &c.wakes
	case op.wide:
		return &c.wides
	case op.hinted:
		return &c.hints
	default:
		return &c.others
	}
}

// flying returns how many operations are in flushes. The caller holds the mutex.
func (c *Committer) flying() int {
	return c.wakes.flying + c.others.flying + c.wides.flying + c.hints.flying
}

// maxBatch bounds a flush, so that the first operation of a burst does not wait for all of it.
const maxBatch = 2000

// maxFlushBytes bounds what the operations of a flush bring, unless it is a single one, so that the database has it in time.
const maxFlushBytes = 8 << 20

// maxLosses is with how many connections an operation may go down before it counts as the likely cause: if it is no run's it is
// given up then, else it is tried again at longer and longer intervals.
const maxLosses = 5

// maxConflictRetries is how often an operation that lost a deadlock alone is repeated.
const maxConflictRetries = 3

// Config configures a Committer.
type Config struct {
	Store   *store.Store
	Connect func(context.Context) (*pgx.Conn, error)
	// Lanes is how many connections write at the same time, under load or to wake runs: operations of one run are never on two of them. The
	// second is made when first needed. Default 1.
	Lanes int
	// LockTimeout is how long one statement may wait for a lock, which everything that shares its flush does with it: what is
	// kept is tried again. Default 200 ms.
	LockTimeout time.Duration
	// FlushTimeout is after how long without an answer a connection counts as lost. Default 10 s.
	FlushTimeout time.Duration
	// HintPatience is for how long what hints ask for stands back while there is other work for every lane. Default
	// 200 ms.
	HintPatience time.Duration
	// Lazy: connect when there is something to do, not at Open.
	Lazy bool
	// Sent is told, after the commit, of the messages a flush put into mailboxes, and, without an ID, of those that it has put there perhaps:
	// the answer was lost. It must not block.
	Sent func([]store.Sent)
	// SentEvents is told the same of the events that a flush has kept. It must not block.
	SentEvents func([]store.SentEvent)
	// Holds reports whether worker still has its lease: for as long as it has, operations of its runs are kept. It must not
	// block. nil: it has.
	Holds func(worker int64) bool
	// Abandoned is told how many operations of runs were given up unrecorded, because their worker has lost its lease or because
	// the committer was closed before the database took them. It must not block.
	Abandoned func(operations int)
	// Flushed is told of everything taken from the queue at once, when it has been answered: how many operations, how long
	// the first of them had been queued, how long it took to carry them out. It must not block; lanes call it concurrently.
	Flushed func(operations int, waited, took time.Duration)
	Logger  *slog.Logger
}

// Committer works from Open to Close.
type Committer struct {
	config Config
	lanes  []*lane

	mu            sync.Mutex
	queue         []*operation
	wakes, others class
	wides, hints  class               // one flush of each at a time
	busy          map[string]struct{} // runs with operations in a flush: what follows for them waits for its end
	blocked       map[string]struct{} // runs of which an operation waits for another attempt: what follows for them waits, too
	ready         [tiers]int          // operations that a lane may take now
	caution       caution
	alarm         *time.Timer // rings when an operation's next attempt is due
	disconnected  bool        // the first lane is connecting
	closed        bool
	stopped       bool // what is queued is not carried out any more

	closing, loops       context.Context //nolint:containedctx // their ends are Close's to give
	endClosing, endLoops context.CancelFunc
	running              sync.WaitGroup // lanes
	refusals             sync.WaitGroup

	flushes, operations int64 // guarded by mu

	connecting *outage.Reporter // of connections that are lost or cannot be made
	recording  *outage.Reporter // of operations that are kept
}

// New returns a committer that Open sets to work.
func New(config Config) *Committer {
	config.LockTimeout = cmp.Or(config.LockTimeout, 200*time.Millisecond)
	config.FlushTimeout = cmp.Or(config.FlushTimeout, 10*time.Second)
	config.HintPatience = cmp.Or(config.HintPatience, 200*time.Millisecond)
	c := &Committer{
		config: config, busy: map[string]struct{}{}, blocked: map[string]struct{}{}, others: class{least: worthALane},
		wides: class{least: math.MaxInt}, hints: class{least: math.MaxInt},
		connecting: outage.New(config.Logger, "the engine cannot connect to the database, what it has to write is kept", "the engine is connected again"),
		recording:  outage.New(config.Logger, "the database refuses what the engine has to write; it is kept and tried again", "the database takes everything again"),
	}
	for i := range max(config.Lanes, 1) {
		c.lanes = append(c.lanes, &lane{committer: c, extra: i > 0, most: maxBatch, wake: make(chan struct{}, 1)})
	}
	return c
}

// Open connects, unless it is lazy, and begins to work. It returns an error if that first connection fails.
func (c *Committer) Open(ctx context.Context) error {
	if !c.config.Lazy {
		if err := c.lanes[0].dial(ctx); err != nil {
			return fmt.Errorf("connect the committer: %w", err)
		}
	}
	c.loops, c.endLoops = context.WithCancel(context.WithoutCancel(ctx))
	c.closing, c.endClosing = context.WithCancel(c.loops)
	for _, l := range c.lanes {
		c.running.Go(func() { l.loop(c.loops) })
	}
	return nil
}

// Close carries out what is queued and ends. When ctx ends first, what is left is answered with ErrClosed. Operations that
// come after Close are answered with ErrClosed.
func (c *Committer) Close(ctx context.Context) {
	c.end(&c.closed)
	c.endClosing()
	done := make(chan struct{})
	go func() { c.running.Wait(); close(done) }()
	select {
	case <-done:
	case <-ctx.Done():
		c.end(&c.stopped)
		c.endLoops()
		<-done
	}
	c.endLoops()
	c.mu.Lock()
	left := c.queue
	c.queue = nil
	if c.alarm != nil {
		c.alarm.Stop()
	}
	c.mu.Unlock()
	c.giveUp(ctx, left)
	c.refusals.Wait()
}

// giveUp answers what was not carried out before the end.
func (c *Committer) giveUp(ctx context.Context, left []*operation) {
	unrecorded := 0
	for _, op := range left {
		if op.kept() {
			unrecorded++
		}
	}
	if unrecorded > 0 {
		c.config.Logger.WarnContext(ctx, "the worker ends before the database took what its runs had done: others execute them again",
			"operations", unrecorded, "error", errors.Join(c.recording.Err(), c.connecting.Err()))
		if c.config.Abandoned != nil {
			c.config.Abandoned(unrecorded)
		}
	}
	for _, op := range left {
		op.answer(nil, ErrClosed)
	}
}

// end sets one of the flags that end lanes.
func (c *Committer) end(flag *bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	*flag = true
	c.rouse()
}

// Stats returns how many transactions and operations there have been.
func (c *Committer) Stats() (flushes, operations int64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.flushes, c.operations
}

// Stream ties the operations of one run together: when one has failed, later ones are not attempted.
type Stream struct {
	failed error // belongs to the lane that has taken operations of the run
}

// operation is one queued request. answer is called once, from a lane's goroutine, and must not block.
type operation struct {
	kind      kind
	run       string // its operations keep their order; "": those of no run keep theirs
	stream    *Stream
	ask       any
	custom    func(*pgx.Batch)
	hinted    bool // asked for by somebody whom nobody vouches for; guarded by the committer's mutex while it is queued
	repeat    bool // may be repeated although a first attempt may have been committed
	answer    func(result any, err error)
	committed func(error) // nil: nobody goes on before the commit
	bytes     int         // what it brings
	worker    int64       // it is kept for as long as that one has its lease; 0: it is not kept
	queued    time.Time
	result    any
	err       error
	conflicts int  // lost deadlocks
	losses    int  // lost connections
	stoodBack bool // for a flush of wakes
	wide      bool // it publishes to more than one statement reaches

	sent      bool      // its answer was lost: it may have been carried out
	unheard   bool      // the same of one that is not kept: whom it is for may not have been told
	suspect   bool      // a flush that it was in was refused, or one of its kind is
	refusals  int       // by itself
	notBefore time.Time // when its next attempt is due
	tried     time.Time // when it was last refused by itself
}

// kept reports whether op is never given up while its worker has its lease.
func (op *operation) kept() bool { return op.worker != 0 }

func (c *Committer) submit(op *operation) {
	if ask, ok := op.ask.(interface{ Run() string }); ok {
		op.run = ask.Run()
	}
	if ask, ok := op.ask.(interface{ Size() int }); ok {
		op.bytes = ask.Size()
	}
	if ask, ok := op.ask.(interface{ Owner() int64 }); ok && op.kind.recorded() {
		op.worker = ask.Owner()
	}
	op.queued = time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		// Not from here: the caller may hold a lock that the answer needs.
		c.refusals.Go(func() { op.answer(nil, ErrClosed) })
		return
	}
	op.suspect = op.suspect || c.caution.kinds[op.kind].refused > 0
	c.queue = append(c.queue, op)
	if c.free(op) {
		c.count(op)
		c.rouse()
	}
}

// free reports whether nothing that came before op for its run keeps it from being taken. The caller holds the mutex.
func (c *Committer) free(op *operation) bool {
	_, busy := c.busy[op.run]
	_, blocked := c.blocked[op.run]
	return !busy && !blocked
}

// count counts an operation that a lane may take. The caller holds the mutex.
func (c *Committer) count(op *operation) {
	c.classOf(op).free++
	c.ready[op.tier()]++
}

// rouse wakes those lanes that have something to do and wait. The caller holds the mutex.
func (c *Committer) rouse() {
	for _, l := range c.lanes {
		if l.idle && l.needed() {
			l.idle = false
			l.wake <- struct{}{} // never blocks: it is idle once
			if !c.closed {
				return // one takes it all
			}
		}
	}
}

// recount follows a change of queue or busy, or the passing of time. The caller holds the mutex.
func (c *Committer) recount() {
	c.wakes.free, c.others.free, c.wides.free, c.hints.free, c.ready = 0, 0, 0, 0, [tiers]int{}
	clear(c.blocked)
	now, next := time.Now(), time.Time{}
	for _, op := range c.queue {
		op.hinted = op.hinted && now.Sub(op.queued) < c.config.HintPatience
		if due := c.caution.due(op); due.After(now) {
			if next.IsZero() || due.Before(next) {
				next = due
			}
			if op.run != "" {
				c.blocked[op.run] = struct{}{}
			}
			continue
		}
		if c.free(op) {
			c.count(op)
		}
	}
	c.wakeAt(next)
}

// wakeAt has the lanes look again at a moment; zero: there is none. The caller holds the mutex.
func (c *Committer) wakeAt(next time.Time) {
	switch {
	case next.IsZero() && c.alarm == nil:
	case next.IsZero():
		c.alarm.Stop()
	case c.alarm == nil:
		c.alarm = time.AfterFunc(time.Until(next), c.ring)
	default:
		c.alarm.Reset(time.Until(next))
	}
}

func (c *Committer) ring() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.recount()
	c.rouse()
}

// Trouble returns why there is no connection now; nil if there is one, or none is needed.
func (c *Committer) Trouble() error { return c.connecting.Err() }
