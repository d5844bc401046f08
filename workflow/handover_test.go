package workflow_test

import (
	"context"
	"errors"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// shutdownPastItsLimit shuts a worker down as one does whose time is over: every context that it is given has ended.
func (w *worker) shutdownPastItsLimit(t *testing.T) {
	t.Helper()
	ended, end := context.WithCancel(context.Background())
	end()
	if err := w.Shutdown(ended); !errors.Is(err, context.Canceled) {
		t.Errorf("shut the engine down: %v, want an error that names the runs that were interrupted", err)
	}
	if err := w.notifier.Close(ended); err != nil {
		t.Errorf("close the notifier: %v", err)
	}
}

// handover is a run that one worker leaves to another.
type handover struct {
	first, heir *worker
	id          string
	begun       chan struct{} // closed when its step is under way
	leave       chan struct{} // closed when steps may end
}

func (h *handover) awaitStep(t *testing.T) {
	t.Helper()
	select {
	case <-h.begun:
	case <-testContext(t).Done():
		t.Fatal("the step has not begun")
	}
}

// letLook has a worker look, and waits until what it finds has ended: it has done with the looks of its start then, which would
// find what this test has somebody else leave.
func letLook(t *testing.T, pool *pgxpool.Pool, w *worker) {
	t.Helper()
	eventually(t, "it says that it listens", func() bool {
		return count(t, pool, "select count(*) from romancy.workers where listening") == 1
	})
	ctx := testContext(t)
	run, err := steps.Start(ctx, w.Engine, 1, workflow.WithDelay(3*time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	for _, statement := range []string{
		"update romancy.instances set wake_at = clock_timestamp()", "select pg_notify('romancy_worker_left', '')",
	} {
		if _, err := pool.Exec(ctx, statement); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := run.Result(ctx); err != nil {
		t.Fatal(err)
	}
}

// A worker that shuts down tells the others of what it leaves: they go on with it at once, although they look by themselves, and
// show signs of life, once an hour only.
func TestHeirsOfAWorkerThatShutsDownAreToldSo(t *testing.T) {
	t.Parallel()
	idle := configured(func(c *workflow.Config) { c.FallbackInterval, c.Lease = time.Hour, time.Hour })
	for name, test := range map[string]struct {
		flow func(ctx *workflow.Context, step *workflow.Activity[int, int]) (int, error)
		end  func(t *testing.T, s *handover)
	}{
		"executing": {
			flow: func(ctx *workflow.Context, step *workflow.Activity[int, int]) (int, error) {
				if _, err := step.Execute(ctx, 0); err != nil {
					return 0, err
				}
				return step.Execute(ctx, 1)
			},
			end: func(t *testing.T, s *handover) {
				t.Helper()
				s.awaitStep(t)
				down := make(chan struct{})
				go func() { defer close(down); s.first.shutdown(t) }()
				eventually(t, "it shuts down", func() bool {
					_, err := s.first.Get(context.Background(), s.id)
					return errors.Is(err, workflow.ErrClosed)
				})
				close(s.leave)
				<-down
			},
		},
		"executing, past the limit, and returning when told": {
			flow: func(ctx *workflow.Context, step *workflow.Activity[int, int]) (int, error) {
				return step.Execute(ctx, -1)
			},
			end: func(t *testing.T, s *handover) {
				t.Helper()
				s.awaitStep(t)
				s.first.shutdownPastItsLimit(t)
				close(s.leave)
			},
		},
		"parked with a timer": {
			flow: func(ctx *workflow.Context, _ *workflow.Activity[int, int]) (int, error) {
				return 1, workflow.Sleep(ctx, 3*time.Second)
			},
			end: func(t *testing.T, s *handover) {
				t.Helper()
				eventually(t, "it is parked", func() bool { return s.first.Status().Parked == 1 })
				s.first.shutdown(t)
			},
		},
		"parked, and sent to afterwards": {
			flow: func(ctx *workflow.Context, _ *workflow.Activity[int, int]) (int, error) {
				_, err := workflow.Receive[int](ctx, "orders")
				return 1, err
			},
			end: func(t *testing.T, s *handover) {
				t.Helper()
				eventually(t, "it is parked", func() bool { return s.first.Status().Parked == 1 })
				s.first.shutdown(t)
				if err := s.heir.SendTo(testContext(t), s.id, "orders", 1); err != nil {
					t.Fatal(err)
				}
			},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := &handover{begun: make(chan struct{}), leave: make(chan struct{})}
			begin := sync.OnceFunc(func() { close(s.begun) })
			step := workflow.DefineActivity("step", func(ctx context.Context, n int) (int, error) {
				begin()
				if n < 0 {
					select {
					case <-ctx.Done():
						return 0, ctx.Err()
					case <-s.leave:
						return n, nil
					}
				}
				<-s.leave // whatever its context says
				return n, nil
			})
			flow := workflow.Define("left", func(ctx *workflow.Context, _ int) (int, error) { return test.flow(ctx, step) })
			pool := pgtest.Pool(t)
			ctx := testContext(t)
			s.heir = startWorker(t, pool, []workflow.Definition{flow, steps}, idle)
			letLook(t, pool, s.heir)
			s.first = startWorker(t, pool, []workflow.Definition{flow}, idle)
			run, err := flow.Start(ctx, s.first.Engine, 0)
			if err != nil {
				t.Fatal(err)
			}
			s.id = run.ID()
			test.end(t, s)
			if _, err := flow.Run(s.heir.Engine, run.ID()).Result(ctx); err != nil {
				t.Error(err)
			}
		})
	}
}
