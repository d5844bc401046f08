package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// crowd counts who is inside at one time.
type crowd struct {
	mu           sync.Mutex
	inside, most int
	entered      int
}

func (c *crowd) enter() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside++
	c.entered++
	c.most = max(c.most, c.inside)
}

func (c *crowd) leave() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.inside--
}

func (c *crowd) seen() (inside, most, entered int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inside, c.most, c.entered
}

// blocking is a workflow of one activity that stays inside until released, or its run is lost.
type blocking struct {
	*workflow.Workflow[int, int]

	crowd   crowd
	release chan struct{}
}

func newBlocking(name string, activity []workflow.ActivityOption, options ...workflow.DefineOption) *blocking {
	b := &blocking{release: make(chan struct{})}
	stay := workflow.DefineActivity("stay", func(ctx context.Context, n int) (int, error) {
		b.crowd.enter()
		defer b.crowd.leave()
		select {
		case <-b.release:
			return n, nil
		case <-ctx.Done():
			return 0, ctx.Err()
		}
	}, activity...)
	b.Workflow = workflow.Define(name, func(ctx *workflow.Context, n int) (int, error) { return stay.Execute(ctx, n) }, options...)
	return b
}

// startAll starts n runs without waiting for any to end.
func (b *blocking) startAll(t *testing.T, w *worker, n int) []*workflow.Run[int] {
	t.Helper()
	runs, err := b.StartMany(testContext(t), w.Engine, make([]workflow.StartRequest[int], n))
	if err != nil {
		t.Fatal(err)
	}
	return runs
}

func awaitAll(t *testing.T, runs []*workflow.Run[int]) {
	t.Helper()
	ctx := testContext(t)
	for _, run := range runs {
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
}

func TestActivitiesInFlightAreBounded(t *testing.T) {
	t.Parallel()
	const limit, runs = 3, 12
	for name, test := range map[string]struct {
		activity []workflow.ActivityOption
		workflow []workflow.DefineOption
		config   func(*workflow.Config)
		says     string
	}{
		"of an activity": {
			activity: []workflow.ActivityOption{workflow.WithMaxConcurrent(limit)}, says: "WithMaxConcurrent",
		},
		"of a workflow": {
			workflow: []workflow.DefineOption{workflow.WithMaxConcurrentActivities(limit)}, says: "WithMaxConcurrentActivities of workflow limited",
		},
		"of a worker": {
			config: func(c *workflow.Config) { c.MaxConcurrentActivities = limit }, says: "Config.MaxConcurrentActivities",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			limited := newBlocking("limited", test.activity, test.workflow...)
			var options []workerOption
			if test.config != nil {
				options = append(options, configured(test.config))
			}
			w := startWorker(t, pool, []workflow.Definition{limited}, options...)
			started := limited.startAll(t, w, runs)
			eventually(t, "all others wait", func() bool { return w.Status().HeldUp == runs-limit })
			if status := w.Status(); status.Activities != limit || status.Executing != runs {
				t.Errorf("%d activities and %d runs execute, want %d and %d", status.Activities, status.Executing, limit, runs)
			}
			heldUp := 0
			for _, run := range started {
				info, err := w.Get(testContext(t), run.ID())
				if err != nil {
					t.Fatal(err)
				}
				for _, held := range info.HeldUp {
					if heldUp++; held.Activity != "stay" || held.Limit != test.says {
						t.Errorf("%+v, want stay because of %s", held, test.says)
					}
				}
			}
			if heldUp != runs-limit {
				t.Errorf("%d runs are said to wait, want %d", heldUp, runs-limit)
			}
			close(limited.release)
			awaitAll(t, started)
			if _, most, entered := limited.crowd.seen(); most != limit || entered != runs {
				t.Errorf("%d at most of %d executed at one time, want %d of %d", most, entered, limit, runs)
			}
		})
	}
}

