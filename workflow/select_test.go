package workflow_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// offers is a workflow that chooses between an offer by message, a search and a deadline, and tells what became of the search.
func offers(search *workflow.Activity[string, string], wait time.Duration) *workflow.Workflow[string, string] {
	return workflow.Define("offers", func(ctx *workflow.Context, what string) (chosen string, err error) {
		found := search.Go(ctx, what)
		err = workflow.Select(ctx,
			workflow.OnResult(found, func(out string, err error) error { chosen = "found " + out; return err }),
			workflow.OnMessage("offers", func(m workflow.Message[string]) error { chosen = "offered " + m.Body; return nil }),
			workflow.OnMessage("bargains", func(m workflow.Message[string]) error { chosen = "bargain " + m.Body; return nil }),
			workflow.OnTimer(wait, func() error { chosen = "nothing"; return nil }),
			workflow.OnTimer(2*wait, func() error { chosen = "too late"; return nil }),
		)
		if err != nil {
			return "", err
		}
		// The choice is replayed after this.
		if _, err := workflow.Receive[int](ctx, "go"); err != nil {
			return "", err
		}
		if _, err := found.Get(ctx); errors.Is(err, workflow.ErrNotChosen) {
			chosen += ", search given up"
		}
		return chosen, nil
	})
}

// Each case wins once while the search is under way, which is therefore not parked, and once without; the choice is the same in
// the worker that made it and in the one that replays it.
func TestSelectChoosesOnce(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name  string
		wait  time.Duration
		act   func(ctx context.Context, e *workflow.Engine, id string) error
		hangs bool
		want  string
	}{
		{"result", time.Hour, func(context.Context, *workflow.Engine, string) error { return nil }, false, "found a boat"},
		{"message", time.Hour, func(ctx context.Context, e *workflow.Engine, id string) error {
			return e.SendTo(ctx, id, "offers", "a raft")
		}, true, "offered a raft, search given up"},
		{"second channel", time.Hour, func(ctx context.Context, e *workflow.Engine, id string) error {
			return e.SendTo(ctx, id, "bargains", "a raft")
		}, true, "bargain a raft, search given up"},
		{"timer", 50 * time.Millisecond, func(context.Context, *workflow.Engine, string) error { return nil }, true, "nothing, search given up"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ended := make(chan error, 10)
			search := workflow.DefineActivity("search", func(ctx context.Context, what string) (string, error) {
				if !test.hangs {
					return what, nil
				}
				<-ctx.Done()
				ended <- ctx.Err()
				return "", ctx.Err()
			})
			flow := offers(search, test.wait)
			one := startWorker(t, pool, []workflow.Definition{flow})
			ctx := testContext(t)
			run, err := flow.Start(ctx, one.Engine, "a boat")
			if err != nil {
				t.Fatal(err)
			}
			if err := test.act(ctx, one.Engine, run.ID()); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the choice is made", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_channels = '{go}'") == 1
			})
			if test.hangs {
				<-ended
			}
			one.shutdown(t)
			two := startWorker(t, pool, []workflow.Definition{flow})
			if err := two.SendTo(ctx, run.ID(), "go", 0); err != nil {
				t.Fatal(err)
			}
			if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != test.want {
				t.Fatalf("got %q, %v; want %q", got, err, test.want)
			}
			if n := count(t, pool, "select count(*) from romancy.history where kind = 'select'"); n != 1 {
				t.Errorf("%d choices recorded", n)
			}
		})
	}
}

