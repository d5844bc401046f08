package workflow_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

var crier = workflow.Define("crier", func(ctx *workflow.Context, news string) (string, error) {
	return news, workflow.Publish(ctx, "crowd", news)
})

var hearer = workflow.Define("hearer", func(ctx *workflow.Context, n int) ([]string, error) {
	if err := workflow.Subscribe(ctx, "crowd", workflow.Broadcast); err != nil {
		return nil, err
	}
	messages := make([]string, n)
	for i := range messages {
		message, err := workflow.Receive[string](ctx, "crowd")
		if err != nil {
			return nil, err
		}
		messages[i] = message.Body
	}
	return messages, nil
})

// What is published to thousands arrives once everywhere, whichever way it is published and whatever is published beside it.
func TestWhatIsPublishedToThousandsArrivesOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{crier, hearer})
	ctx := testContext(t)
	const at, of = 12, 4500 // messages, subscribers that have no run
	if _, err := pool.Exec(ctx, "insert into romancy.subscriptions (instance_id, channel, mode) select '0 ' || n, 'crowd', 'broadcast' from generate_series(1, $1::int) n", of); err != nil {
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "insert into romancy.subscriptions (instance_id, channel, mode) select '0 ' || n, 'group', 'broadcast' from generate_series(1, 700) n"); err != nil {
		t.Fatal(err)
	}
	last, err := hearer.Start(ctx, w.Engine, at)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the last subscribes", func() bool {
		return count(t, pool, "select count(*) from romancy.subscriptions where channel = 'crowd' and instance_id = '"+last.ID()+"'") == 1
	})
	ways := []func(news string) error{
		func(news string) error { return w.Publish(ctx, "crowd", news) },
		func(news string) error { return w.Publish(ctx, "crowd", news, workflow.WithSendKey(news)) },
		func(news string) error {
			return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error { return w.PublishTx(ctx, tx, "crowd", news) })
		},
		func(news string) error {
			run, err := crier.Start(ctx, w.Engine, news)
			if err == nil {
				_, err = run.Result(ctx)
			}
			return err
		},
	}
	var busy sync.WaitGroup
	for n := range at {
		busy.Go(func() {
			if err := ways[n%len(ways)](fmt.Sprint("news ", n)); err != nil {
				t.Error(err)
			}
		})
		busy.Go(func() { // as many as not all fit one flush
			if err := w.Publish(ctx, "group", n); err != nil {
				t.Error(err)
			}
		})
	}
	busy.Wait()
	heard, err := last.Result(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for n := range at {
		news := fmt.Sprint("news ", n)
		if times := strings.Count(strings.Join(heard, ";")+";", news+";"); times != 1 {
			t.Errorf("%s was heard %d times by the last subscriber", news, times)
		}
		if rows := count(t, pool, fmt.Sprintf(`select count(*) from romancy.mailbox where channel = 'crowd' and payload::text = '"%s"' and receiver like '0 %%'`, news)); rows != of {
			t.Errorf("%s is there for %d of %d", news, rows, of)
		}
	}
	if rows := count(t, pool, "select count(*) from romancy.mailbox where channel = 'group'"); rows != 700*at {
		t.Errorf("%d messages for the group, want %d", rows, 700*at)
	}
}

// While a message goes to many, what others do is committed, and leases are kept.
func TestAMessageForManyHoldsNobodyUp(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{crier})
	ctx := testContext(t)
	if _, err := pool.Exec(ctx, "insert into romancy.subscriptions (instance_id, channel, mode) select 'r' || n, 'crowd', 'broadcast' from generate_series(1, 100000) n"); err != nil {
		t.Fatal(err)
	}
	before := count(t, pool, "select max(id) from romancy.workers")
	published := make(chan error, 1)
	began := time.Now()
	go func() { published <- w.Publish(ctx, "crowd", "news") }()
	beside := 0
	for over := false; !over; beside++ {
		if err := w.SendTo(ctx, "nobody", "letters", 1); err == nil {
			t.Error("a message for nobody was sent")
		}
		select {
		case err := <-published:
			if err != nil {
				t.Fatal(err)
			}
			over = true
		default:
		}
	}
	t.Logf("%d operations beside a message for 100,000, which took %s", beside, time.Since(began).Round(time.Millisecond))
	if rows := count(t, pool, "select count(*) from romancy.mailbox"); rows != 100_000 || beside < 20 {
		t.Errorf("%d messages, %d operations beside", rows, beside)
	}
	if now := count(t, pool, "select count(*) from romancy.workers where lease_until > clock_timestamp()"); now != 1 || count(t, pool, "select max(id) from romancy.workers") != before {
		t.Errorf("%d workers with a lease", now)
	}
}
