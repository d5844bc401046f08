package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Receivers that park while publishers publish miss nothing: whichever comes first, the message is taken.
func TestReceiversRacingPublishersMissNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const receivers = 1000
	flow := workflow.Define("receiver", func(ctx *workflow.Context, _ int) (int, error) {
		message, err := workflow.Receive[int](ctx, "numbers")
		return message.Body, err
	})
	// A fallback interval this long never helps out.
	calm := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	one := startWorker(t, pool, []workflow.Definition{flow}, calm)
	two := startWorker(t, pool, []workflow.Definition{flow}, calm)
	ctx := testContext(t)
	var wg sync.WaitGroup
	gate := make(chan struct{}, 200)
	for i := range receivers {
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			id := fmt.Sprintf("receiver-%d", i)
			run, err := flow.Start(ctx, one.Engine, i, workflow.WithID(id))
			if err != nil {
				t.Errorf("start: %v", err)
				return
			}
			if err := two.SendTo(ctx, id, "numbers", i); err != nil {
				t.Errorf("send: %v", err)
				return
			}
			if got, err := run.Result(ctx); err != nil || got != i {
				t.Errorf("receiver %d got %d, %v", i, got, err)
			}
		})
	}
	wg.Wait()
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Errorf("%d messages left", n)
	}
}

func TestCompetingMessagesReachExactlyOneReceiver(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const workersPerEngine, messages = 5, 200
	var received tally
	take := workflow.DefineActivity("take", func(_ context.Context, n int) (int, error) {
		received.add(fmt.Sprint(n))
		return n, nil
	})
	flow := workflow.Define("consumer", func(ctx *workflow.Context, _ int) (int, error) {
		if err := workflow.Subscribe(ctx, "jobs", workflow.Competing); err != nil {
			return 0, err
		}
		for taken := 0; ; taken++ {
			message, err := workflow.Receive[int](ctx, "jobs")
			if err != nil || message.Body < 0 {
				return taken, err
			}
			if _, err := take.Execute(ctx, message.Body); err != nil {
				return taken, err
			}
		}
	})
	engines := []*worker{startWorker(t, pool, []workflow.Definition{flow}), startWorker(t, pool, []workflow.Definition{flow})}
	ctx := testContext(t)
	var runs []*workflow.Run[int]
	for i := range 2 * workersPerEngine {
		run, err := flow.Start(ctx, engines[i%2].Engine, i)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run)
	}
	eventually(t, "all are subscribed", func() bool {
		return count(t, pool, "select count(*) from romancy.subscriptions") == len(runs)
	})
	for i := range messages {
		if err := engines[i%2].Publish(ctx, "jobs", i); err != nil {
			t.Fatal(err)
		}
	}
	for range runs {
		if err := engines[0].Publish(ctx, "jobs", -1); err != nil {
			t.Fatal(err)
		}
	}
	total := 0
	for _, run := range runs {
		taken, err := run.Result(ctx)
		if err != nil {
			t.Fatal(err)
		}
		total += taken
	}
	if total != messages {
		t.Errorf("%d messages taken, want %d", total, messages)
	}
	for i := range messages {
		if n := received.of(fmt.Sprint(i)); n != 1 {
			t.Errorf("message %d was received %d times", i, n)
		}
	}
	if n := count(t, pool, "select count(*) from romancy.subscriptions"); n != 0 {
		t.Errorf("%d subscriptions of ended runs left", n)
	}
}

func TestBroadcastReachesEverySubscriberOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const subscribers, messages = 10, 20
	flow := workflow.Define("subscriber", func(ctx *workflow.Context, _ int) ([]int, error) {
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return nil, err
		}
		var got []int
		for len(got) < messages {
			message, err := workflow.Receive[int](ctx, "news")
			if err != nil {
				return got, err
			}
			got = append(got, message.Body)
		}
		_, err := workflow.Receive[int](ctx, "news", workflow.WithTimeout(300*time.Millisecond))
		if !errors.Is(err, workflow.ErrTimeout) {
			return got, fmt.Errorf("one message too many: %w", err)
		}
		return got, nil
	})
	engines := []*worker{startWorker(t, pool, []workflow.Definition{flow}), startWorker(t, pool, []workflow.Definition{flow})}
	ctx := testContext(t)
	var runs []*workflow.Run[[]int]
	for i := range subscribers {
		run, err := flow.Start(ctx, engines[i%2].Engine, i)
		if err != nil {
			t.Fatal(err)
		}
		runs = append(runs, run)
	}
	eventually(t, "all are subscribed", func() bool {
		return count(t, pool, "select count(*) from romancy.subscriptions") == subscribers
	})
	for i := range messages {
		if err := engines[0].Publish(ctx, "news", i); err != nil {
			t.Fatal(err)
		}
	}
	for _, run := range runs {
		got, err := run.Result(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for i, n := range got {
			if n != i {
				t.Fatalf("received %v, want 0 to %d in order", got, messages-1)
			}
		}
	}
}

