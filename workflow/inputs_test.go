package workflow_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Commands in goroutines of the workflow's own that are kept apart take their positions in an order of their own. When that is another in the
// replay, results are never answered for others: the run is stuck, with its history as it was.
func TestResultsAreNeverSwappedInReplay(t *testing.T) {
	t.Parallel()
	for how, orders := range map[string][2][]int{
		"swapped":          {{0, 1, 2}, {0, 2, 1}},
		"rotated":          {{0, 1, 2}, {1, 2, 0}},
		"rotated back":     {{0, 1, 2}, {2, 0, 1}},
		"apart":            {{0, 1, 2, 3}, {3, 1, 2, 0}},
		"not recorded yet": {{2}, {0, 1, 2}},
	} {
		for _, beside := range []bool{false, true} {
			name := how
			if beside {
				name += ", beside"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				ctx := testContext(t)
				var executions atomic.Int32
				double := workflow.DefineActivity("double", func(_ context.Context, n int) (int, error) { return 2 * n, nil })
				flow := workflow.Define("doubling", func(ctx *workflow.Context, _ int) (int, error) {
					replay := executions.Add(1) > 1
					order := orders[0]
					if replay {
						order = orders[1]
					}
					for step, n := range order {
						if replay && how == "not recorded yet" && step == 1 {
							if _, err := workflow.Receive[int](ctx, "go"); err != nil {
								return 0, err
							}
						}
						var got int
						var err error
						if beside {
							got, err = double.Go(ctx, n).Get(ctx)
						} else {
							got, err = double.Execute(ctx, n)
						}
						if err != nil {
							return 0, err
						}
						if got != 2*n && step == len(order)-1 {
							return 0, errors.New("results were swapped")
						}
					}
					_, err := workflow.Receive[int](ctx, "go")
					return 0, err
				})
				one := startWorker(t, pool, []workflow.Definition{flow})
				run, err := flow.Start(ctx, one.Engine, 0)
				if err != nil {
					t.Fatal(err)
				}
				eventually(t, "it is parked", func() bool {
					return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_channels = array['go']") == 1
				})
				one.shutdown(t)
				before := count(t, pool, "select count(*) from romancy.history")
				two := startWorker(t, pool, []workflow.Definition{flow})
				if err := two.SendTo(ctx, run.ID(), "go", 1); err != nil {
					t.Fatal(err)
				}
				wantStuck(ctx, t, flow.Run(two.Engine, run.ID()), `activity "double" is given the input whose result is recorded at position`)
				if how != "not recorded yet" && count(t, pool, "select count(*) from romancy.history") != before {
					t.Error("history was written to")
				}
			})
		}
	}
}

// A loop asks the same in each round, until what it asks has another form: the new one is recorded for later rounds, and given to all. It is
// answered with what is recorded, and logged once for each position, also when the former form is back.
func TestNewFormOfARepeatedInputIsNoSwap(t *testing.T) {
	t.Parallel()
	for changed, inputs := range map[string][]string{ // as each worker gives them
		"a field added, and rolled back": {`{"ID":7}`, `{"ID":7,"Verbose":false}`, `{"ID":7,"Verbose":false}`, `{"ID":7}`},
		"a flag switched on and off":     {`{"DryRun":false}`, `{"DryRun":true}`, `{"DryRun":true}`, `{"DryRun":false}`},
		"the day":                        {`1`, `2`, `2`, `3`},
	} {
		for _, beside := range []bool{false, true} {
			name := changed
			if beside {
				name += ", beside"
			}
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				pool := pgtest.Pool(t)
				ctx := testContext(t)
				poll := workflow.DefineActivity("poll", func(context.Context, json.RawMessage) (string, error) { return "pending", nil })
				polling := func(in string) *workflow.Workflow[int, int] {
					return workflow.Define("polling", func(ctx *workflow.Context, _ int) (int, error) {
						for {
							var err error
							if beside {
								_, err = poll.Go(ctx, json.RawMessage(in)).Get(ctx)
							} else {
								_, err = poll.Execute(ctx, json.RawMessage(in))
							}
							if err != nil {
								return 0, err
							}
							if _, err := workflow.Receive[int](ctx, "tick"); err != nil {
								return 0, err
							}
						}
					})
				}
				parked := func(rounds int) {
					eventually(t, "it has polled, and waits or is stuck", func() bool {
						return count(t, pool, "select count(*) from romancy.history where kind = 'activity'") == rounds &&
							count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and wake_channels = array['tick']") == 1 ||
							count(t, pool, "select count(*) from romancy.instances where status = 'stuck'") == 1
					})
				}
				flow := polling(inputs[0])
				w := startWorker(t, pool, []workflow.Definition{flow})
				run, err := flow.Start(ctx, w.Engine, 0)
				if err != nil {
					t.Fatal(err)
				}
				parked(1)
				for round := 1; round < len(inputs); round++ {
					w.shutdown(t)
					var logged lines
					w = startWorker(t, pool, []workflow.Definition{polling(inputs[round])}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
					if err := w.SendTo(ctx, run.ID(), "tick", round); err != nil {
						t.Fatal(err)
					}
					parked(round + 1)
					if info, err := w.Get(ctx, run.ID()); err != nil || info.Status == workflow.StatusStuck {
						t.Fatalf("round %d: %s, %v, %v", round+1, info.Status, info.Err, err)
					}
					want := map[any]int{}
					for before, in := range inputs[:round] {
						if in != inputs[round] {
							want[float64(2*before+1)] = 1 // a message follows each of them
						}
					}
					if warned := warnedInputs(t, &logged, run.ID()); !maps.Equal(warned, want) {
						t.Errorf("round %d: warned of positions %v, want %v", round+1, warned, want)
					}
				}
			})
		}
	}
}

