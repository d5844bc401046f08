package workflow

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// Callers who give up leave behind what they have queued. In an outage that they try again and again to get through, no more
// than maxIntake is kept, and the rest are told why.
func TestCallersThatGiveUpInAnOutageQueueNoMoreThanTheIntake(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proxy := pgtest.NewProxy(t, pool.Config().ConnString())
	flow := Define("queued", func(_ *Context, n int) (int, error) { return n, nil })
	engine := startAlone(t, Config{Pool: pgtest.Connect(t, proxy.URL()), Workflows: []Definition{flow}, ClientOnly: true})
	t.Cleanup(proxy.Resume) // or it could not shut down
	proxy.Stall()
	const callers, beyond = 20, 2000
	var turned atomic.Int64
	var all sync.WaitGroup
	for range callers {
		all.Go(func() {
			for told := 0; told < (maxIntake+beyond)/callers; {
				impatient, giveUp := context.WithTimeout(t.Context(), 5*time.Millisecond)
				_, err := flow.Start(impatient, engine, 0)
				giveUp()
				switch {
				case err == nil:
					t.Error("started without a database")
					return
				case strings.Contains(err.Error(), "are waiting to be written"):
					turned.Add(1)
				case !errors.Is(err, ErrOutcomeUnknown): // its time was over before it came to anything
					continue
				}
				told++
			}
		})
	}
	all.Wait()
	if got := turned.Load(); got != beyond { // the others were told that their contexts have ended
		t.Errorf("%d were told that too much is waiting, want %d", got, beyond)
	}
	proxy.Resume()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := engine.Shutdown(ctx); err != nil { // it writes what is queued
		t.Fatal(err)
	}
	var written int
	if err := pool.QueryRow(ctx, "select count(*) from romancy.instances").Scan(&written); err != nil {
		t.Fatal(err)
	}
	if written != maxIntake {
		t.Errorf("%d starts were queued, want %d", written, maxIntake)
	}
}
