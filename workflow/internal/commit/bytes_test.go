package commit_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// flushes collects how many operations each flush had.
type flushes struct {
	mu    sync.Mutex
	sizes []int
}

func (f *flushes) note(operations int, _, _ time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sizes = append(f.sizes, operations)
}

func (f *flushes) all() []int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]int(nil), f.sizes...)
}

// openNoting returns a committer of one lane that connects when it has something to do, and what it flushes.
func openNoting(t *testing.T, pool *pgxpool.Pool, timeout time.Duration) (*commit.Committer, *flushes) {
	t.Helper()
	seen := new(flushes)
	c := committer(t, pool, func(c *commit.Config) { c.FlushTimeout, c.Flushed = timeout, seen.note })
	return c, seen
}

// startMany queues starts, opens the committer, so that it finds them all there, waits for them, and closes it.
func startMany(t *testing.T, c *commit.Committer, runs int, input string) {
	t.Helper()
	var wg sync.WaitGroup
	for n := range runs {
		wg.Add(1)
		c.Start(store.Start{ID: fmt.Sprint("run-", n), Workflow: "flow", Input: []byte(input)}, func(_ commit.Started, err error) {
			if err != nil {
				t.Errorf("start %d: %v", n, err)
			}
			wg.Done()
		})
	}
	if err := c.Open(within(t)); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	c.Close(within(t)) // the last flush is noted
}

// A flush has no more operations than the database takes in time, however many are queued.
func TestAFlushIsBoundedInBytes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c, seen := openNoting(t, pool, patience)
	startMany(t, c, 30, `"`+strings.Repeat("x", 1<<20)+`"`)
	if got := fmt.Sprint(seen.all()); got != "[7 7 7 7 2]" { // of a little more than a megabyte each, in eight
		t.Errorf("flushes of %s operations", got)
	}
}

// After a flush that was not done in time the next are smaller, so that what takes long is done in the end, and everything once.
func TestFlushesThatTakeTooLongBecomeSmaller(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	if _, err := pool.Exec(within(t), `
		create function slow() returns trigger language plpgsql as $$ begin perform pg_sleep(0.01); return new; end $$;
		create trigger slow before insert on romancy.instances for each row execute function slow()`); err != nil {
		t.Fatal(err)
	}
	const runs = 400 // at least four seconds in one statement
	c, seen := openNoting(t, pool, 3*time.Second)
	startMany(t, c, runs, "1")
	sizes := seen.all()
	if len(sizes) < 2 || sizes[0] != runs || sizes[1] != runs/4 {
		t.Errorf("flushes of %v operations, want %d, then %d", sizes, runs, runs/4)
	}
	var stored int
	if err := pool.QueryRow(within(t), "select count(*) from romancy.instances").Scan(&stored); err != nil || stored != runs {
		t.Errorf("%d runs, %v; want %d", stored, err, runs)
	}
}
