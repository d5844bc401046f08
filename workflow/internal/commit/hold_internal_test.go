package commit

import (
	"errors"
	"log/slog"
	"slices"
	"testing"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// holding is a committer that nobody has opened, whose records wait as long as said.
func holding(limit time.Duration) *Committer {
	c := New(Config{Logger: slog.New(slog.DiscardHandler)})
	c.holdLimit = limit
	return c
}

func (c *Committer) queuedKinds() []kind {
	c.mu.Lock()
	defer c.mu.Unlock()
	var kinds []kind
	for _, op := range c.queue {
		kinds = append(kinds, op.kind)
	}
	return kinds
}

func ignore(struct{}, error) {}

// What a run does next enters the queue together with the record before it, so that no flush comes in between.
func TestARecordLeavesWithWhatFollowsIt(t *testing.T) {
	t.Parallel()
	c := holding(time.Hour)
	run, other := &Stream{}, &Stream{}
	want := func(when string, kinds ...kind) {
		t.Helper()
		if got := c.queuedKinds(); !slices.Equal(got, kinds) {
			t.Errorf("%s: kinds %v are queued, want %v", when, got, kinds)
		}
	}
	c.AppendWithNext(run, store.Append{}, ignore)
	c.Finish(other, store.Finish{}, ignore)
	c.Release(store.Fence{}, func(store.Named, error) {})
	want("another run's operations", kindFinish, kindRelease)
	c.Finish(run, store.Finish{}, ignore)
	want("its own", kindFinish, kindRelease, kindAppend, kindFinish)
	c.AppendWithNext(run, store.Append{}, ignore)
	c.AppendWithNext(run, store.Append{}, ignore)
	want("two records", kindFinish, kindRelease, kindAppend, kindFinish, kindAppend)
	c.Hurry(run)
	c.Hurry(run)
	want("hurried", kindFinish, kindRelease, kindAppend, kindFinish, kindAppend, kindAppend)
}

func TestARecordThatNothingFollowsLeavesByItself(t *testing.T) {
	t.Parallel()
	c := holding(defaultHoldLimit)
	c.AppendWithNext(&Stream{}, store.Append{}, ignore)
	for limit := time.Now().Add(30 * time.Second); len(c.queuedKinds()) == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(limit) {
			t.Fatal("it is held for ever")
		}
	}
}

func TestARecordHeldByAClosedCommitterIsRefused(t *testing.T) {
	t.Parallel()
	c := holding(defaultHoldLimit)
	c.end(&c.closed)
	refused := make(chan error, 1)
	c.AppendWithNext(&Stream{}, store.Append{}, func(_ struct{}, err error) { refused <- err })
	select {
	case err := <-refused:
		if !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	case <-time.After(30 * time.Second):
		t.Error("it is not answered")
	}
}
