package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// closeGrace is how long Close waits for callers' transactions to end.
	closeGrace = 500 * time.Millisecond
	// closeFlush is how much longer than its context Close goes on sending: who hands over in a hurry has something to say.
	closeFlush = time.Second
	// closeStep is how often it looks meanwhile.
	closeStep = 5 * time.Millisecond
	// reconnectCeiling is the longest wait between attempts to connect, short because wake-ups wait for it.
	reconnectCeiling = 10 * time.Second
)

// NotifierConfig configures a [Notifier].
type NotifierConfig struct {
	// Pool gives the configuration of the connection: address, credentials, TLS, BeforeConnect, AfterConnect. None of
	// the pool's connections is used, so a pool that is used up delays no notification. Required.
	Pool *pgxpool.Pool

	// Window is the least time between two statements while there is much to send. The first after a pause leaves at
	// once; if there is much to send for long, up to five windows pass, so that statements take a tenth of the time. A
	// server that takes longer than a window for one is left alone for as long again, up to five windows. Default 2
	// ms; 1 µs to 8760 h (a year).
	Window time.Duration

	// MaxPending is how many different payloads wait for each channel, and for each open transaction and channel; all
	// open transactions together have ten times as many. A payload of a KiB or more counts once more for each KiB. The
	// rest becomes one empty payload a channel, upon which subscribers catch up. Default 1000, which is a MiB a
	// channel; at most 1,000,000.
	MaxPending int

	// Mode says how NotifyTx notifies. Default [ModeAdaptive].
	Mode NotifyMode

	// RateThreshold is the number of NotifyTx calls a second by this process above which ModeAdaptive coalesces. Every
	// notifying commit holds a lock of the whole cluster for as long as its flush takes, say a millisecond. Default 20:
	// ten such processes then leave that lock free for four fifths of the time. At most 1,000,000.
	RateThreshold int

	// QueueLimit is how much of the server's NOTIFY queue may be in use, from 0 to 1, before NotifyTx stops to notify inside
	// transactions, whatever Mode says: at 1 the commits of all transactions of the cluster fail that notify. Until it is
	// below again notifications are sent after the commit, or, where that cannot be, left to those who poll. Default 0.1.
	QueueLimit float64

	// QueueInterval is how often the server is asked for that, with a statement of the notifier's connection. Default
	// 30 s; 1 ms to 8760 h (a year).
	QueueInterval time.Duration

	// Logger. Default slog.Default().
	Logger *slog.Logger

	// MeterProvider makes the metrics romancy.notifier.sent (notifications), romancy.notifier.collapsed (payloads that an
	// empty one replaced), romancy.notifier.withheld (notifications left to polling because the server's queue was filling),
	// romancy.notifier.batches (statements), romancy.notifier.pending (payloads), romancy.notifier.open_transactions and
	// romancy.notifier.queue.usage (of the server's NOTIFY queue, from 0 to 1). Default otel.GetMeterProvider().
	MeterProvider metric.MeterProvider

	// Disabled: notify nobody. All methods do nothing.
	Disabled bool
}

func (c NotifierConfig) withDefaults() NotifierConfig {
	c.Window = cmp.Or(c.Window, 2*time.Millisecond)
	c.MaxPending = cmp.Or(c.MaxPending, 1000)
	c.RateThreshold = cmp.Or(c.RateThreshold, 20)
	c.QueueLimit = cmp.Or(c.QueueLimit, defaultQueueLimit)
	c.QueueInterval = cmp.Or(c.QueueInterval, 30*time.Second)
	c.Logger = refusal.Logger(cmp.Or(c.Logger, slog.Default()))
	return c
}

func (c NotifierConfig) validate() error {
	var errs []error
	if flaw := dial.Unusable(c.Pool); flaw != "" && (!c.Disabled || c.Pool != nil) {
		errs = append(errs, fmt.Errorf("bus.NotifierConfig.Pool %s: give the pgx pool whose settings the NOTIFY connection uses", flaw))
	}
	if c.Mode < ModeAdaptive || c.Mode > ModeCoalesced {
		errs = append(errs, fmt.Errorf("bus.NotifierConfig.Mode is %s: use ModeAdaptive, ModeInTransaction or ModeCoalesced", c.Mode))
	}
	if !(c.QueueLimit > 0 && c.QueueLimit <= 1) {
		errs = append(errs, fmt.Errorf("bus.NotifierConfig.QueueLimit is %v: use a share of the queue up to 1, or 0 for the default", c.QueueLimit))
	}
	errs = append(errs,
		checkProvider("bus.NotifierConfig.MeterProvider", c.MeterProvider),
		bounds.Interval("bus.NotifierConfig.QueueInterval", c.QueueInterval),
		bounds.Number("bus.NotifierConfig.Window", c.Window, time.Microsecond, bounds.Longest, ", or 0 for the default"),
		bounds.Count("bus.NotifierConfig.MaxPending", c.MaxPending),
		bounds.Count("bus.NotifierConfig.RateThreshold", c.RateThreshold))
	return errors.Join(errs...)
}

