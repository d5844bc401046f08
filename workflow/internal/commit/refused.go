package commit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/planted"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// A flush that the database refuses has one operation in it that is refused, or many, or all: the reason may be a value, a lock on one
// row, or a full disk. So its operations become suspects. These flush apart from all others, wait for locks only briefly, and as
// few at a time as it takes to find which of them are refused alone. Those that were flush apart from the other suspects, too, and while
// one is, new operations of its kind are suspects from the beginning: a lock on a table delays what is done to that table only.

// The tiers of operations, which do not share a flush.
const (
	healthy = iota
	suspected
	refused
	wide
	tiers
)

// tier returns that of op.
func (op *operation) tier() int {
	switch {
	case op.wide:
		return wide
	case op.refusals > 0:
		return refused
	case op.suspect:
		return suspected
	default:
		return healthy
	}
}

const (
	// suspectLockTimeout is how long a flush of suspects waits for a lock: the next attempt may find it free.
	suspectLockTimeout = 100 * time.Millisecond
	// An operation that is kept is tried again after about firstDelay, then after twice as long each time, up to lastDelay.
	firstDelay = 20 * time.Millisecond
	lastDelay  = 2 * time.Second
	// Between the attempts of different suspects that are refused one after the other pass up to lastPause.
	firstPause = 10 * time.Millisecond
	lastPause  = time.Second
)

// caution is what the committer knows of its suspects.
type caution struct {
	kinds [kinds]trouble
	kept  int // operations that were refused by themselves, are kept, and have not been carried out yet
}

// trouble is what it knows of those of one kind, which flush apart from those of others: what refuses one is likely to refuse the others.
type trouble struct {
	most    int       // suspects in a flush, at most; 0: no limit
	refused int       // attempts of single ones refused in a row, and none was carried out since
	resume  time.Time // nothing of this kind that was refused is tried before
}

// certain is after how many refusals in a row the suspects of a kind wait as well that were not refused by themselves.
const certain = 3

// due returns when op may be attempted.
func (c *caution) due(op *operation) time.Time {
	t := &c.kinds[op.kind]
	if (op.refusals > 0 || op.suspect && t.refused >= certain) && t.resume.After(op.notBefore) {
		return t.resume
	}
	return op.notBefore
}

func (t *trouble) limit() int {
	if t.most == 0 {
		return maxBatch
	}
	return t.most
}

// backoff returns first, doubled for each attempt after the first, up to last, with a quarter of jitter.
func backoff(first, last time.Duration, attempt int) time.Duration {
	delay := last
	if shift := max(attempt-1, 0); shift < 20 {
		delay = min(first<<shift, last)
	}
	return delay - time.Duration(rand.Float64()*float64(delay)/4)
}

// answered is what follows a flush that ended with err. What it returns is to be carried out by another flush.
func (l *lane) answered(ctx context.Context, ops []*operation, groups []*opGroup, err error) (unfinished []*operation) {
	var pgErr *pgconn.PgError
	switch {
	case err == nil:
		return l.conclude(ctx, ops, groups)
	case l.conn.IsClosed() || !errors.As(err, &pgErr):
		return l.lose(ctx, ops, err)
	}
	if refusal.SpoilsSession(pgErr) {
		l.hangUp()
	}
	if len(ops) > 1 {
		l.committer.suspect(ops)
		return ops
	}
	return l.refused(ctx, ops[0], err)
}

// suspect has the operations of a flush that was refused flush apart.
func (c *Committer) suspect(ops []*operation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, op := range ops {
		op.suspect = true
		t := &c.caution.kinds[op.kind]
		t.most = max(min(len(ops)/2, t.limit()), 1)
	}
}

// cleared follows a flush of suspects that was carried out.
func (c *Committer) cleared(ops []*operation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	seen := kind(-1)
	for _, op := range ops {
		if op.kind != seen {
			seen = op.kind
			t := &c.caution.kinds[seen]
			*t = trouble{most: min(2*t.limit(), maxBatch)}
		}
	}
	c.recount()
}

// refused follows the refusal of an operation that was alone in its flush.
func (l *lane) refused(ctx context.Context, op *operation, err error) (unfinished []*operation) {
	switch {
	case op.kept() && store.IsRecorded(err):
		return l.recallOrFence(ctx, []*operation{op})
	case refusal.Of(err) == refusal.Value:
		op.err = err
	case op.kept() && !planted.Has(planted.RecordGivenUp):
		return l.committer.keep(ctx, op, err)
	case refusal.Conflict(err) && op.conflicts < maxConflictRetries:
		op.conflicts++
		return []*operation{op}
	case refusal.Held(err):
		op.err = fmt.Errorf("%w: %w", ErrLocked, err)
	default:
		op.err = err
	}
	l.committer.settle(op)
	return nil
}

