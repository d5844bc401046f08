package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/pgtest"
)

var errBroken = errors.New("broken")

func wakeOn(t *testing.T, l *Listener, channel string, cfg WakeConfig) *Waker {
	t.Helper()
	w, err := WakeOn(l, channel, cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	return w
}

// calm makes the next waits as long as they get.
func (w *Waker) calm() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.empty = 64
}

// lookAgain calls HandleError after an empty look, n times at once, and returns a channel with what each call returns.
func lookAgain(w *Waker, n int) <-chan time.Duration {
	slept := make(chan time.Duration, n)
	for range n {
		go func() { slept <- w.HandleError(watermill.NopLogger{}, true, nil) }()
	}
	return slept
}

func (w *Waker) waiters() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.waiting
}

func released(t *testing.T, slept <-chan time.Duration) time.Duration {
	t.Helper()
	select {
	case d := <-slept:
		return d
	case <-time.After(patience):
		t.Fatal("still waiting")
		return 0
	}
}

// heard returns once the catch-up of a new waker was answered by a look.
func heard(t *testing.T, w *Waker) {
	t.Helper()
	eventually(t, "the listener is well", w.listener.Healthy)
	w.calm()
	if d := released(t, lookAgain(w, 1)); d != 0 {
		t.Fatalf("the catch-up is answered by sleeping for %s", d)
	}
	w.calm()
}

func TestWakerWaitsForANotification(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := wakeOn(t, startListener(t, pool), "news", WakeConfig{PollInterval: never})
	heard(t, w)
	slept := lookAgain(w, 1)
	eventually(t, "it waits", func() bool { return w.waiters() == 1 })
	notify(t, pool, "other", "nobody listens")
	notify(t, pool, "news", "whatever a stranger may say")
	if d := released(t, slept); d != 0 {
		t.Errorf("woken, it sleeps for %s", d)
	}
}

func TestWakerLosesNoNotificationBetweenLookAndWait(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	w := wakeOn(t, l, "news", WakeConfig{PollInterval: never})
	heard(t, w)
	// The empty look was made; now a burst comes, and only then does the wait begin.
	for i := range 50 {
		notify(t, pool, "news", fmt.Sprint(i))
	}
	eventually(t, "all have arrived", func() bool { return l.Status().Received == 50 })
	if d := released(t, lookAgain(w, 1)); d != 0 {
		t.Errorf("woken, it sleeps for %s", d)
	}
	// One look has answered them all.
	w.calm()
	slept := lookAgain(w, 1)
	eventually(t, "it waits", func() bool { return w.waiters() == 1 })
	select {
	case <-slept:
		t.Error("the same burst has woken it twice")
	case <-time.After(20 * time.Millisecond):
	}
	w.Close()
	released(t, slept)
}

func TestWakerIsReleasedByClose(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	cfg := WakeConfig{PollInterval: never, UnhealthyInterval: 7 * time.Second}
	for name, end := range map[string]func(*Waker){
		"its own": func(w *Waker) {
			var closing sync.WaitGroup
			for range 3 {
				closing.Go(w.Close)
			}
			closing.Wait()
		},
		"the listener's": func(*Waker) {
			if err := l.Close(within(t)); err != nil {
				t.Error(err)
			}
		},
	} {
		w := wakeOn(t, startListener(t, pool), "news", cfg)
		if name == "the listener's" {
			w = wakeOn(t, l, "news", cfg)
		}
		heard(t, w)
		slept := lookAgain(w, 1)
		eventually(t, "it waits", func() bool { return w.waiters() == 1 })
		end(w)
		for range 2 { // the second does not even begin to wait
			if d := released(t, slept); d != 7*time.Second {
				t.Errorf("%s: watermill-sql sleeps for %s, want the interval of a plain poller", name, d)
			}
			slept = lookAgain(w, 1)
		}
		released(t, slept)
	}
}

