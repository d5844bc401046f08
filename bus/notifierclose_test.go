package bus

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// endedContext is what a shutdown past its limit has to give.
func endedContext() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}

func TestNotifierSendsWhatIsQueuedWhenItIsClosedWithAnEndedContext(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := subscribe(t, startListener(t, pool), 0, "handed over")
	n := startNotifier(t, pool, func(c *NotifierConfig) { c.Window = time.Hour })
	n.Notify("handed over", "first")
	next(t, s) // from here on what is queued stays so until Close
	for i := range 100 {
		n.Notify("handed over", fmt.Sprint(i))
	}
	if err := n.Close(endedContext()); err != nil {
		t.Error(err)
	}
	for i := range 100 {
		if note := next(t, s); note.Payload != fmt.Sprint(i) {
			t.Fatalf("got %+v, want number %d", note, i)
		}
	}
}

// Nothing but the limit of Close itself ends the wait for a server that does not answer.
func TestNotifierClosedWithAnEndedContextGivesUpOnASilentServer(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proxy := pgtest.NewProxy(t, pool.Config().ConnString())
	s := subscribe(t, startListener(t, pool), 0, "handed over")
	n := startNotifier(t, pgtest.Connect(t, proxy.URL()))
	n.Notify("handed over", "first")
	next(t, s)
	proxy.Stall()
	n.Notify("handed over", "second")
	closed := make(chan error, 1)
	go func() { closed <- n.Close(endedContext()) }()
	select {
	case err := <-closed:
		if err == nil {
			t.Error("Close lost a notification without an error")
		}
	case <-time.After(sendTimeout - time.Second): // after which the statement would be given up anyway
		t.Error("Close waits for a server that does not answer")
	}
	proxy.Resume()
}