// keep has an operation tried again later, unless its worker has lost its lease.
func (c *Committer) keep(ctx context.Context, op *operation, err error) (unfinished []*operation) {
	if !c.holds(op) {
		c.abandon(ctx, []*operation{op})
		return nil
	}
	c.recording.Failed(ctx, err, "run", op.run, "operation", op.kind.String(), "sqlstate", refusal.Code(err), "class", refusal.Of(err).String())
	c.mu.Lock()
	defer c.mu.Unlock()
	if op.refusals++; op.refusals == 1 {
		c.caution.kept++
	}
	op.suspect, op.tried = true, time.Now()
	op.notBefore = op.tried.Add(backoff(firstDelay, lastDelay, op.refusals))
	t := &c.caution.kinds[op.kind]
	t.refused++
	t.resume = op.tried.Add(backoff(firstPause, lastPause, t.refused))
	return []*operation{op}
}

// release notes that a kept operation has been answered.
func (c *Committer) release(op *operation) {
	if op.refusals == 0 || !op.kept() {
		return
	}
	op.refusals = 0
	c.mu.Lock()
	c.caution.kept--
	over := c.caution.kept == 0
	c.mu.Unlock()
	if over {
		c.recording.Succeeded(context.Background())
	}
}

// holds reports whether op's worker has its lease, if it belongs to one.
func (c *Committer) holds(op *operation) bool {
	return !op.kept() || c.config.Holds == nil || c.config.Holds(op.worker)
}

// Abandon gives up what is queued for runs of workers that have lost their leases: others will execute them again.
func (c *Committer) Abandon(ctx context.Context) {
	c.mu.Lock()
	var lost []*operation
	c.queue = slices.DeleteFunc(c.queue, func(op *operation) bool {
		if c.holds(op) {
			return false
		}
		lost = append(lost, op)
		return true
	})
	c.recount()
	c.rouse()
	c.mu.Unlock()
	c.abandon(ctx, lost)
}

// abandon answers operations of a worker that has lost its lease.
func (c *Committer) abandon(ctx context.Context, ops []*operation) {
	if len(ops) == 0 {
		return
	}
	c.config.Logger.WarnContext(ctx, "the worker has lost its lease before the database took what its runs had done: others execute them again",
		"operations", len(ops))
	if c.config.Abandoned != nil {
		c.config.Abandoned(len(ops))
	}
	for _, op := range ops {
		c.release(op)
		op.answer(nil, ErrFenced) // its run is gone, and with it the stream
	}
}

// lose follows a lost connection. What is kept, what was not sent, and what may be carried out twice is returned to be repeated.
func (l *lane) lose(ctx context.Context, ops []*operation, cause error) (again []*operation) {
	c := l.committer
	unsent := pgconn.SafeToRetry(cause)
	c.connecting.FailedAs(ctx, "committer connection lost, reconnecting", cause)
	l.hangUp()
	if errors.Is(cause, context.DeadlineExceeded) {
		l.most = max(len(ops)/4, 1) // more than gets through in time, perhaps: answers may be long
	}
	again = make([]*operation, 0, len(ops))
	if slices.ContainsFunc(ops, func(op *operation) bool { return op.losses > 0 }) {
		c.suspect(ops) // one of them may be what ends the connections
	}
	for _, op := range ops {
		op.losses++
		op.unheard = op.unheard || !unsent && !op.kept()
		switch {
		case op.stream != nil && op.kind != kindAppend && planted.Has(planted.LostFlushFailsStream):
			op.err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause)
			c.settle(op)
		case op.kept():
			op.sent = op.sent || !unsent
			if op.losses > maxLosses {
				op.notBefore = time.Now().Add(backoff(firstDelay, lastDelay, op.losses-maxLosses))
			}
			again = append(again, op)
		case (unsent || op.repeat) && op.losses <= maxLosses:
			again = append(again, op)
		default:
			op.err = fmt.Errorf("%w: %w", ErrOutcomeUnknown, cause)
			c.settle(op)
		}
	}
	return again
}

// recorded reports whether operations of the kind, if they are a run's, are kept until they are carried out: what they say of the
// run is lost otherwise.
func (k kind) recorded() bool {
	switch k {
	case kindAppend, kindFail, kindDeliver, kindSendEvent, kindSubscribe, kindRetry, kindInterrupt, kindWait, kindWaitEvent, kindTakeMore,
		kindFinish, kindContinue, kindRelease:
		return true
	default:
		return false
	}
}

var kindNames = [kinds]string{
	kindStart: "start", kindAppend: "record", kindFail: "begin to undo", kindDeliver: "send", kindSendEvent: "send event", kindSubscribe: "subscribe",
	kindRetry: "record a failed attempt", kindInterrupt: "record an interruption", kindWait: "wait", kindWaitEvent: "wait for event",
	kindTakeMore: "receive many", kindLook: "poll", kindLookEvent: "poll for event", kindWake: "wake", kindWakeEvent: "wake by event",
	kindFinish: "end", kindContinue: "continue as new", kindRelease: "release", kindLetGo: "let go", kindCustom: "other",
}

func (k kind) String() string { return kindNames[k] }