func TestWakerPollsWhileNotificationsDoNotArrive(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	cfg := WakeConfig{PollInterval: never, UnhealthyInterval: time.Millisecond}

	w := wakeOn(t, startListener(t, pool, func(c *ListenerConfig) { c.Disabled = true }), "news", cfg)
	for range 3 {
		w.calm()
		released(t, lookAgain(w, 1))
	}

	// A listener that is lost amid the wait, and cannot come back.
	var once sync.Once
	l := startListener(t, pool, func(c *ListenerConfig) {
		c.Connect = func(ctx context.Context) (conn *pgx.Conn, err error) {
			err = errBroken
			once.Do(func() { conn, err = pgx.Connect(ctx, pool.Config().ConnString()+"&application_name=lost") })
			return conn, err
		}
	})
	w = wakeOn(t, l, "news", cfg)
	heard(t, w)
	slept := lookAgain(w, 1)
	eventually(t, "it waits", func() bool { return w.waiters() == 1 })
	if pgtest.KillBackends(t, pool, "lost%") == 0 {
		t.Fatal("no listener to kill")
	}
	released(t, slept)
	for range 3 {
		w.calm()
		released(t, lookAgain(w, 1))
	}
}

// After a long outage the first look that succeeds ends the listener's backoff.
func TestWakerTellsTheListenerThatTheDatabaseAnswers(t *testing.T) {
	t.Parallel()
	l := makeListener(t, ListenerConfig{ReconnectDelay: 1000 * time.Hour, Logger: (&logbook{}).logger(), Connect: func(context.Context) (*pgx.Conn, error) {
		return nil, errBroken
	}})
	w := wakeOn(t, l, "news", WakeConfig{UnhealthyInterval: time.Millisecond})
	for name, empty := range map[string]bool{"a message": false, "an empty look": true} {
		w.HandleError(watermill.NopLogger{}, false, errBroken)
		if len(l.hints) != 0 {
			t.Fatalf("%s: an error is taken for an answer", name)
		}
		w.HandleError(watermill.NopLogger{}, empty, nil)
		if len(l.hints) != 1 {
			t.Errorf("%s: the listener is not told", name)
		}
		l.forgetHints()
	}
}

func TestWakerLooksSoonAfterASignOfLife(t *testing.T) {
	t.Parallel()
	w := wakeOn(t, startListener(t, pgtest.Pool(t)), "news", WakeConfig{PollInterval: time.Minute})
	heard(t, w)
	w.HandleError(watermill.NopLogger{}, false, nil)
	for _, want := range []int64{5, 10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120, 10240, 20480, 40960, 60000, 60000} {
		_, wait, _ := w.enter(watermill.NopLogger{})
		w.leave(nil)
		if wait.Milliseconds() != want {
			t.Errorf("waits %s, want %d ms", wait, want)
		}
	}
	w.HandleError(watermill.NopLogger{}, false, errBroken)
	if _, wait, _ := w.enter(watermill.NopLogger{}); wait != settleStep {
		t.Errorf("waits %s after an error", wait)
	}
	w.leave(nil)
}

func TestWakerBacksOffFromErrors(t *testing.T) {
	t.Parallel()
	w := wakeOn(t, startListener(t, pgtest.Pool(t)), "news", WakeConfig{RetryDelay: time.Second})
	var book logbook
	logger := watermill.NewSlogLogger(book.logger())
	different := map[time.Duration]bool{}
	for range 2 {
		ceiling := 100 * time.Millisecond
		for range 20 {
			d := w.HandleError(logger, false, errBroken)
			if d < ceiling/2 || d > ceiling {
				t.Errorf("waits %s, want between half and all of %s", d, ceiling)
			}
			ceiling = min(2*ceiling, time.Second)
			different[d] = true
		}
		if d := w.HandleError(logger, false, nil); d != 0 {
			t.Errorf("waits %s after a message", d)
		}
	}
	if len(different) < 10 {
		t.Errorf("40 waits have only %d different lengths: no jitter", len(different))
	}
	if said := book.count("level=ERROR"); said != 2 {
		t.Errorf("two outages are logged %d times:\n%s", said, book.String())
	}
	for _, err := range []error{
		fmt.Errorf("query: %w", &pgconn.PgError{Code: "40001"}),
		fmt.Errorf("query: %w", &pgconn.PgError{Code: "40P01"}),
		errors.New("pq: could not serialize access due to concurrent update"),
	} {
		if d := w.HandleError(logger, false, err); d != 0 {
			t.Errorf("waits %s although another subscriber was faster: %v", d, err)
		}
	}
	if d := w.HandleError(logger, true, errBroken); d == 0 {
		t.Error("an error with no message is taken for an empty topic")
	}
}

