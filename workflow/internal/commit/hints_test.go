package commit_test

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// slowly is a statement that waits for the row of the run "slow".
func slowly(b *pgx.Batch) { b.Queue("select 1 from romancy.instances where id = 'slow' for update") }

// What a run has done is recorded while a statement that a hint asks for waits for the database, although it is a
// single operation, and so is what other statements ask for.
func TestOneOperationOvertakesWhatHintsAskFor(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := openTwo(t, pool)
	ctx := within(t)
	start(t, c, "slow")
	tx := holdSlow(t, pool)
	hinted := make(chan error, 2)
	c.Hinted().Do(slowly, func(_ struct{}, err error) { hinted <- err })
	awaitBlocked(t, pool)
	c.Hinted().Look(store.Wake{Fence: store.Fence{ID: "parked", Token: 1, Worker: 1}}, func(_ bool, err error) { hinted <- err })
	for _, id := range []string{"first", "second"} {
		start(t, c, id)
	}
	if _, err := commit.Await(ctx, func(then func(struct{}, error)) {
		c.Do(true, func(b *pgx.Batch) { b.Queue("select 1") }, then)
	}); err != nil {
		t.Error(err)
	}
	select {
	case err := <-hinted:
		t.Fatalf("what hints ask for was not held up: %v", err)
	default:
	}
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := <-hinted; err != nil {
			t.Error(err)
		}
	}
}

// What hints ask for goes last, in a flush of its own, and does go.
func TestWhatHintsAskForGoesLast(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := opened(t, committer(t, pool, func(c *commit.Config) { c.LockTimeout, c.FlushTimeout, c.HintPatience = patience, patience, patience }))
	ctx := within(t)
	start(t, c, "slow")
	tx := holdSlow(t, pool)
	blocked := make(chan error, 1)
	c.Do(true, slowly, func(_ struct{}, err error) { blocked <- err })
	awaitBlocked(t, pool)
	const many = 300
	answers := make(chan string, many+1)
	for range many {
		c.Hinted().Do(func(b *pgx.Batch) { b.Queue("select 1") }, func(struct{}, error) { answers <- "hinted" })
	}
	c.Start(store.Start{ID: "ordinary", Workflow: "flow", Input: []byte("1")}, func(commit.Started, error) { answers <- "ordinary" })
	flushes, _ := c.Stats()
	if err := tx.Rollback(ctx); err != nil {
		t.Fatal(err)
	}
	if err := <-blocked; err != nil {
		t.Fatal(err)
	}
	if first := <-answers; first != "ordinary" {
		t.Errorf("%s goes first", first)
	}
	for range many {
		if got := <-answers; got != "hinted" {
			t.Fatalf("%s is answered again", got)
		}
	}
	if after, _ := c.Stats(); after != flushes+2 {
		t.Errorf("%d flushes, want one for the run and one for all hints", after-flushes)
	}
}

// While every lane has other work, what hints ask for does not wait for its end.
func TestWhatHintsAskForDoesNotStarve(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := opened(t, committer(t, pool, func(*commit.Config) {}))
	ctx, enough := context.WithCancel(within(t))
	defer enough()
	busy := make(chan struct{})
	go func() {
		defer close(busy)
		for ctx.Err() == nil { // two at a time: something is always queued when a flush ends
			both := make(chan struct{}, 2)
			for range 2 {
				c.Do(true, func(b *pgx.Batch) { b.Queue("select pg_sleep(0.002)") }, func(struct{}, error) { both <- struct{}{} })
			}
			<-both
			<-both
		}
	}()
	for range 5 {
		if _, err := commit.Await(ctx, func(then func(struct{}, error)) {
			c.Hinted().Do(func(b *pgx.Batch) { b.Queue("select 1") }, then)
		}); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Millisecond)
	}
	enough()
	<-busy
}
