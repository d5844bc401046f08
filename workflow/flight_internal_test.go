package workflow

import (
	"context"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// A step may land when its run has looked for it and is about to be parked: nobody would ever resume the run.
func TestStepThatLandsWhileItsRunParksIsSeen(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	charge := DefineActivity("charge", func(context.Context, int) (int, error) {
		<-release
		return 1, nil
	})
	flow := Define("parks", func(ctx *Context, _ int) (int, error) {
		future := charge.Go(ctx, 0)
		over := func() bool { return ctx.run.air.over(future.flight) }
		looks := 0
		ctx.run.awaitFlights(func() bool {
			looks++
			seen := over()
			if looks == 2 { // the last before it is decided whether to park
				close(release)
				for !over() {
					ctx.run.idle(nil)
				}
			}
			return seen
		})
		return future.Get(ctx)
	})
	engine, err := NewEngine(Config{Pool: pgtest.Pool(t), Workflows: []Definition{flow}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := engine.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := engine.Shutdown(context.Background()); err != nil {
			t.Error(err)
		}
	})
	run, err := flow.Start(ctx, engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != 1 {
		t.Errorf("got %d, %v", got, err)
	}
}
