package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// reader receives one letter after the other and returns the bodies when it gets "end".
var reader = workflow.Define("reader", func(ctx *workflow.Context, mode string) (string, error) {
	if mode != "" {
		if err := workflow.Subscribe(ctx, "letters", workflow.Mode(mode)); err != nil {
			return "", err
		}
	}
	var got []string
	for {
		letter, err := workflow.Receive[string](ctx, "letters")
		if err != nil || letter.Body == "end" {
			return strings.Join(got, " "), err
		}
		got = append(got, letter.Body)
	}
})

func letters(t *testing.T, pool *pgxpool.Pool) int {
	t.Helper()
	return count(t, pool, "select count(*) from romancy.mailbox")
}

// The key belongs to one receiver and one channel: what is sent under it to others, or published, is another message.
func TestOneMessageIsSentUnderAKey(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	client := startWorker(t, pool, []workflow.Definition{reader}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	for _, id := range []string{"a", "b"} {
		if _, err := reader.Start(ctx, client.Engine, "", workflow.WithID(id)); err != nil {
			t.Fatal(err)
		}
	}
	send := func(id, channel, key string) func(string) error {
		return func(body string) error { return client.SendTo(ctx, id, channel, body, workflow.WithSendKey(key)) }
	}
	publish := func(channel, key string) func(string) error {
		return func(body string) error { return client.Publish(ctx, channel, body, workflow.WithSendKey(key)) }
	}
	for i, scope := range []func(string) error{
		send("a", "letters", "1"), send("a", "letters", "2"), send("b", "letters", "1"), send("a", "parcels", "1"),
		publish("letters", "1"), publish("parcels", "1"), publish("parcels", "11"),
	} {
		for _, body := range []string{"first", "second", "third"} {
			if err := scope(body); err != nil {
				t.Fatal(err)
			}
		}
		if n := letters(t, pool); n != i+1 {
			t.Fatalf("scope %d: %d messages were sent, want %d", i, n, i+1)
		}
	}
	if n := count(t, pool, `select count(*) from romancy.mailbox where payload #>> '{}' = 'first'`); n != letters(t, pool) {
		t.Errorf("%d messages are the first under their key", n)
	}
	for key, says := range map[string]string{"": "empty", strings.Repeat("x", 256): "at most 255", "a\x00b": "NUL", "\xff": "UTF-8"} {
		if err := send("a", "letters", key)("x"); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("key %.10q: %v, want it to say %q", key, err, says)
		}
	}
}

// Many senders in two processes, several in one flush of each: one message a key, and no sender hears of an error.
func TestConcurrentSendersOfOneKeySendOneMessage(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("repeats", func(ctx *workflow.Context, key string) (int, error) {
		return 0, workflow.Publish(ctx, "letters", "from a run", workflow.WithSendKey(key))
	})
	one, two := startWorker(t, pool, []workflow.Definition{flow}), startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	const keys, senders = 40, 6
	var wg sync.WaitGroup
	for key := range keys {
		for n := range senders {
			wg.Go(func() {
				w, name := []*worker{one, two}[n%2], fmt.Sprint("key-", key)
				if n < 4 {
					if err := w.Publish(ctx, "letters", n, workflow.WithSendKey(name)); err != nil {
						t.Error(err)
					}
					return
				}
				run, err := flow.Start(ctx, w.Engine, name)
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := run.Result(ctx); err != nil {
					t.Error(err)
				}
			})
		}
	}
	wg.Wait()
	if n := letters(t, pool); n != keys {
		t.Errorf("%d messages under %d keys", n, keys)
	}
}