// Notifier sends notifications after the commits that they speak of, for the whole process, over one connection of its
// own. A nil Notifier, like a disabled one, does nothing.
type Notifier struct {
	cfg     NotifierConfig
	log     *slog.Logger
	metrics *notifierMetrics
	outage  *outage.Reporter
	wake    chan struct{} // holds a token while there may be something to send
	closing chan struct{}
	done    chan struct{} // closed when the goroutine has ended

	mu      sync.Mutex
	started bool
	closed  bool
	failing bool               // the last attempt to send failed
	stop    context.CancelFunc // nil before Start
	ready   *pending           // what is committed
	open    map[uint64]*openTransaction
	spare   []*openTransaction // have ended, to be used again

	openSize int // weight of all that is in open
	lookedAt int // weight of those that are being looked at
	queue    serverQueue
	rate     rate
	unsent   error // what Close has to report
}

// NewNotifier returns a notifier that keeps what it is told until Start. All mistakes in cfg are reported together.
func NewNotifier(cfg NotifierConfig) (*Notifier, error) {
	cfg = cfg.withDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	metrics, err := newNotifierMetrics(cfg.MeterProvider)
	if err != nil {
		return nil, fmt.Errorf("bus.NotifierConfig.MeterProvider: %w", err)
	}
	return &Notifier{
		cfg:     cfg,
		log:     cfg.Logger,
		metrics: metrics,
		outage: outage.New(cfg.Logger, "PostgreSQL NOTIFY connection lost, reconnecting: wake-ups are late until then",
			"PostgreSQL NOTIFY connection established"),
		wake:    make(chan struct{}, 1),
		closing: make(chan struct{}),
		done:    make(chan struct{}),
		ready:   newPending(cfg.MaxPending),
		open:    map[uint64]*openTransaction{},
		queue:   newServerQueue(cfg.Logger),
	}, nil
}

