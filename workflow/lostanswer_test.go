package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// soonEnough is far below the fallback interval, after which what nobody was told is found all the same.
const soonEnough = 8 * time.Second

var (
	answerless = workflow.Define("answerless", func(ctx *workflow.Context, _ int) (int, error) {
		message, err := workflow.Receive[int](ctx, "letters")
		return message.Body, err
	})
	audience = workflow.Define("audience", func(ctx *workflow.Context, _ int) (int, error) {
		event, err := workflow.WaitEvent[int](ctx, "happened")
		return event.Data, err
	})
	reporter = workflow.Define("reporter", func(ctx *workflow.Context, n int) (int, error) {
		return n, workflow.SendEvent(ctx, workflow.OutgoingEvent{Type: "happened", Source: "reporter", ID: "1", Data: n})
	})
	early = workflow.Define("early", func(_ *workflow.Context, n int) (int, error) { return n, nil })
)

// lostAnswers is two workers, of which the first loses the answer to its next execution of a statement.
type lostAnswers struct {
	proxy         *pgtest.FaultProxy
	first, second *worker
}

func newLostAnswers(t *testing.T, definitions ...workflow.Definition) *lostAnswers {
	t.Helper()
	url := pgtest.URL(t)
	proxy := pgtest.NewFaultProxy(t, url)
	l := &lostAnswers{
		proxy:  proxy,
		first:  startWorker(t, pgtest.Connect(t, proxy.URL()), definitions),
		second: startWorker(t, pgtest.Connect(t, url), definitions),
	}
	l.settle(t)
	return l
}

// settle waits until the workers look for nothing by themselves, which would find what nobody was told: for as long as they are not sure
// that they hear notifications they look every second, and once more after that.
func (l *lostAnswers) settle(t *testing.T) {
	t.Helper()
	eventually(t, "notifications arrive", func() bool { return l.first.listener.Healthy() && l.second.listener.Healthy() })
	time.Sleep(soonEnough)
}

// lose calls call, which executes statement and loses the answer to it, and fails unless what follows does so soon.
func (l *lostAnswers) lose(t *testing.T, statement string, call func(ctx context.Context) error, follows func() bool) {
	t.Helper()
	fault := l.proxy.Inject(pgtest.Fault{Statement: statement, Kind: pgtest.FaultCutAfterCommit, Nth: 1})
	defer fault.Stop()
	began := time.Now()
	if err := call(testContext(t)); err != nil && !errors.Is(err, workflow.ErrOutcomeUnknown) {
		t.Fatal(err)
	}
	eventually(t, "what was asked for is done", follows)
	if took := time.Since(began); took > soonEnough || fault.Hits() != 1 {
		t.Errorf("%d answers to %s were lost, and it took %s", fault.Hits(), statement, took)
	}
}

func (l *lostAnswers) ended(t *testing.T, id string) bool {
	t.Helper()
	run, err := l.second.Get(testContext(t), id)
	return err == nil && run.Status.Final()
}

func startParked(t *testing.T, by *worker, flow *workflow.Workflow[int, int], id string) {
	t.Helper()
	if _, err := flow.Start(testContext(t), by.Engine, 0, workflow.WithID(id)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run waits", func() bool {
		run, err := by.Get(testContext(t), id)
		return err == nil && run.Status == workflow.StatusWaiting
	})
	time.Sleep(20 * time.Millisecond) // and has looked once more
}

func TestAMessageWhoseAnswerIsLostWakesItsReceiver(t *testing.T) {
	t.Parallel()
	l := newLostAnswers(t, answerless)
	for i, by := range []*worker{l.first, l.second} {
		for key, statement := range map[string]string{"": "DeliverDirect", "key": "DeliverMessages"} {
			id := fmt.Sprintf("receiver %d%s", i, key)
			startParked(t, by, answerless, id)
			l.lose(t, statement, func(ctx context.Context) error {
				if key == "" {
					return l.first.SendTo(ctx, id, "letters", 1)
				}
				return l.first.SendTo(ctx, id, "letters", 1, workflow.WithSendKey(id))
			}, func() bool { return l.ended(t, id) })
		}
	}
}

