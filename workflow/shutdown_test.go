package workflow_test

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// stubborn is a workflow whose one step ignores its context until it is let go.
type stubborn struct {
	flow    *workflow.Workflow[int, int]
	entered chan int64    // the worker's number of bodies before this one
	leave   chan struct{} // closed when the first body may return
	inside  atomic.Int64  // bodies that execute
	most    atomic.Int64  // at one time
	bodies  atomic.Int64
}

func newStubborn(beside bool) *stubborn {
	s := &stubborn{entered: make(chan int64, 10), leave: make(chan struct{})}
	step := workflow.DefineActivity("stubborn", func(_ context.Context, n int) (int, error) {
		number := s.bodies.Add(1)
		s.most.Store(max(s.most.Load(), s.inside.Add(1)))
		defer s.inside.Add(-1)
		s.entered <- number
		if number == 1 {
			<-s.leave // whatever its context says
		}
		return n, nil
	})
	s.flow = workflow.Define("stubborn", func(ctx *workflow.Context, n int) (int, error) {
		if !beside {
			return step.Execute(ctx, n)
		}
		return step.Go(ctx, n).Get(ctx)
	})
	return s
}

func (s *stubborn) awaitBody(t *testing.T) {
	t.Helper()
	select {
	case <-s.entered:
	case <-testContext(t).Done():
		t.Fatal("no body was entered")
	}
}

func shortLease(c *workflow.Config) { c.Lease = time.Second }

// A step that does not return when a shutdown's limit is over stays this worker's until its lease ends: nobody executes it beside it.
func TestShutdownPastItsLimitLeavesARunUntilTheLeaseEnds(t *testing.T) {
	t.Parallel()
	for name, beside := range map[string]bool{"a step": false, "a step beside the workflow": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			s := newStubborn(beside)
			first := startWorker(t, pool, []workflow.Definition{s.flow}, configured(func(c *workflow.Config) { c.Lease, c.MaxDeaths = time.Hour, 1 }))
			heir := startWorker(t, pool, []workflow.Definition{s.flow}, configured(func(c *workflow.Config) { c.MaxDeaths = 1 }))
			run, err := s.flow.Start(ctx, first.Engine, 7)
			if err != nil {
				t.Fatal(err)
			}
			s.awaitBody(t)
			worker := first.Status().Worker
			ended, end := context.WithCancel(ctx)
			end()
			err = first.Shutdown(ended)
			if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), run.ID()) || !strings.Contains(err.Error(), "until its lease ends at 2") {
				t.Errorf("the shutdown says %v, want which run is left, and until when", err)
			}
			if n := count(t, pool, "select count(*) from romancy.instances where status = 'running' and worker = $1", worker); n != 1 {
				t.Fatal("the run was handed over while its step executes")
			}
			for range 5 {
				if _, err := heir.SweepResume(ctx); err != nil {
					t.Fatal(err)
				}
			}
			if n := s.bodies.Load(); n != 1 {
				t.Fatalf("%d bodies were entered while the lease lasts", n)
			}
			close(s.leave) // what it returns is too late
			eventually(t, "the body has returned", func() bool { return s.inside.Load() == 0 })
			if _, err := pool.Exec(ctx, "update romancy.workers set lease_until = clock_timestamp() where id = $1 and left_at is not null", worker); err != nil {
				t.Fatal(err)
			}
			if _, err := heir.SweepResume(ctx); err != nil {
				t.Fatal(err)
			}
			if got, err := s.flow.Run(heir.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
				t.Errorf("got %d, %v", got, err)
			}
			if s.most.Load() != 1 {
				t.Errorf("%d bodies executed at the same time", s.most.Load())
			}
			if n := count(t, pool, "select deaths from romancy.instances"); n != 0 {
				t.Errorf("%d deaths are counted of a worker that shut down", n)
			}
			if n := count(t, pool, `select count(*) from romancy.interruptions where worker = $1 and position = 0 and token = 1 and error ->> 'type' = 'worker_left'`, worker); n != 1 {
				t.Errorf("%d interruptions are written down, want the one", n)
			}
		})
	}
}