// An activity that waits for its turn neither uses up its timeout nor holds up a shutdown, which hands its run over.
func TestActivityThatWaitsForItsTurnIsHandedOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	limited := newBlocking("limited", []workflow.ActivityOption{workflow.WithMaxConcurrent(1)})
	w := startWorker(t, pool, []workflow.Definition{limited})
	limited.startAll(t, w, 5)
	eventually(t, "four wait", func() bool { return w.Status().HeldUp == 4 })
	ended := make(chan error, 1)
	ctx := testContext(t)
	go func() { ended <- w.Shutdown(ctx) }()
	eventually(t, "those four are handed over although one still executes", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'ready'") == 4
	})
	if inside, _, _ := limited.crowd.seen(); inside != 1 {
		t.Errorf("%d execute, want 1", inside)
	}
	close(limited.release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	heir := startWorker(t, pool, []workflow.Definition{limited})
	eventually(t, "another worker has completed them", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'completed'") == 5
	})
	heir.shutdown(t)
	if _, _, entered := limited.crowd.seen(); entered != 5 {
		t.Errorf("%d activities were executed, want 5", entered)
	}
}

// The same of activities beside the workflow: the run is handed over when the one that executes has ended, with its result.
func TestActivitiesBesideTheWorkflowThatWaitForTheirTurnAreHandedOver(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	entered, release := make(chan struct{}, 3), make(chan struct{})
	var executed tally
	stay := workflow.DefineActivity("stay", func(ctx context.Context, n int) (int, error) {
		executed.add(workflow.ActivityInfo(ctx).IdempotencyKey)
		entered <- struct{}{}
		<-release
		return n, nil
	}, workflow.WithMaxConcurrent(1))
	flow := workflow.Define("flow", func(ctx *workflow.Context, _ int) (int, error) {
		sum := 0
		var begun []*workflow.Future[int]
		for n := range 3 {
			begun = append(begun, stay.Go(ctx, n+1))
		}
		for _, future := range begun {
			n, err := future.Get(ctx)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		return sum, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	<-entered
	eventually(t, "two wait", func() bool { return w.Status().HeldUp == 2 })
	ended := make(chan error, 1)
	go func() { ended <- w.Shutdown(ctx) }()
	eventually(t, "they do not wait any more", func() bool { return w.Status().HeldUp == 0 })
	close(release)
	if err := <-ended; err != nil {
		t.Error(err)
	}
	heir := startWorker(t, pool, []workflow.Definition{flow})
	if sum, err := flow.Run(heir.Engine, run.ID()).Result(ctx); err != nil || sum != 6 {
		t.Errorf("got %d, %v", sum, err)
	}
	for position := 1; position <= 3; position++ {
		if n := executed.of(fmt.Sprintf("%s/%d", run.ID(), position)); n != 1 {
			t.Errorf("activity %d was executed %d times", position, n)
		}
	}
}

func TestActivityThatWaitsForItsTurnNoticesTheLossOfItsLease(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	limited := newBlocking("limited", []workflow.ActivityOption{workflow.WithMaxConcurrent(1)})
	w := startWorker(t, pool, []workflow.Definition{limited}, configured(func(c *workflow.Config) { c.Lease = time.Second }))
	started := limited.startAll(t, w, 5)
	eventually(t, "four wait", func() bool { return w.Status().HeldUp == 4 })
	before := w.Status().Worker
	if _, err := pool.Exec(testContext(t), "update romancy.workers set lease_until = clock_timestamp() - interval '1 second'"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker is another one, and has its runs again", func() bool {
		status := w.Status()
		return status.Worker != before && status.Worker != 0 && status.HeldUp == 4 && status.Activities == 1 && status.Executing == 5
	})
	close(limited.release)
	awaitAll(t, started)
}

func TestTimeoutOfAnActivityBeginsWithItsTurn(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const timeout = 300 * time.Millisecond
	var remaining []time.Duration // guarded by the limit
	first := make(chan struct{})
	wait := workflow.DefineActivity("wait", func(ctx context.Context, _ int) (int, error) {
		deadline, _ := ctx.Deadline()
		remaining = append(remaining, time.Until(deadline))
		if len(remaining) == 1 {
			<-first
		}
		return 0, nil
	}, workflow.WithMaxConcurrent(1), workflow.WithTimeout(timeout))
	flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) { return wait.Execute(ctx, n) })
	w := startWorker(t, pool, []workflow.Definition{flow})
	runs, err := flow.StartMany(testContext(t), w.Engine, make([]workflow.StartRequest[int], 2))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the second waits", func() bool { return w.Status().HeldUp == 1 })
	waited := time.Now()
	eventually(t, "it has waited for longer than its timeout", func() bool { return time.Since(waited) > timeout })
	close(first)
	awaitAll(t, runs)
	if len(remaining) != 2 || remaining[1] <= 0 {
		t.Errorf("the second began with %v left of its %s", remaining, timeout)
	}
}