func TestAnEventWhoseAnswerIsLostWakesThoseWhoWait(t *testing.T) {
	t.Parallel()
	for what, send := range map[string]func(*lostAnswers, context.Context) error{
		"outside": func(l *lostAnswers, ctx context.Context) error {
			return l.first.SendEvent(ctx, workflow.OutgoingEvent{Type: "happened", Source: "outside", ID: "1", Data: 1})
		},
		"run": func(l *lostAnswers, ctx context.Context) error {
			_, err := reporter.Start(ctx, l.first.Engine, 1)
			return err
		},
	} {
		for _, waiting := range []int{1, 20} { // few are polled for at once
			t.Run(fmt.Sprint(what, waiting), func(t *testing.T) {
				t.Parallel()
				l := newLostAnswers(t, audience, reporter)
				for n := range 2 * waiting {
					startParked(t, []*worker{l.first, l.second}[n%2], audience, fmt.Sprint(n))
				}
				l.lose(t, "SendEvents", func(ctx context.Context) error { return send(l, ctx) }, func() bool {
					for n := range 2 * waiting {
						if !l.ended(t, fmt.Sprint(n)) {
							return false
						}
					}
					return true
				})
			})
		}
	}
}

func TestACancellationWhoseAnswerIsLostIsToldToWhoExecutesAndWhoWaits(t *testing.T) {
	t.Parallel()
	var executing atomic.Int64
	endless := workflow.DefineActivity("endless", func(ctx context.Context, _ int) (int, error) {
		executing.Add(1)
		defer executing.Add(-1)
		<-ctx.Done()
		return 0, ctx.Err()
	})
	held := workflow.Define("held", func(ctx *workflow.Context, n int) (int, error) { return endless.Execute(ctx, n) })
	l := newLostAnswers(t, held)
	for i, by := range []*worker{l.first, l.second} {
		id := fmt.Sprint(i)
		run, err := held.Start(testContext(t), by.Engine, 0, workflow.WithID(id))
		if err != nil {
			t.Fatal(err)
		}
		eventually(t, "the activity executes", func() bool { return executing.Load() == 1 })
		var told atomic.Bool
		go func() {
			_, err := run.Result(testContext(t))
			told.Store(errors.Is(err, workflow.ErrCancelled))
		}()
		l.lose(t, "CancelRun", func(ctx context.Context) error { return l.first.Cancel(ctx, id, "no") }, func() bool {
			return executing.Load() == 0 && told.Load()
		})
	}
}

func TestARetryWhoseAnswerIsLostGoesOn(t *testing.T) {
	t.Parallel()
	var executed atomic.Int64
	failing := workflow.Define("failing", func(*workflow.Context, int) (int, error) {
		executed.Add(1)
		return 0, errors.New("out of order")
	})
	l := newLostAnswers(t, failing)
	if _, err := failing.Start(testContext(t), l.first.Engine, 0, workflow.WithID("one")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run has failed", func() bool { return l.ended(t, "one") })
	l.lose(t, "RetryRun", func(ctx context.Context) error { return l.first.Retry(ctx, "one") }, func() bool { return executed.Load() == 2 })
}

func TestALaterStartWhoseAnswerIsLostBeginsInTime(t *testing.T) {
	t.Parallel()
	l := newLostAnswers(t, early)
	began := time.Now()
	l.lose(t, "StartLater", func(ctx context.Context) error {
		_, err := early.Start(ctx, l.first.Engine, 1, workflow.WithID("later"), workflow.WithDelay(500*time.Millisecond))
		return err
	}, func() bool { return l.ended(t, "later") })
	if took := time.Since(began); took < 500*time.Millisecond {
		t.Errorf("the run has begun %s after its start", took)
	}
}