// A direct message waits for a receiver that has not asked for it yet, nor even begun.
func TestDirectMessageIsKeptUntilItIsAskedFor(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	proceed := make(chan struct{})
	hold := workflow.DefineActivity("hold", func(context.Context, int) (int, error) { <-proceed; return 0, nil })
	flow := workflow.Define("late", func(ctx *workflow.Context, n int) ([]int, error) {
		if _, err := hold.Execute(ctx, n); err != nil {
			return nil, err
		}
		first, err := workflow.Receive[int](ctx, "numbers")
		if err != nil {
			return nil, err
		}
		second, err := workflow.Receive[int](ctx, "numbers")
		return []int{first.Body, second.Body}, err
	})
	client := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, client.Engine, 0, workflow.WithID("late"))
	if err != nil {
		t.Fatal(err)
	}
	if err := client.SendTo(ctx, "late", "numbers", 1); err != nil {
		t.Fatal(err) // nobody executes it yet
	}
	startWorker(t, pool, []workflow.Definition{flow})
	eventually(t, "the run has begun", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'running'") == 1
	})
	if err := client.SendTo(ctx, "late", "numbers", 2); err != nil {
		t.Fatal(err)
	}
	close(proceed)
	got, err := run.Result(ctx)
	if err != nil || len(got) != 2 || got[0] != 1 || got[1] != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	if err := client.SendTo(ctx, "late", "numbers", 3); !errors.Is(err, workflow.ErrUndeliverable) {
		t.Fatalf("send to an ended run: %v, want ErrUndeliverable", err)
	}
	if err := client.SendTo(ctx, "nobody", "numbers", 3); !errors.Is(err, workflow.ErrUndeliverable) {
		t.Fatalf("send to no run: %v, want ErrUndeliverable", err)
	}
}

// What is published in an activity's transaction wakes the receiver after the commit, and nobody after a rollback.
func TestPublishInAnActivitysTransactionFollowsIt(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	receiver := workflow.Define("receiver", func(ctx *workflow.Context, _ int) (string, error) {
		message, err := workflow.Receive[string](ctx, "results")
		return message.Body, err
	})
	var engine *workflow.Engine
	attempts := 0
	announce := workflow.DefineActivity("announce", func(ctx context.Context, to string) (int, error) {
		attempts++
		if err := engine.SendToTx(ctx, workflow.Tx(ctx), to, "results", fmt.Sprintf("attempt %d", attempts)); err != nil {
			return 0, err
		}
		if attempts == 1 {
			return 0, errors.New("rolled back")
		}
		return attempts, nil
	}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 3, InitialInterval: time.Millisecond}))
	sender := workflow.Define("sender", func(ctx *workflow.Context, to string) (int, error) { return announce.Execute(ctx, to) })
	w := startWorker(t, pool, []workflow.Definition{receiver, sender},
		configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour }))
	engine = w.Engine
	ctx := testContext(t)
	waiting, err := receiver.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the receiver is parked", func() bool { return w.Status().Parked == 1 })
	if _, err := sender.Start(ctx, w.Engine, waiting.ID()); err != nil {
		t.Fatal(err)
	}
	if got, err := waiting.Result(ctx); err != nil || got != "attempt 2" {
		t.Fatalf("got %q, %v: want the message of the attempt that committed", got, err)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Fatalf("%d messages left", n)
	}
}

