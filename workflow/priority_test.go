package workflow_test

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// inOrder is a workflow that notes the order in which its runs begin.
type inOrder struct {
	*workflow.Workflow[string, string]

	mu    sync.Mutex
	begun []string
}

func newInOrder(name string) *inOrder {
	o := &inOrder{}
	o.Workflow = workflow.Define(name, func(_ *workflow.Context, in string) (string, error) {
		o.mu.Lock()
		defer o.mu.Unlock()
		o.begun = append(o.begun, in)
		return in, nil
	})
	return o
}

func TestReadyRunsBeginByPriorityAndThenByAge(t *testing.T) {
	t.Parallel()
	for _, snapshot := range []bool{false, true} {
		t.Run(fmt.Sprintf("old snapshot %t", snapshot), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			if snapshot {
				withOldSnapshot(t, pool) // looks begin at the low-water marks
			}
			flow := newInOrder("steps")
			client := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
			one := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxConcurrentRuns = 1 }))
			first, err := flow.Start(testContext(t), one.Engine, "first")
			if err != nil {
				t.Fatal(err)
			}
			completed(t, first)
			one.shutdown(t)
			flow.begun = nil
			var runs []*workflow.Run[string]
			var want []string
			for i, priority := range []int{0, -9, 5, 0, 9, 5, -9, 0} {
				in := fmt.Sprintf("%+d/%d", priority, i)
				run, err := flow.Start(testContext(t), client.Engine, in, workflow.WithPriority(priority))
				if err != nil {
					t.Fatal(err)
				}
				info, err := client.Get(testContext(t), run.ID())
				if err != nil || info.Priority != priority {
					t.Errorf("priority %d, %v; want %d", info.Priority, err, priority)
				}
				runs, want = append(runs, run), append(want, in)
			}
			want = []string{want[4], want[2], want[5], want[0], want[3], want[7], want[1], want[6]}
			startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.MaxConcurrentRuns = 1 }))
			completed(t, runs...)
			if !slices.Equal(flow.begun, want) {
				t.Errorf("begun in the order %v, want %v", flow.begun, want)
			}
		})
	}
}

func completed(t *testing.T, runs ...*workflow.Run[string]) {
	t.Helper()
	for _, run := range runs {
		if _, err := run.Result(testContext(t)); err != nil {
			t.Fatal(err)
		}
	}
}

// A run that a caller's transaction starts, or that begins later, has its priority too.
func TestPriorityIsKeptHoweverARunIsStarted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	definitions := []workflow.Definition{steps}
	w := startWorker(t, pool, definitions, configured(func(c *workflow.Config) { c.FallbackInterval = time.Second }))
	client := startWorker(t, pool, definitions, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(ctx) }()
	inTransaction, err := steps.StartTx(ctx, tx, client.Engine, 1, workflow.WithPriority(3))
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(ctx); err != nil {
		t.Fatal(err)
	}
	later, err := steps.Start(ctx, client.Engine, 1, workflow.WithPriority(-4), workflow.WithDelay(1))
	if err != nil {
		t.Fatal(err)
	}
	for run, want := range map[*workflow.Run[int]]int{inTransaction: 3, later: -4} {
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
		if info, err := w.Get(ctx, run.ID()); err != nil || info.Priority != want {
			t.Errorf("priority %d, %v; want %d", info.Priority, err, want)
		}
	}
}

func TestPriorityOutOfRangeIsRefused(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{steps})
	for _, priority := range []int{workflow.LowestPriority - 1, workflow.HighestPriority + 1} {
		_, err := steps.Start(testContext(t), w.Engine, 1, workflow.WithPriority(priority))
		if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("WithPriority(%d): use -9 to 9", priority)) {
			t.Errorf("priority %d: %v", priority, err)
		}
	}
	if rows := count(t, pool, "select count(*) from romancy.instances"); rows != 0 {
		t.Errorf("%d runs were started", rows)
	}
}
