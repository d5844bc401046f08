package workflow_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// ReceiveMany takes what is there, in order, at most as many as asked for, and gives a replay the same.
func TestReceiveManyTakesWhatIsThere(t *testing.T) {
	t.Parallel()
	for _, mode := range []workflow.Mode{workflow.Direct, workflow.Competing, workflow.Broadcast} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			ctx := testContext(t)
			pool := pgtest.Pool(t)
			var seen journey
			flow := workflow.Define("batches", func(ctx *workflow.Context, _ int) (int, error) {
				seen.begin()
				if err := workflow.Subscribe(ctx, "numbers", mode); err != nil {
					return 0, err
				}
				if _, err := workflow.Receive[int](ctx, "begin"); err != nil {
					return 0, err
				}
				total := 0
				for total < 25 {
					batch, err := workflow.ReceiveMany[int](ctx, "numbers", 10)
					if err != nil {
						return 0, err
					}
					for _, message := range batch {
						seen.notef("%d", message.Body)
					}
					seen.notef("/")
					total += len(batch)
				}
				_, err := workflow.ReceiveMany[int](ctx, "numbers", 10, workflow.WithTimeout(time.Millisecond))
				seen.notef("%v", errors.Is(err, workflow.ErrTimeout))
				_, err = workflow.Receive[int](ctx, "go")
				return total, err
			})
			one := startWorker(t, pool, []workflow.Definition{flow})
			run, err := flow.Start(ctx, one.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			waitsOn := func(channel string) {
				eventually(t, "it waits on "+channel, func() bool {
					return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_channels = array[$1]", channel) == 1
				})
			}
			waitsOn("begin")
			for n := range 25 {
				if mode == workflow.Direct {
					err = one.SendTo(ctx, run.ID(), "numbers", n)
				} else {
					err = one.Publish(ctx, "numbers", n)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if err := one.SendTo(ctx, run.ID(), "begin", 0); err != nil {
				t.Fatal(err)
			}
			waitsOn("go")
			one.shutdown(t)
			two := startWorker(t, pool, []workflow.Definition{flow})
			if err := two.SendTo(ctx, run.ID(), "go", 0); err != nil {
				t.Fatal(err)
			}
			if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != 25 {
				t.Fatalf("got %d, %v", got, err)
			}
			const want = "[0 1 2 3 4 5 6 7 8 9 / 10 11 12 13 14 15 16 17 18 19 / 20 21 22 23 24 / true]"
			executions := seen.executions()
			if last := executions[len(executions)-1]; fmt.Sprint(executions[0]) != want || fmt.Sprint(last) != want {
				t.Errorf("received %v, and replayed %v; want %s", executions[0], last, want)
			}
		})
	}
}

// A channel in direct mode brings a run what is sent to it and nothing that is published, and is closed to other modes.
func TestDirectModeKeepsAChannelToItself(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("direct", func(ctx *workflow.Context, mode workflow.Mode) (string, error) {
		if err := workflow.Subscribe(ctx, "orders", mode); err != nil {
			return "", err
		}
		message, err := workflow.Receive[string](ctx, "orders")
		return message.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, workflow.Direct)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is subscribed", func() bool {
		return count(t, pool, "select count(*) from romancy.subscriptions where mode = 'direct'") == 1
	})
	if err := w.Publish(ctx, "orders", "published"); err != nil {
		t.Fatal(err)
	}
	for _, mode := range []workflow.Mode{workflow.Broadcast, workflow.Competing} {
		other, err := flow.Start(ctx, w.Engine, mode)
		if err != nil {
			t.Fatal(err)
		}
		failed := new(workflow.RunError)
		if _, err := other.Result(ctx); !errors.As(err, &failed) || failed.Status != workflow.StatusFailed {
			t.Errorf("subscribed in %s mode beside direct: %v", mode, err)
		}
	}
	if err := w.SendTo(ctx, run.ID(), "orders", "sent"); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != "sent" {
		t.Fatalf("got %q, %v", got, err)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Errorf("%d messages left that nobody can receive", n)
	}
}
