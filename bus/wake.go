package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// settleStep is the wait after the first empty look that follows a sign of life; it doubles with each further one.
	settleStep = 5 * time.Millisecond
	// retryStep is the longest wait after the first error in a row; it doubles with each further one.
	retryStep = 100 * time.Millisecond
	// fruitless is how many looks in a row that were notified find nothing before those that follow are rationed: every role
	// that may connect can notify.
	fruitless = 8
	// respite is the least time between two of them then.
	respite = 10 * time.Millisecond
	// reportEvery is the least time between two reports of the same error, of one that lasts.
	reportEvery = time.Minute
)

// WakeConfig configures a [Waker]. Durations are 1 ms to 8760 h (a year).
type WakeConfig struct {
	// PollInterval is how often an idle subscription looks for messages although none was announced, which finds those
	// of publishers that do not notify, and those that become visible by time alone. Default 30 s.
	PollInterval time.Duration

	// UnhealthyInterval is the same while the listener is not healthy; never more than PollInterval. Default 1 s, as
	// watermill-sql's own.
	UnhealthyInterval time.Duration

	// RetryDelay is the longest wait after an error: the first is about 100 ms, doubling, with jitter. Default 5 s.
	RetryDelay time.Duration
}

func (c WakeConfig) withDefaults() WakeConfig {
	c.PollInterval = cmp.Or(c.PollInterval, 30*time.Second)
	c.UnhealthyInterval = min(cmp.Or(c.UnhealthyInterval, time.Second), c.PollInterval)
	c.RetryDelay = cmp.Or(c.RetryDelay, 5*time.Second)
	return c
}

func (c WakeConfig) validate() error {
	given := func(field string, d time.Duration) error {
		if d == 0 {
			return nil // the default, which may come from another field
		}
		return bounds.Interval(field, d)
	}
	return errors.Join(
		given("bus.WakeConfig.PollInterval", c.PollInterval),
		given("bus.WakeConfig.UnhealthyInterval", c.UnhealthyInterval),
		given("bus.WakeConfig.RetryDelay", c.RetryDelay))
}

// Waker is a watermill-sql BackoffManager that looks for messages when a notification comes instead of every second. It
// serves one subscription: one Subscribe of one subscriber. Whoever calls HandleError for several at once gets a warning
// and polls at the UnhealthyInterval, since it cannot be told apart whom a notification has woken already.
//
// Watermill-sql's subscriber cannot interrupt it, so its Close, and the end of a Subscribe's context, take effect only
// when the waiting is over: close the Waker before. [WokenSubscriber] does all of that by itself, and is the better
// choice wherever the subscriber can be replaced.
//
// A message can be hidden for a while after its notification: watermill-sql's default schema shows it only when every
// transaction of the cluster that began to write before it has ended. So the looks after a sign of life follow each other
// after 5 ms, doubling up to PollInterval, and such a message is late by no more than about as long again as it was
// hidden. A [WokenSubscriber] knows better: it asks the database, and is late by a quarter of that and at most a second.
type Waker struct {
	listener *Listener
	sub      *Subscription
	cfg      WakeConfig
	remove   func() // the observer

	visibility *visibility // nil if there is no database to ask; of the one subscription's goroutine alone

	mu       sync.Mutex
	round    context.Context // ends when all who wait are to look
	endRound context.CancelFunc
	healthy  bool // when the last wait began, or since
	closed   bool
	waiting  int
	shared   bool      // it was warned of
	empty    int       // looks in a row without a message since the last sign of life
	settled  bool      // the look in progress, or the last one, sees all that was committed before
	asking   bool      // what can be seen has been asked since the last sign of life
	noticed  time.Time // when a notification last ended a wait
	notified bool      // the look that follows is due to it
	lies     int       // looks in a row that were due to one and found nothing
	failures int       // in a row
	reported string
	told     time.Time // when that was logged
}

var _ watermillsql.BackoffManager = (*Waker)(nil)