func TestRunsOfAWorkflowInFlightAreBounded(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	const limit, runs = 2, 30
	limited := newBlocking("limited", nil, workflow.WithMaxConcurrentRuns(limit))
	free := newBlocking("free", nil)
	w := startWorker(t, pool, []workflow.Definition{limited, free})
	started := limited.startAll(t, w, runs)
	others := free.startAll(t, w, runs)
	eventually(t, "the others execute", func() bool { inside, _, _ := free.crowd.seen(); return inside == runs })
	eventually(t, "as many as may of the limited one execute", func() bool { inside, _, _ := limited.crowd.seen(); return inside == limit })
	if full := w.Status().Full; len(full) != 1 || full[0] != "limited" {
		t.Errorf("full: %v, want the limited one", full)
	}
	close(free.release)
	close(limited.release)
	awaitAll(t, started)
	awaitAll(t, others)
	if _, most, _ := limited.crowd.seen(); most != limit {
		t.Errorf("%d at most executed at one time, want %d", most, limit)
	}
}

// Runs that were parked count as soon as they go on: when all are due at once, no more go on than may execute.
func TestParkedRunsThatAreDueTogetherStayWithinTheLimit(t *testing.T) {
	t.Parallel()
	for name, option := range map[string]workerOption{
		"in memory": configured(func(*workflow.Config) {}), "evicted": configured(func(c *workflow.Config) { c.CacheSize = 10 }),
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			const limit, runs = 5, 200
			var inside crowd
			pass := workflow.DefineActivity("pass", func(context.Context, int) (int, error) {
				inside.enter()
				defer inside.leave()
				runtime.Gosched()
				return 0, nil
			})
			flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) {
				if _, err := workflow.Receive[int](ctx, "go", workflow.WithTimeout(time.Hour)); err != nil && !errors.Is(err, workflow.ErrTimeout) {
					return 0, err
				}
				return pass.Execute(ctx, n)
			})
			w := startWorker(t, pool, []workflow.Definition{flow}, option, configured(func(c *workflow.Config) {
				c.MaxConcurrentRuns, c.FallbackInterval = limit, time.Second
			}))
			started, err := flow.StartMany(testContext(t), w.Engine, make([]workflow.StartRequest[int], runs))
			if err != nil {
				t.Fatal(err)
			}
			eventually(t, "all are parked", func() bool {
				return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == runs
			})
			var wg sync.WaitGroup
			for _, run := range started {
				wg.Go(func() {
					if err := w.SendTo(testContext(t), run.ID(), "go", 1); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			awaitAll(t, started)
			if _, most, entered := inside.seen(); most > limit || entered != runs {
				t.Errorf("%d at most executed at one time, %d in all; want %d and %d", most, entered, limit, runs)
			}
		})
	}
}

// floodSize is how many runs of one workflow are in the way of a few of another.
const floodSize = 10_000

// floodReady makes a flood of ready runs that nobody here has started.
func floodReady(t *testing.T, pool *pgxpool.Pool, name string) {
	t.Helper()
	if _, err := pool.Exec(testContext(t), `insert into romancy.instances (id, workflow, status, token, ready_at, input)
		select $1::text || '-' || n, $1::text, 'ready', 0, clock_timestamp(), '0' from generate_series(1, $2::integer) n`, name, floodSize); err != nil {
		t.Fatal(err)
	}
}