// warnedInputs returns how often each position of the run was said to be given another input.
func warnedInputs(t *testing.T, logged *lines, run string) map[any]int {
	t.Helper()
	warned := map[any]int{}
	for _, line := range logged.all(t) {
		if line["instance_id"] == run && strings.Contains(fmt.Sprint(line["msg"]), "another input") {
			warned[line["position"]]++
		}
	}
	return warned
}

// An input that differs in the replay, because it holds the time or a field that was added since, and is that of no other step, is answered with
// what is recorded, and logged once for each position. A record of a former version, without a digest, is not compared.
func TestInputThatIsRecordedNowhereIsLoggedOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	var executions atomic.Int64
	type asked struct {
		What string
		At   int64
	}
	ask := workflow.DefineActivity("ask", func(_ context.Context, in asked) (string, error) { return in.What, nil })
	flow := workflow.Define("asking", func(ctx *workflow.Context, _ int) (string, error) {
		execution := executions.Add(1)
		first, err := ask.Execute(ctx, asked{"first", execution})
		if err != nil {
			return "", err
		}
		old, err := ask.Execute(ctx, asked{"old", execution})
		if err != nil {
			return "", err
		}
		second, err := ask.Go(ctx, asked{"second", execution}).Get(ctx)
		if err != nil {
			return "", err
		}
		same, err := ask.Execute(ctx, asked{"same", 0})
		if err != nil {
			return "", err
		}
		for range 2 {
			if _, err := workflow.Receive[int](ctx, "go"); err != nil {
				return "", err
			}
		}
		return first + old + second + same, nil
	})
	var logged lines
	logging := configured(func(c *workflow.Config) { c.Logger = logged.logger(); c.CacheSize = 1 })
	one := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, one.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	parked := func() bool {
		return count(t, pool, "select count(*) from romancy.instances where id = '"+run.ID()+"' and status = 'waiting' and wake_channels = array['go']") == 1
	}
	eventually(t, "it is parked", parked)
	one.shutdown(t)
	if _, err := pool.Exec(ctx, `update romancy.history set payload = '{"output":"old"}' where position = 2`); err != nil {
		t.Fatal(err)
	}
	two := startWorker(t, pool, []workflow.Definition{flow, echoing}, logging)
	for message := range 2 {
		if err := two.SendTo(ctx, run.ID(), "go", message); err != nil {
			t.Fatal(err)
		}
		if message == 0 {
			eventually(t, "the message is received", func() bool {
				return count(t, pool, "select count(*) from romancy.history where kind = 'receive'") == 1 && parked()
			})
			for range 2 { // of which one takes its place in memory
				if _, err := flow.Start(ctx, two.Engine, 0); err != nil {
					t.Fatal(err)
				}
			}
			eventually(t, "the run is evicted", func() bool { return two.Status().Evicted > 0 })
		}
	}
	if got, err := flow.Run(two.Engine, run.ID()).Result(ctx); err != nil || got != "firstoldsecondsame" {
		t.Errorf("got %q, %v", got, err)
	}
	if n := executions.Load(); n < 3 {
		t.Errorf("%d executions, so nothing was replayed twice", n)
	}
	if warned := warnedInputs(t, &logged, run.ID()); !maps.Equal(warned, map[any]int{1.0: 1, 3.0: 1}) {
		t.Errorf("warned of positions %v, want 1 and 3 once each", warned)
	}
}