// WakeOn returns a [Waker] for the channel that publishers notify, see [NotifyingSchema] and [TopicChannel]. All mistakes
// are reported together; it returns [ErrClosed] if the listener is closed. Close ends it.
func WakeOn(listener *Listener, channel string, cfg WakeConfig) (*Waker, error) {
	err := cfg.validate()
	if listener == nil {
		err = errors.Join(errors.New("the listener of bus.WakeOn is nil: give the listener that hears the notifications"), err)
	}
	if err = errors.Join(err, checkChannel(channel)); err != nil {
		return nil, err
	}
	sub, err := listener.Subscribe(0, channel)
	if err != nil {
		return nil, fmt.Errorf("wake on %s: %w", channel, err)
	}
	w := &Waker{listener: listener, sub: sub, cfg: cfg.withDefaults()}
	w.round, w.endRound = context.WithCancel(context.Background())
	w.remove = listener.OnChange(w.observe)
	return w, nil
}

// Close ends the waiting, at once. From then on HandleError waits no more, and its subscription polls at the
// UnhealthyInterval; the same happens when the listener is closed. It may be called more than once.
func (w *Waker) Close() {
	w.remove()
	w.sub.Close()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	w.endRound()
}

// HandleError implements watermill-sql's BackoffManager: it waits, up to the interval that applies, until a look for
// messages is due, and returns for how long watermill-sql is to sleep after that, which is 0 but for errors and after
// Close.
func (w *Waker) HandleError(logger watermill.LoggerAdapter, noMsg bool, err error) time.Duration {
	if logger == nil {
		logger = watermill.NopLogger{}
	}
	switch {
	case err != nil:
		return w.failed(logger, err)
	case noMsg:
		return w.idle(logger)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.succeeded(logger)
	w.alive()
	w.notified, w.lies = false, 0
	return 0
}

// idle waits for the next look. What was notified since the last look began is still in the queue and ends it at once.
func (w *Waker) idle(logger watermill.LoggerAdapter) time.Duration {
	round, wait, settled := w.enter(logger)
	pause(round, min(w.rest(), wait))
	if !settled && w.visibility != nil {
		return w.leave(w.settle(round, wait, logger))
	}
	return w.leave(w.wait(round, wait))
}

// enter returns what ends the wait that begins, how long it lasts at most, and whether the last look has settled that
// nothing is there.
func (w *Waker) enter(logger watermill.LoggerAdapter) (round context.Context, wait time.Duration, settled bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.succeeded(logger)
	if w.notified {
		w.notified = false
		w.lies++
	}
	w.waiting++
	if w.waiting > 1 && !w.shared {
		w.shared = true
		logger.Error("Subscriptions share a bus.Waker and poll: give each one its own",
			errors.New("concurrent calls of HandleError"), watermill.LogFields{"poll_interval": w.cfg.UnhealthyInterval})
	}
	w.healthy = w.listener.Healthy()
	wait = w.cfg.PollInterval
	if w.shared || !w.healthy {
		wait = w.cfg.UnhealthyInterval
	}
	if w.visibility == nil {
		wait = doubled(settleStep, w.empty, wait)
		w.empty++
	}
	return w.round, wait, w.settled
}

// settle waits until a look may find what the last one did not, for at most limit. Once it finds all that was committed when
// the question came up, it settles that nothing else is there.
func (w *Waker) settle(round context.Context, limit time.Duration, logger watermill.LoggerAdapter) error {
	if err := w.wait(round, 0); err == nil || errors.Is(err, ErrClosed) {
		return err
	}
	v := w.visibility
	asked := w.question()
	for {
		if asked {
			gone := time.Since(v.since)
			if gone >= limit {
				v.forget()
				return nil
			}
			if err := w.wait(round, min(max(settleStep, gone/4), w.cfg.UnhealthyInterval, limit-gone)); !errors.Is(err, context.DeadlineExceeded) {
				return err
			}
		}
		worth, settled, err := v.look(round)
		switch {
		case round.Err() != nil:
			return round.Err()
		case err != nil: // the look that follows a step later says more
			logger.Debug("Cannot tell whether messages are hidden", watermill.LogFields{"err": refusal.Text(err)})
			return w.wait(round, min(limit, retryStep))
		case settled:
			w.setSettled()
			return nil
		case worth:
			return nil
		}
		asked = true
	}
}

// question reports whether what settle is to find out is a question already: nothing has shown a sign of life since it was
// asked. If not, it is one from now on.
func (w *Waker) question() (asked bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if asked = w.asking && !w.visibility.since.IsZero(); !asked {
		w.asking = true
		w.visibility.forget()
		w.visibility.since = time.Now()
	}
	return asked
}

// wait waits for a notification, and returns nil if one came; [ErrClosed]; or the error of a context: that of round, or
// that the limit has passed.
func (w *Waker) wait(round context.Context, limit time.Duration) error {
	ctx, cancel := context.WithTimeout(round, limit)
	defer cancel()
	if _, err := w.sub.Next(ctx); err != nil {
		return err
	}
	w.drain()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noticed, w.notified = time.Now(), true
	w.alive()
	w.wakeOthers()
	return nil
}

// rest returns how long notifications are not worth a look: no time at all while they tell the truth.
func (w *Waker) rest() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.lies < fruitless {
		return 0
	}
	return max(0, time.Until(w.noticed.Add(respite)))
}