// However long the runs of a flood take, and wherever they come from, others get on.
func TestFloodOfOneWorkflowDoesNotStarveAnother(t *testing.T) {
	t.Parallel()
	for name, flood := range map[string]func(t *testing.T, pool *pgxpool.Pool, w *worker, b *blocking){
		"ready": func(t *testing.T, pool *pgxpool.Pool, _ *worker, b *blocking) {
			t.Helper()
			floodReady(t, pool, b.Name())
		},
		"started here": func(t *testing.T, _ *pgxpool.Pool, w *worker, b *blocking) {
			t.Helper()
			b.startAll(t, w, floodSize)
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			const slots = 8
			greedy := newBlocking("greedy", nil)
			w := startWorker(t, pool, []workflow.Definition{greedy, steps}, configured(func(c *workflow.Config) { c.MaxConcurrentRuns = slots }))
			client := startWorker(t, pool, []workflow.Definition{greedy, steps}, configured(func(c *workflow.Config) { c.ClientOnly = true }))
			flood(t, pool, w, greedy)
			if _, err := w.SweepResume(testContext(t)); err != nil { // has the worker look
				t.Fatal(err)
			}
			eventually(t, "the flood has all slots but the one that is kept", func() bool { return w.Status().Executing == slots-1 })
			ctx := testContext(t)
			for i := range 6 {
				run, err := steps.Start(ctx, []*worker{w, client}[i%2].Engine, 1)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := run.Result(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if inside, most, _ := greedy.crowd.seen(); inside != slots-1 || most != slots-1 {
				t.Errorf("%d of the flood execute, %d at most, want %d", inside, most, slots-1)
			}
			close(greedy.release)
			w.shutdown(t)
			client.shutdown(t)
		})
	}
}

// When the runs of a flood are short, another's do not wait for all of it.
func TestFewRunsPassAFloodOfShortOnes(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	short := workflow.Define("short", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	few := workflow.Define("few", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	definitions := []workflow.Definition{short, few}
	client := startWorker(t, pool, definitions, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	floodReady(t, pool, "short")
	ctx := testContext(t)
	runs, err := few.StartMany(ctx, client.Engine, make([]workflow.StartRequest[int], 10)) // ready later than all of the flood
	if err != nil {
		t.Fatal(err)
	}
	startWorker(t, pool, definitions, configured(func(c *workflow.Config) { c.MaxConcurrentRuns = 4 }))
	awaitAll(t, runs)
	if left := count(t, pool, "select count(*) from romancy.instances where workflow = 'short' and status = 'ready'"); left < floodSize/2 {
		t.Errorf("only %d of the flood were left when the few had ended", left)
	}
}

// Starts that nobody has room for cost a row each, no goroutine and no memory.
func TestFloodOfStartsIsBoundedInMemory(t *testing.T) { //nolint:paralleltest // counts goroutines
	pool := pgtest.Pool(t)
	const limit, callers = 50, 10
	starts := pgtest.Soak(100_000, 5_000)
	greedy := newBlocking("greedy", nil)
	w := startWorker(t, pool, []workflow.Definition{greedy}, configured(func(c *workflow.Config) { c.MaxConcurrentRuns = limit }))
	greedy.startAll(t, w, limit)
	eventually(t, "all slots are taken", func() bool { return w.Status().Executing == limit })
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	goroutines := runtime.NumGoroutine()
	most := 0
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	defer cancel()
	const page = 500
	var wg sync.WaitGroup
	pages := make(chan int)
	for range callers {
		wg.Go(func() {
			for range pages {
				if _, err := greedy.StartMany(ctx, w.Engine, make([]workflow.StartRequest[int], page)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range starts / page {
		pages <- i
		most = max(most, runtime.NumGoroutine())
	}
	close(pages)
	wg.Wait()
	runtime.GC()
	runtime.ReadMemStats(&after)
	grown := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d starts: %d goroutines more at most, %d KB of heap more at the end", starts, most-goroutines, grown/1024)
	if most > goroutines+callers+20 {
		t.Errorf("%d goroutines during %d starts, %d before", most, starts, goroutines)
	}
	if grown > 20<<20 {
		t.Errorf("%d bytes more on the heap after %d starts", grown, starts)
	}
	if status := w.Status(); status.Executing != limit {
		t.Errorf("%d runs execute, want %d", status.Executing, limit)
	}
	if ready := count(t, pool, "select count(*) from romancy.instances where status = 'ready'"); ready != starts {
		t.Errorf("%d runs are ready, want %d", ready, starts)
	}
	close(greedy.release)
	w.shutdown(t)
}