// Start begins to send and returns at once; a server that cannot be reached is waited for in the background. Only Close
// ends it; the end of ctx does not. It returns an error if ctx has ended, if it was started before, and [ErrClosed]
// after Close.
func (n *Notifier) Start(ctx context.Context) error {
	if n == nil || n.cfg.Disabled {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start notifier: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	switch {
	case n.closed:
		return fmt.Errorf("start notifier: %w", ErrClosed)
	case n.started:
		return errors.New("start notifier: it was started before")
	}
	n.started = true
	ctx, n.stop = context.WithCancel(context.WithoutCancel(ctx))
	go n.run(ctx)
	return nil
}

// Close sends what is pending, waits up to half a second for callers' transactions that are about to end, and ends the
// goroutine. It goes on for up to a second after the end of ctx, which may have ended before: what is pending then is often
// that runs were just handed over. What cannot be sent at the first attempt, or within that time, is dropped and reported as
// an error: the sweeps find what it would have announced. It may be called more than once.
func (n *Notifier) Close(ctx context.Context) error {
	if n == nil || n.cfg.Disabled {
		return nil
	}
	n.mu.Lock()
	if !n.closed {
		n.closed = true
		close(n.closing)
		if !n.started {
			close(n.done)
		}
	}
	stop := n.stop
	n.mu.Unlock()
	select {
	case <-n.done:
	case <-ctx.Done():
		n.finishOrStop(stop)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.unsent
}

// finishOrStop gives a closing notifier closeFlush to end by itself, and then makes it.
func (n *Notifier) finishOrStop(stop context.CancelFunc) {
	flush := time.NewTimer(closeFlush)
	defer flush.Stop()
	select {
	case <-n.done:
		return
	case <-flush.C:
	}
	if stop != nil {
		stop()
	}
	<-n.done // soon: nothing that it does outlasts its context by more than the bounds of hangUp
}

// Notify sends payload to channel, soon. It never blocks. Call it after the commit that the notification speaks of. A
// message that PostgreSQL would refuse is logged and dropped, as is everything after Close.
func (n *Notifier) Notify(channel, payload string) {
	if n == nil || n.cfg.Disabled {
		return
	}
	m := Message{Channel: channel, Payload: payload}
	if err := m.validate(); err != nil {
		n.log.Error("notification dropped", "error", err)
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.closed {
		return
	}
	n.metrics.collapse(n.ready.add(m))
	n.signal()
}

func (n *Notifier) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// run is the notifier's goroutine. It takes what is pending and then sends it, in this order: whatever is committed
// during the send finds an empty set and a wake-up that nobody has consumed, and so makes another send.
func (n *Notifier) run(ctx context.Context) {
	defer close(n.done)
	defer n.metrics.observe(n)()
	retry := backoff{limit: reconnectCeiling}
	conn, err := connect(ctx, n.cfg.Pool, " notify")
	if err != nil {
		conn = nil
		n.queue.due = time.Now().Add(n.cfg.QueueInterval)
		if ctx.Err() == nil {
			n.outage.FailedAs(ctx, "PostgreSQL NOTIFY connection failed, the first notification tries again", err)
		}
	}
	defer func() {
		if conn != nil {
			dial.HangUp(conn)
		}
	}()
	var graceOver time.Time
	ration := newRation(n.cfg.Window)
	for {
		closing := n.await(ctx)
		if closing && graceOver.IsZero() {
			graceOver = time.Now().Add(closeGrace)
		}
		if !closing {
			n.pause(time.Until(ration.next()))
		}
		if ctx.Err() != nil {
			n.giveUp(ctx.Err())
			return
		}
		if closing && n.finished(time.Now().After(graceOver)) {
			n.giveUp(nil)
			return
		}
		work := n.drain(time.Now(), closing)
		began := time.Now()
		check := !closing && !began.Before(n.queue.due)
		if work.empty() && !check {
			continue
		}
		retry.attempt()
		if conn, err = n.send(ctx, conn, work, check); err == nil {
			ration.spend(began, time.Now())
			retry.healthy()
			n.recovered(ctx)
			continue
		}
		n.failed(ctx, work, err)
		if closing || ctx.Err() != nil {
			n.giveUp(err)
			return
		}
		n.pause(retry.next())
		n.signal() // what failed is pending again
	}
}

// await waits until there is something to do, and reports whether the notifier is being closed.
func (n *Notifier) await(ctx context.Context) (closing bool) {
	timer := time.NewTimer(time.Until(n.nextCheck()))
	defer timer.Stop()
	due := timer.C
	select {
	case <-n.closing:
		select { // nothing new comes any more: only open transactions are worth a wait
		case <-n.wake:
		case <-due:
		case <-ctx.Done():
		case <-time.After(closeStep):
		}
		return true
	case <-n.wake:
	case <-due:
	case <-ctx.Done():
	}
	return false
}

// nextCheck returns when the next open transaction, or the server's queue, is to be looked at.
func (n *Notifier) nextCheck() time.Time {
	n.mu.Lock()
	defer n.mu.Unlock()
	at := n.queue.due
	for _, tx := range n.open {
		at = earlier(at, tx.check)
	}
	return at
}

// drain takes what is ready, and the open transactions that are to be looked at now: all of them if this is the end.
func (n *Notifier) drain(now time.Time, closing bool) *batch {
	n.mu.Lock()
	defer n.mu.Unlock()
	work := &batch{ready: n.ready.messages()}
	n.ready = newPending(n.cfg.MaxPending)
	for xid, tx := range n.open {
		if closing || !tx.check.After(now) {
			work.transactions = append(work.transactions, tx)
			delete(n.open, xid)
			size := tx.messages.weight()
			n.openSize -= size
			n.lookedAt += size
		}
	}
	return work
}

// finished reports whether there is nothing left to send; transactions that are still open count until graceOver.
func (n *Notifier) finished(graceOver bool) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.ready.empty() && (graceOver || len(n.open) == 0)
}

// pause waits for d, or until the notifier is being closed.
func (n *Notifier) pause(d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-n.closing:
	}
}

// failed puts the batch back, before what has come since, and says so once in an outage.
func (n *Notifier) failed(ctx context.Context, work *batch, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.lookedAt = 0
	newer := n.ready.messages()
	n.ready = newPending(n.cfg.MaxPending)
	n.ready.add(work.ready...)
	n.ready.add(newer...)
	for _, tx := range work.transactions {
		n.keepOpen(tx)
	}
	if !n.closed && !errors.Is(err, errQueueFull) { // of which there is a line already
		n.outage.Failed(ctx, err)
	}
	n.failing = true
}

func (n *Notifier) recovered(ctx context.Context) {
	n.outage.Succeeded(ctx)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failing = false
}

// giveUp ends the notifier. What is left is reported by Close.
func (n *Notifier) giveUp(err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if left := len(n.ready.messages()); left > 0 {
		n.unsent = fmt.Errorf("close notifier: %d notifications could not be sent, the sweeps will find what they announce: %w", left, cmp.Or(err, ErrClosed))
	}
	if len(n.open) > 0 {
		n.log.Warn("notifier closed while transactions are open whose commits it was to announce; the sweeps will find them", "transactions", len(n.open))
	}
}