// leave ends what enter began. Err is the end of the waiting.
func (w *Waker) leave(err error) time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.waiting--
	if w.closed || errors.Is(err, ErrClosed) {
		return w.cfg.UnhealthyInterval // watermill-sql can interrupt this itself
	}
	return 0
}

// alive notes a sign of life: something may be there that the next empty look does not show. The caller holds mu.
func (w *Waker) alive() { w.empty, w.settled, w.asking = 0, false, false }

func (w *Waker) setSettled() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.settled = true
}

// drain takes what else is queued: one look answers it all. It is bounded, so that no flood keeps it busy.
func (w *Waker) drain() {
	ended, end := context.WithCancel(context.Background())
	end()
	for range DefaultQueue {
		if _, err := w.sub.Next(ended); err != nil {
			return
		}
	}
}

// wakeOthers has everybody else who waits look, too. The caller holds mu.
func (w *Waker) wakeOthers() {
	if w.closed {
		return
	}
	w.endRound()
	w.round, w.endRound = context.WithCancel(context.Background())
}

// observe ends the waiting when notifications stop to arrive, because it goes by the wrong interval then. When they come
// again, the catch-up does.
func (w *Waker) observe(state State) {
	w.mu.Lock()
	defer w.mu.Unlock()
	was := w.healthy
	w.healthy = state == StateListening
	if was && !w.healthy {
		w.alive()
		w.wakeOthers()
	}
}

// failed returns how long to wait before the next attempt.
func (w *Waker) failed(logger watermill.LoggerAdapter, err error) time.Duration {
	err = refusal.Public(err) // the logger may be anybody's
	if contended(err) {
		logger.Debug("Another subscriber was faster, looking again", watermill.LogFields{"err": refusal.Text(err)})
		return 0
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.alive()
	ceiling := doubled(min(retryStep, w.cfg.RetryDelay), w.failures, w.cfg.RetryDelay)
	w.failures++
	wait := ceiling/2 + rand.N(ceiling/2+1)
	fields := watermill.LogFields{"wait_time": wait, "failures": w.failures}
	switch {
	case errors.Is(err, context.Canceled): // the end of a subscription, usually
		logger.Debug("Looking for messages was cancelled", fields)
	case err.Error() == w.reported && time.Since(w.told) < reportEvery:
		logger.Debug("Still cannot look for messages", fields.Add(watermill.LogFields{"err": err.Error()}))
	default:
		w.reported, w.told = err.Error(), time.Now()
		logger.Error("Cannot look for messages, trying again", err, fields)
	}
	return wait
}

// succeeded ends a row of errors: the database has answered, which a listener that waits to connect again may want to
// know. The caller holds mu.
func (w *Waker) succeeded(logger watermill.LoggerAdapter) {
	if w.reported != "" {
		logger.Info("Messages can be looked for again", watermill.LogFields{"failures": w.failures})
	}
	w.failures, w.reported = 0, ""
	w.listener.Retry()
}

// contended reports whether err says that another transaction was faster: a serialization failure or a deadlock. Every
// driver for PostgreSQL tells the code; the texts are for errors that lost it on the way.
func contended(err error) bool {
	text := err.Error()
	return refusal.Conflict(err) || strings.Contains(text, "could not serialize access") || strings.Contains(text, "deadlock detected")
}