// Everything that belongs to a caller's transaction happens if and when it commits.
func TestCallersTransactionDecides(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("receiver", func(ctx *workflow.Context, _ int) (string, error) {
		message, err := workflow.Receive[string](ctx, "results")
		return message.Body, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour }))
	ctx := testContext(t)
	rolledBack := errors.New("no")
	err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := flow.StartTx(ctx, tx, w.Engine, 0, workflow.WithID("never")); err != nil {
			return err
		}
		return rolledBack
	})
	if !errors.Is(err, rolledBack) {
		t.Fatal(err)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		if _, err := flow.StartTx(ctx, tx, w.Engine, 0, workflow.WithID("once")); err != nil {
			return err
		}
		again, err := flow.StartTx(ctx, tx, w.Engine, 0, workflow.WithID("once"))
		if err == nil && !again.Existing() {
			return errors.New("the second start of one id is a new run")
		}
		if err != nil {
			return err
		}
		return w.SendToTx(ctx, tx, "once", "results", "hello")
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, err := flow.Run(w.Engine, "once").Result(ctx); err != nil || got != "hello" {
		t.Fatalf("got %q, %v", got, err)
	}
	if _, err := flow.Run(w.Engine, "never").Result(ctx); !errors.Is(err, workflow.ErrNotFound) {
		t.Fatalf("result of a run rolled back: %v, want ErrNotFound", err)
	}
}

// A competitor that is woken for a published message and takes one sent to it alone, whose notification is still on the way,
// leaves the published one to another.
func TestCompetitorWithMailOfItsOwnLeavesTheSharedMessageToOthers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const pairs = 20
	flow := workflow.Define("competitor", func(ctx *workflow.Context, channel string) (string, error) {
		if err := workflow.Subscribe(ctx, channel, workflow.Competing); err != nil {
			return "", err
		}
		message, err := workflow.Receive[string](ctx, channel)
		return message.Body, err
	})
	// Without sweeps, which would find the message in the end.
	one := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) {
		c.Lease, c.FallbackInterval = time.Second, time.Hour
	}))
	ctx := testContext(t)
	for i := range 2 * pairs {
		if _, err := flow.Start(ctx, one.Engine, fmt.Sprint("pair-", i/2), workflow.WithID(fmt.Sprint("run-", i))); err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "all are parked, with a worker that is known to listen", func() bool {
		return one.Status().Parked == 2*pairs && count(t, pool, "select count(*) from romancy.workers where listening") == 1
	})
	if _, err := pool.Exec(ctx, `insert into romancy.mailbox (channel, mode, receiver, payload)
		select 'pair-' || i, 'direct', 'run-' || 2 * i, '"own"' from generate_series(0, $1::integer - 1) i`, pairs); err != nil {
		t.Fatal(err)
	}
	// In a transaction: its notification is all that tells of it.
	if err := pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		var errs []error
		for i := range pairs {
			errs = append(errs, one.PublishTx(ctx, tx, fmt.Sprint("pair-", i), "shared"))
		}
		return errors.Join(errs...)
	}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "one of each pair has a message", func() bool {
		return count(t, pool, "select count(distinct name) from romancy.history where kind = 'receive'") == pairs
	})
	if _, err := pool.Exec(ctx, `select pg_notify('romancy_channel_message',
			json_build_object('channel_name', 'pair-' || i, 'message_id', 1, 'target_instance_id', 'run-' || 2 * i)::text)
		from generate_series(0, $1::integer - 1) i`, pairs); err != nil {
		t.Fatal(err)
	}
	waitForRuns(t, pool, 2*pairs)
}

// With every notification lost, all of it still happens, later.
func TestEverythingHappensWithoutNotifications(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("waiting", func(ctx *workflow.Context, _ int) (string, error) {
		if err := workflow.Sleep(ctx, 10*time.Millisecond); err != nil {
			return "", err
		}
		_, err := workflow.Receive[string](ctx, "nothing", workflow.WithTimeout(20*time.Millisecond))
		if !errors.Is(err, workflow.ErrTimeout) {
			return "", err
		}
		message, err := workflow.Receive[string](ctx, "words")
		return message.Body, err
	})
	soon := configured(func(c *workflow.Config) { c.FallbackInterval = 100 * time.Millisecond })
	startWorker(t, pool, []workflow.Definition{flow}, withoutNotify, soon)
	client := startWorker(t, pool, []workflow.Definition{flow}, withoutNotify, soon,
		configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, client.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := client.SendTo(ctx, run.ID(), "words", "late but here"); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != "late but here" {
		t.Fatalf("got %q, %v", got, err)
	}
}