// While a transaction that has sent under a key is open, others wait for it, and delay nobody else: when it is rolled back
// one of them sends, when it commits none does.
func TestOpenTransactionHoldsItsSendKeyAlone(t *testing.T) {
	t.Parallel()
	for _, commits := range []bool{true, false} {
		t.Run(fmt.Sprintf("commits=%t", commits), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t, func(c *pgxpool.Config) { c.MaxConns = 8 })
			inside := workflow.Define("inside", func(ctx *workflow.Context, _ int) (int, error) {
				return 0, workflow.Publish(ctx, "letters", "inside", workflow.WithSendKey("k"))
			})
			w := startWorker(t, pool, []workflow.Definition{inside})
			ctx := testContext(t)
			tx, err := pool.Begin(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = tx.Rollback(ctx) }()
			for range 2 { // the second is nothing
				if err := w.PublishTx(ctx, tx, "letters", "transaction", workflow.WithSendKey("k")); err != nil {
					t.Fatal(err)
				}
			}
			brief, cancel := context.WithTimeout(ctx, 50*time.Millisecond)
			defer cancel()
			if err := w.Publish(brief, "letters", "impatient", workflow.WithSendKey("k")); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the impatient sender: %v", err)
			}
			run, err := inside.Start(ctx, w.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error, 3)
			go func() { done <- w.Publish(ctx, "letters", "outside", workflow.WithSendKey("k")) }()
			go func() {
				done <- pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
					return w.PublishTx(ctx, tx, "letters", "other transaction", workflow.WithSendKey("k"))
				})
			}()
			go func() { _, err := run.Result(ctx); done <- err }()
			for i := range 20 { // others go on, under keys and without
				if err := errors.Join(w.Publish(ctx, "parcels", i), w.Publish(ctx, "parcels", i, workflow.WithSendKey(fmt.Sprint(i)))); err != nil {
					t.Fatal(err)
				}
			}
			select {
			case err := <-done:
				t.Errorf("a sender did not wait: %v", err)
			default:
			}
			if commits {
				err = tx.Commit(ctx)
			} else {
				err = tx.Rollback(ctx)
			}
			if err != nil {
				t.Fatal(err)
			}
			for range 3 {
				if err := <-done; err != nil {
					t.Error(err)
				}
			}
			if n := count(t, pool, "select count(*) from romancy.mailbox where channel = 'letters'"); n != 1 {
				t.Errorf("%d messages, want 1", n)
			}
			ours := count(t, pool, "select count(*) from romancy.mailbox where payload #>> '{}' = 'transaction'")
			if (ours == 1) != commits {
				t.Errorf("the transaction's own message is there %d times", ours)
			}
		})
	}
}

// A repeated message is nothing even when its receiver has ended, but one that could not be delivered leaves its key free.
func TestSendKeyOutlivesTheReceiver(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{reader})
	ctx := testContext(t)
	early := func() error { return w.SendTo(ctx, "run", "letters", "early", workflow.WithSendKey("early")) }
	if err := early(); !errors.Is(err, workflow.ErrUndeliverable) {
		t.Fatalf("before the run exists: %v", err)
	}
	run, err := reader.Start(ctx, w.Engine, "", workflow.WithID("run"))
	if err != nil {
		t.Fatal(err)
	}
	last := func() error { return w.SendTo(ctx, "run", "letters", "end", workflow.WithSendKey("last")) }
	if err := errors.Join(early(), last()); err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != "early" {
		t.Fatalf("got %q, %v", got, err)
	}
	if err := errors.Join(early(), last()); err != nil {
		t.Errorf("repeated after the end: %v", err)
	}
	err = pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		return w.SendToTx(ctx, tx, "run", "letters", "end", workflow.WithSendKey("last"))
	})
	if err != nil {
		t.Errorf("repeated in a transaction after the end: %v", err)
	}
	if err := w.SendTo(ctx, "run", "letters", "late", workflow.WithSendKey("late")); !errors.Is(err, workflow.ErrUndeliverable) {
		t.Errorf("another message after the end: %v", err)
	}
	if n := letters(t, pool); n != 0 {
		t.Errorf("%d messages left", n)
	}
}

func TestSendKeysExpire(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{reader}, configured(func(c *workflow.Config) {
		c.ClientOnly, c.MaxMessagesPerBatch, c.SendKeyRetention = true, 10, 2*time.Hour
	}))
	ctx := testContext(t)
	const keys = 25
	publish := func(key string) {
		t.Helper()
		if err := w.Publish(ctx, "letters", "x", workflow.WithSendKey(key)); err != nil {
			t.Fatal(err)
		}
	}
	for i := range keys {
		publish(fmt.Sprint(i))
	}
	if n := count(t, pool, "select count(*) from romancy.sent_keys where expires_at between now() + interval '1 hour' and now() + interval '2 hours'"); n != keys {
		t.Fatalf("%d of %d keys are kept for the time configured", n, keys)
	}
	if _, err := pool.Exec(ctx, "update romancy.sent_keys set expires_at = now() - interval '1 second' where key <> '0:7:letters0'"); err != nil {
		t.Fatal(err)
	}
	publish("0")
	publish("1") // expired, and not removed yet
	publish("1")
	if n := letters(t, pool); n != keys+1 {
		t.Fatalf("%d messages, want %d", n, keys+1)
	}
	if removed, err := w.SweepRetention(ctx); err != nil || removed != keys-2 {
		t.Errorf("retention removed %d, %v; want %d", removed, err, keys-2)
	}
	if n := count(t, pool, "select count(*) from romancy.sent_keys"); n != 2 {
		t.Errorf("%d keys left, want 2", n)
	}
}
