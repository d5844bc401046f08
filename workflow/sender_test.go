package workflow_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A message says which run has sent it, directly or by publishing, and when by the database's clock; one from outside says that nobody has.
func TestMessageTellsItsSenderAndWhen(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	type told struct {
		Sender string
		SentAt time.Time
	}
	receiver := workflow.Define("receiver", func(ctx *workflow.Context, messages int) ([]told, error) {
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return nil, err
		}
		var all []told
		for range messages {
			for _, channel := range []string{"letters", "news"} {
				message, err := workflow.Receive[int](ctx, channel)
				if err != nil {
					return nil, err
				}
				all = append(all, told{message.Sender, message.SentAt})
			}
		}
		return all, nil
	})
	sender := workflow.Define("sender", func(ctx *workflow.Context, to string) (int, error) {
		if err := workflow.SendTo(ctx, to, "letters", 1); err != nil {
			return 0, err
		}
		return 1, workflow.Publish(ctx, "news", 1)
	})
	w := startWorker(t, pool, []workflow.Definition{receiver, sender})
	ctx := testContext(t)
	clock := func() (now time.Time) {
		if err := pool.QueryRow(ctx, "select clock_timestamp()").Scan(&now); err != nil {
			t.Fatal(err)
		}
		return now
	}
	waiting, err := receiver.Start(ctx, w.Engine, 3)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the receiver is subscribed", func() bool { return count(t, pool, "select count(*) from romancy.subscriptions") == 1 })
	moments := []time.Time{clock()}
	run, err := sender.Start(ctx, w.Engine, waiting.ID(), workflow.WithID("the sender"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	moments = append(moments, clock())
	if err := w.SendTo(ctx, waiting.ID(), "letters", 2); err != nil {
		t.Fatal(err)
	}
	if err := w.Publish(ctx, "news", 2); err != nil {
		t.Fatal(err)
	}
	moments = append(moments, clock())
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if err := w.SendToTx(ctx, tx, waiting.ID(), "letters", 3); err != nil {
			return fmt.Errorf("send: %w", err)
		}
		return w.PublishTx(ctx, tx, "news", 3)
	}); err != nil {
		t.Fatal(err)
	}
	moments = append(moments, clock())
	all, err := waiting.Result(ctx)
	if err != nil || len(all) != 6 {
		t.Fatalf("got %v, %v", all, err)
	}
	for i, message := range all {
		want := ""
		if i < 2 {
			want = "the sender"
		}
		if message.Sender != want {
			t.Errorf("message %d says that %q has sent it, want %q", i, message.Sender, want)
		}
		if after, before := moments[i/2], moments[i/2+1]; message.SentAt.Before(after) || message.SentAt.After(before) {
			t.Errorf("message %d says that it was sent at %s, want a moment between %s and %s", i, message.SentAt, after, before)
		}
	}
}
