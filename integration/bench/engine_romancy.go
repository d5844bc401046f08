package main

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/workflow"
)

const stepsPerRun = 5

var step = workflow.DefineActivity("step", func(_ context.Context, n int) (int, error) { return addOne(n), nil })

var fiveSteps = workflow.Define("five_steps", func(ctx *workflow.Context, n int) (int, error) {
	for range stepsPerRun {
		var err error
		if n, err = step.Execute(ctx, n); err != nil {
			return n, err
		}
	}
	return n, nil
})

var receiver = workflow.Define("receiver", func(ctx *workflow.Context, messages int) (int, error) {
	for range messages {
		if _, err := workflow.Receive[int](ctx, channel); err != nil {
			return 0, err
		}
		observed.arrivals <- time.Now()
	}
	return messages, nil
})

var sleeper = workflow.Define("sleeper", func(ctx *workflow.Context, sleep time.Duration) (int, error) {
	begun := time.Now() // of this execution: a replayed one would give a negative lateness
	if err := workflow.Sleep(ctx, sleep); err != nil {
		return 0, err
	}
	observed.lateness <- time.Since(begun) - sleep
	return 0, nil
})

// slowSteps take slowStep each, so that a crash finds them under way.
const slowStep = 200 * time.Millisecond

var pause = workflow.DefineActivity("pause", func(ctx context.Context, n int) (int, error) {
	pausing.Add(1)
	select {
	case <-time.After(slowStep):
	case <-ctx.Done():
	}
	return n + 1, ctx.Err()
})

// pausing counts the slow steps begun in this process.
var pausing atomic.Int64

var slowSteps = workflow.Define("slow_steps", func(ctx *workflow.Context, n int) (int, error) {
	for range stepsPerRun {
		var err error
		if n, err = pause.Execute(ctx, n); err != nil {
			return n, err
		}
	}
	return n, nil
})

// romancySystem is this library as an application uses it: an App on a database's URL, with everything that comes with it.
type romancySystem struct{ app *romancy.App }

func newRomancy(ctx context.Context, as assignment) (system, error) {
	url, err := withParameter(as.URL, "pool_max_conns", fmt.Sprint(poolConnections))
	if err != nil {
		return nil, err
	}
	options := []romancy.Option{
		romancy.WithDatabase(url), romancy.WithWorkflows(fiveSteps, receiver, sleeper, slowSteps),
		romancy.WithLogger(slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))),
	}
	if as.Outside {
		options = append(options, romancy.WithClientOnly())
	}
	app := romancy.NewApp(options...)
	if err := app.Start(ctx); err != nil {
		return nil, err
	}
	return &romancySystem{app}, nil
}

func (r *romancySystem) stop(ctx context.Context) error { return r.app.Shutdown(ctx) }

func (r *romancySystem) fiveSteps(ctx context.Context) error {
	run, err := fiveSteps.Start(ctx, r.app.Engine(), 0)
	if err != nil {
		return err
	}
	observed.points.Add(1)
	defer observed.points.Add(1)
	return wantFive(run.Result(ctx))
}

func (r *romancySystem) startReceiver(ctx context.Context, messages int) (string, error) {
	run, err := receiver.Start(ctx, r.app.Engine(), messages)
	if err != nil {
		return "", err
	}
	return run.ID(), nil
}

func (r *romancySystem) send(ctx context.Context, to string, message int) error {
	return r.app.Engine().SendTo(ctx, to, channel, message)
}

func (r *romancySystem) startSleeper(ctx context.Context, sleep time.Duration) error {
	_, err := sleeper.Start(ctx, r.app.Engine(), sleep)
	return err
}

// addOrders adds what only this system is asked for.
func (r *romancySystem) addOrders(table map[string]func(context.Context, json.RawMessage) (any, error)) {
	table["start"] = taking(r.start)
	table["result"] = taking(r.result)
	table["crowd"] = taking(r.crowd)
	table["results"] = taking(r.results)
	table["parked"] = taking(r.awaitParked)
	table["memory"] = taking(r.memory)
}

// start starts a run of five steps and does not wait for it.
func (r *romancySystem) start(ctx context.Context, _ nothing) (any, error) {
	run, err := fiveSteps.Start(ctx, r.app.Engine(), 0)
	if err != nil {
		return nil, err
	}
	return run.ID(), nil
}

// result waits for the end of a run of five steps and returns when it was seen.
func (r *romancySystem) result(ctx context.Context, id string) (any, error) {
	if err := wantFive(fiveSteps.Run(r.app.Engine(), id).Result(ctx)); err != nil {
		return nil, err
	}
	return time.Now(), nil
}

// crowd starts runs of slow steps and returns their ids as soon as each is in its second step or further.
func (r *romancySystem) crowd(ctx context.Context, runs int) (any, error) {
	ids := make([]string, runs)
	if err := each(runs, runs, func(i int) error {
		run, err := slowSteps.Start(ctx, r.app.Engine(), 0)
		if err == nil {
			ids[i] = run.ID()
		}
		return err
	}); err != nil {
		return nil, err
	}
	// Each takes as long as the others, so this many steps begun means that all are past the first.
	return ids, poll(ctx, func() bool { return pausing.Load() >= int64(2*runs) })
}

// results waits for the end of runs of slow steps and returns when the last was seen.
func (r *romancySystem) results(ctx context.Context, ids []string) (any, error) {
	err := each(len(ids), len(ids), func(i int) error { return wantFive(slowSteps.Run(r.app.Engine(), ids[i]).Result(ctx)) })
	return time.Now(), err
}

// awaitParked returns when so many runs are parked in memory here.
func (r *romancySystem) awaitParked(ctx context.Context, runs int) (any, error) {
	return nothing{}, poll(ctx, func() bool { return r.app.Engine().Status().Parked >= runs })
}