func TestWakerSharedByMistakePolls(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := wakeOn(t, startListener(t, pool), "news", WakeConfig{PollInterval: never, UnhealthyInterval: 5 * time.Millisecond})
	heard(t, w)
	var book logbook
	logger := watermill.NewSlogLogger(book.logger())
	slept := lookAgain(w, 1)
	eventually(t, "the first waits", func() bool { return w.waiters() == 1 })
	for range 5 {
		w.calm()
		polled := make(chan time.Duration, 1)
		go func() { polled <- w.HandleError(logger, true, nil) }()
		released(t, polled) // without any notification
	}
	notify(t, pool, "news", "")
	released(t, slept)
	if said := book.count("share a bus.Waker"); said != 1 {
		t.Errorf("the mistake was logged %d times:\n%s", said, book.String())
	}
}

func TestWakerWakesAllWhoShareIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := wakeOn(t, startListener(t, pool), "news", WakeConfig{PollInterval: never, UnhealthyInterval: never})
	heard(t, w)
	slept := lookAgain(w, 3)
	eventually(t, "all wait", func() bool { return w.waiters() == 3 })
	w.calm()
	notify(t, pool, "news", "")
	for range 3 {
		released(t, slept)
	}
}

func TestWakeOnReportsAllMistakes(t *testing.T) {
	t.Parallel()
	_, err := WakeOn(nil, "", WakeConfig{PollInterval: -1, UnhealthyInterval: -1, RetryDelay: -1})
	wantMentioned(t, err, "listener of bus.WakeOn is nil", "channel name is empty", "WakeConfig.PollInterval", "WakeConfig.UnhealthyInterval", "WakeConfig.RetryDelay")

	l := startListener(t, pgtest.Pool(t))
	if err := l.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, err := WakeOn(l, "news", WakeConfig{}); !errors.Is(err, ErrClosed) {
		t.Errorf("on a closed listener: %v", err)
	}
}

// Whoever notifies without a message has the tables asked now and then, and as soon as there is a message that is over.
func TestWakerRationsNotificationsThatLie(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	w := wakeOn(t, l, "lies", WakeConfig{PollInterval: never, UnhealthyInterval: never})
	w.calm()
	released(t, lookAgain(w, 1)) // the catch-up that a subscription begins with
	noticed := func(at time.Time) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.noticed = at
	}
	rests := func() bool {
		defer noticed(time.Time{})
		noticed(time.Now().Add(time.Hour)) // as if it were this moment
		return w.rest() > 0
	}
	for i := range fruitless - 1 { // the catch-up is counted
		if rests() {
			t.Fatalf("it rests after %d", i)
		}
		w.calm()
		slept := lookAgain(w, 1)
		notify(t, pool, "lies", fmt.Sprint(i))
		released(t, slept)
	}
	noticed(time.Time{})
	w.calm()
	slept := lookAgain(w, 1)
	eventually(t, "it waits", func() bool { return w.waiters() == 1 })
	if !rests() {
		t.Error("it does not rest though nothing is ever found")
	}
	w.Close()
	released(t, slept)
	w.HandleError(watermill.NopLogger{}, false, nil) // a message
	if rests() {
		t.Error("it rests though there was a message")
	}
}
