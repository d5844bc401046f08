package workflow_test

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// subscriber subscribes in the mode given as "mode channel", and stays until it is told to go on: to unsubscribe, or to end.
var subscriber = workflow.Define("subscriber", func(ctx *workflow.Context, how string) (string, error) {
	mode, channel, _ := strings.Cut(how, " ")
	err := workflow.Subscribe(ctx, channel, workflow.Mode(mode))
	if errors.Is(err, workflow.ErrModeConflict) {
		return "conflict", nil
	}
	if err != nil {
		return "", err
	}
	for {
		message, err := workflow.Receive[string](ctx, "orders")
		if err != nil {
			return "", err
		}
		if message.Body == "leave" {
			if err := workflow.Unsubscribe(ctx, channel); err != nil {
				return "", err
			}
			continue
		}
		if message.Body == "fail" {
			return "", errors.New("told to")
		}
		return "subscribed", nil
	}
})

// While anybody is subscribed to a channel it has that mode, and others get a typed error; when the last one has unsubscribed,
// completed or failed, it may have the other.
func TestChannelsModeIsFreeWhenNobodyIsSubscribed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{subscriber})
	ctx := testContext(t)
	subscribers := func(n int) func() bool {
		return func() bool {
			return count(t, pool, "select count(*) from romancy.subscriptions where channel = 'news'") == n
		}
	}
	start := func(mode workflow.Mode) *workflow.Run[string] {
		t.Helper()
		run, err := subscriber.Start(ctx, w.Engine, string(mode)+" news")
		if err != nil {
			t.Fatal(err)
		}
		return run
	}
	tell := func(run *workflow.Run[string], order string) {
		t.Helper()
		if err := w.SendTo(ctx, run.ID(), "orders", order); err != nil {
			t.Fatal(err)
		}
	}
	modes := []workflow.Mode{workflow.Broadcast, workflow.Competing}
	for i, leave := range []string{"leave", "end", "fail", "leave"} {
		mode, other := modes[i%2], modes[1-i%2]
		first, second := start(mode), start(mode)
		eventually(t, fmt.Sprintf("two are subscribed in %s mode", mode), subscribers(2))
		for n, run := range []*workflow.Run[string]{first, second} {
			if got, err := start(other).Result(ctx); err != nil || got != "conflict" {
				t.Fatalf("subscribed in %s mode while %d are in %s mode: %q, %v", other, 2-n, mode, got, err)
			}
			tell(run, leave)
			eventually(t, "one less is subscribed", subscribers(1-n))
		}
	}
}

// Subscribers that come at the same moment, on different workers or on one, agree on a channel's mode all the same.
func TestChannelHasOneModeHoweverManySubscribeAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	channels := pgtest.Soak(500, 60)
	workers := []*worker{startWorker(t, pool, []workflow.Definition{subscriber}), startWorker(t, pool, []workflow.Definition{subscriber})}
	ctx := testContext(t)
	var wg sync.WaitGroup
	for i := range channels {
		for n := range 4 {
			wg.Go(func() {
				mode := []workflow.Mode{workflow.Broadcast, workflow.Competing}[n/2]
				if _, err := subscriber.Start(ctx, workers[n%2].Engine, fmt.Sprintf("%s news-%d", mode, i)); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	eventually(t, "all are subscribed, or could not be", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status in ('ready', 'running')") == 0
	})
	if n := count(t, pool, "select count(distinct channel) from romancy.subscriptions"); n != channels {
		t.Errorf("%d of %d channels have a subscriber", n, channels)
	}
	if n := count(t, pool, "select count(*) from (select channel from romancy.subscriptions group by channel having count(distinct mode) > 1) c"); n != 0 {
		t.Errorf("%d of %d channels have two modes at once", n, channels)
	}
}