// A parked Select is woken by a message on any of its channels, also when it is not in memory and when no notification arrives, and
// by its timer.
func TestParkedSelectIsWoken(t *testing.T) {
	t.Parallel()
	for name, options := range map[string][]workerOption{
		"in memory": nil, "evicted": {evicting}, "without notifications": {withoutNotify, evicting},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			flow := workflow.Define("chooser", func(ctx *workflow.Context, wait time.Duration) (got string, err error) {
				err = workflow.Select(ctx,
					workflow.OnMessage("a", func(m workflow.Message[string]) error { got = "a:" + m.Body; return nil }),
					workflow.OnMessage("b", func(m workflow.Message[string]) error { got = "b:" + m.Body; return nil }),
					workflow.OnTimer(wait, func() error { got = "timer"; return nil }),
				)
				return got, err
			})
			w := startWorker(t, pool, []workflow.Definition{flow}, options...)
			ctx := testContext(t)
			want := map[string]string{}
			var runs []*workflow.Run[string]
			for _, channel := range []string{"a", "b", "timer", "a", "b"} {
				wait := time.Hour
				if channel == "timer" {
					wait = 300 * time.Millisecond
				}
				run, err := flow.Start(ctx, w.Engine, wait)
				if err != nil {
					t.Fatal(err)
				}
				runs = append(runs, run)
				want[run.ID()] = channel
			}
			eventually(t, "all are parked", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status <> 'running' and status <> 'ready'") == 5
			})
			for _, run := range runs {
				if channel := want[run.ID()]; channel != "timer" {
					if err := w.SendTo(ctx, run.ID(), channel, "x"); err != nil {
						t.Fatal(err)
					}
					want[run.ID()] += ":x"
				}
			}
			for _, run := range runs {
				if got, err := run.Result(ctx); err != nil || got != want[run.ID()] {
					t.Errorf("got %q, %v; want %q", got, err, want[run.ID()])
				}
			}
		})
	}
}

// A message that is there when the deadline passes goes before it, on whichever channel, also if nobody was told of it.
func TestMessageGoesBeforeTheTimerOfAParkedSelect(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("chooser", func(ctx *workflow.Context, wait time.Duration) (got string, err error) {
		note := func(m workflow.Message[string]) error { got = m.Channel; return nil }
		err = workflow.Select(ctx, workflow.OnMessage("a", note), workflow.OnMessage("b", note), workflow.OnMessage("c", note),
			workflow.OnTimer(wait, func() error { got = "timer"; return nil }))
		return got, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is parked", func() bool { return w.Status().Parked == 1 })
	// Past the engine, which would tell.
	if _, err := pool.Exec(ctx, "insert into romancy.mailbox (channel, mode, receiver, payload) values ('b', 'direct', $1, '\"x\"')", run.ID()); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != "b" {
		t.Fatalf("got %q, %v; want the message on b", got, err)
	}
}

// A loser that had its effect all the same is undone when the run fails.
func TestLoserOfASelectIsUndone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var undone tally
	release := make(chan struct{})
	book := workflow.DefineActivity("book", func(_ context.Context, name string) (string, error) {
		if name == "slow" {
			<-release // and takes no notice of being given up
		}
		return name, nil
	}).WithCompensation(func(_ context.Context, _, name string) error { undone.add(name); return nil })
	flow := workflow.Define("two bookings", func(ctx *workflow.Context, _ int) (int, error) {
		slow, fast := book.Go(ctx, "slow"), book.Go(ctx, "fast")
		note := func(string, error) error { return nil }
		if err := workflow.Select(ctx, workflow.OnResult(slow, note), workflow.OnResult(fast, note)); err != nil {
			return 0, err
		}
		close(release)
		if _, err := slow.Get(ctx); !errors.Is(err, workflow.ErrNotChosen) {
			return 0, err
		}
		return 0, errors.New("nobody travels")
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err == nil || !strings.Contains(err.Error(), "nobody travels") {
		t.Fatalf("got %v", err)
	}
	if undone.of("slow") != 1 || undone.of("fast") != 1 {
		t.Errorf("undone: slow %d times, fast %d times; want once each", undone.of("slow"), undone.of("fast"))
	}
}

func TestSelectReportsAllMistakes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("mistaken", func(ctx *workflow.Context, _ int) (string, error) {
		none := workflow.Select(ctx)
		bad := workflow.Select(ctx, workflow.Case{}, workflow.OnResult[int](nil, nil), workflow.OnMessage("", func(workflow.Message[int]) error { return nil }))
		return none.Error() + "\n" + bad.Error(), nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	got, err := run.Result(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, said := range []string{"give at least one", "case 0 is empty", "case 1: OnResult: the future is nil", "case 2: channel is empty"} {
		if !strings.Contains(got, said) {
			t.Errorf("%q does not say %q", got, said)
		}
	}
}