// The same by the clock, with the shortest lease: the second body is entered after the lease of the first has ended.
func TestARunThatIsLeftGoesOnWhenTheLeaseEnds(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	s := newStubborn(false)
	first := startWorker(t, pool, []workflow.Definition{s.flow}, configured(shortLease))
	run, err := s.flow.Start(ctx, first.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	s.awaitBody(t)
	heir := startWorker(t, pool, []workflow.Definition{s.flow}, configured(func(c *workflow.Config) { c.Lease, c.FallbackInterval = 3*time.Second, time.Hour }))
	worker := first.Status().Worker
	first.shutdownPastItsLimit(t)
	defer close(s.leave)
	s.awaitBody(t)
	// The row may be buried by now; if not, its lease has ended.
	if n := count(t, pool, "select count(*) from romancy.workers where id = $1 and lease_until > clock_timestamp()", worker); n != 0 {
		t.Error("the second body was entered before the lease of the first one's worker had ended")
	}
	if got, err := s.flow.Run(heir.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
		t.Errorf("got %d, %v", got, err)
	}
}

// A step that returns a result after the limit, before the worker is gone, is not executed again.
func TestAResultThatComesDuringAShutdownPastItsLimitIsKept(t *testing.T) {
	t.Parallel()
	for name, beside := range map[string]bool{"a step": false, "a step beside the workflow": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			var bodies tally
			entered := make(chan struct{})
			step := workflow.DefineActivity("step", func(ctx context.Context, n int) (int, error) {
				if bodies.add("step") == 1 {
					close(entered)
					<-ctx.Done()
				}
				return n, nil
			})
			flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) {
				if !beside {
					return step.Execute(ctx, n)
				}
				return step.Go(ctx, n).Get(ctx)
			})
			first := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Lease = time.Hour }))
			run, err := flow.Start(ctx, first.Engine, 7)
			if err != nil {
				t.Fatal(err)
			}
			<-entered
			first.shutdownPastItsLimit(t)
			heir := startWorker(t, pool, []workflow.Definition{flow})
			if got, err := flow.Run(heir.Engine, run.ID()).Result(ctx); err != nil || got != 7 {
				t.Errorf("got %d, %v", got, err)
			}
			if n := bodies.of("step"); n != 1 {
				t.Errorf("executed %d times", n)
			}
		})
	}
}

// Ending because a shutdown cancelled the context is no failed attempt, nor the end of the workflow.
func TestWhatAShutdownCancelsHasNotFailed(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	var entered sync.WaitGroup
	entered.Add(2)
	enter := [2]func(){sync.OnceFunc(entered.Done), sync.OnceFunc(entered.Done)}
	var second atomic.Bool
	heed := func(ctx context.Context, which int) error {
		enter[which]()
		if second.Load() {
			return nil
		}
		<-ctx.Done()
		return ctx.Err()
	}
	step := workflow.DefineActivity("step", func(ctx context.Context, n int) (int, error) { return n, heed(ctx, 0) },
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 1}))
	inStep := workflow.Define("in_step", func(ctx *workflow.Context, n int) (int, error) { return step.Execute(ctx, n) })
	inFlow := workflow.Define("in_flow", func(ctx *workflow.Context, n int) (int, error) { return n, heed(ctx, 1) })
	definitions := []workflow.Definition{inStep, inFlow}
	first := startWorker(t, pool, definitions, configured(func(c *workflow.Config) { c.Lease = time.Hour }))
	one, err := inStep.Start(ctx, first.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	two, err := inFlow.Start(ctx, first.Engine, 2)
	if err != nil {
		t.Fatal(err)
	}
	entered.Wait()
	first.shutdownPastItsLimit(t)
	second.Store(true)
	if n := count(t, pool, "select count(*) from romancy.attempts"); n != 0 {
		t.Errorf("%d failed attempts are recorded", n)
	}
	heir := startWorker(t, pool, definitions)
	if got, err := inStep.Run(heir.Engine, one.ID()).Result(ctx); err != nil || got != 1 {
		t.Errorf("cancelled in a step: got %d, %v", got, err)
	}
	if got, err := inFlow.Run(heir.Engine, two.ID()).Result(ctx); err != nil || got != 2 {
		t.Errorf("cancelled in the workflow: got %d, %v", got, err)
	}
}

// What is lost with a lease is cancelled and fenced. A body that ignores it is named in the log, once.
func TestABodyThatOutlivesItsLeaseIsNamedAndRecordsNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	s := newStubborn(false)
	log := &logText{}
	w := startWorker(t, pool, []workflow.Definition{s.flow}, configured(func(c *workflow.Config) {
		c.Lease, c.Logger = time.Second, slog.New(slog.NewTextHandler(log, nil))
	}))
	run, err := s.flow.Start(ctx, w.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	s.awaitBody(t)
	loseLease(t, pool, w)
	s.awaitBody(t) // it takes the run over from itself
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
	const line = "still execute, although their contexts are cancelled"
	eventually(t, "the log names the body", func() bool { return strings.Contains(log.String(), line) })
	before := count(t, pool, "select count(*) from romancy.history")
	close(s.leave)
	eventually(t, "the body has returned", func() bool { return s.inside.Load() == 0 })
	if n := count(t, pool, "select count(*) from romancy.history"); n != before {
		t.Errorf("%d records, %d before it returned", n, before)
	}
	if said := bytes.Count([]byte(log.String()), []byte(line)); said != 1 || !strings.Contains(log.String(), run.ID()) {
		t.Errorf("said %d times: %s", said, log.String())
	}
}

// loseLease has a worker lose its lease, and waits until it has another id.
func loseLease(t *testing.T, pool *pgxpool.Pool, w *worker) (former int64) {
	t.Helper()
	former = w.Status().Worker
	if _, err := pool.Exec(testContext(t), "update romancy.workers set lease_until = clock_timestamp() - interval '1 second' where id = $1", former); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the worker has another id", func() bool {
		now := w.Status().Worker
		return now != former && now != 0
	})
	return former
}
