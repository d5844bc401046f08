package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A failure is recorded, and still is the error of this package that it was: for who waits for the run, and for the workflow whose activity
// has returned it.
func TestAFailureIsStillTheErrorThatItWas(t *testing.T) {
	t.Parallel()
	kinds := map[string]error{
		"timeout": workflow.ErrTimeout, "undeliverable": workflow.ErrUndeliverable, "mode_conflict": workflow.ErrModeConflict,
		"too_large": workflow.ErrTooLarge, "deadline_exceeded": context.DeadlineExceeded,
	}
	failing := workflow.DefineActivity("failing", func(_ context.Context, kind string) (int, error) {
		return 0, workflow.Terminal(fmt.Errorf("pay: %w", kinds[kind]))
	})
	flow := workflow.Define("flow", func(ctx *workflow.Context, kind string) (string, error) {
		switch kind {
		case "receive":
			_, err := workflow.Receive[int](ctx, "letters", workflow.WithTimeout(time.Millisecond))
			return "", err
		case "send":
			return "", workflow.SendTo(ctx, "nobody", "letters", 1)
		}
		_, err := failing.Execute(ctx, kind)
		if !errors.Is(err, kinds[kind]) {
			return "", fmt.Errorf("the activity failed with %T %w", err, err)
		}
		return "", kinds[kind]
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	ctx := testContext(t)
	kinds["receive"], kinds["send"] = workflow.ErrTimeout, workflow.ErrUndeliverable
	for kind, want := range kinds {
		run, err := flow.Start(ctx, w.Engine, kind)
		if err != nil {
			t.Fatal(err)
		}
		_, err = run.Result(ctx)
		var failed *workflow.RunError
		if !errors.Is(err, want) || !errors.As(err, &failed) || failed.Status != workflow.StatusFailed {
			t.Errorf("%s: %v", kind, err)
		}
		for other, is := range kinds {
			if !errors.Is(want, is) && errors.Is(err, is) {
				t.Errorf("%s is %s, too", kind, other)
			}
		}
	}
}

// A type of the application's own makes another error, whatever it is called.
func TestATypeOfTheApplicationsIsNoErrorOfOurs(t *testing.T) {
	t.Parallel()
	ours := []error{workflow.ErrTimeout, workflow.ErrUndeliverable, workflow.ErrModeConflict, workflow.ErrDiverged}
	flow := workflow.Define("flow", func(_ *workflow.Context, kind string) (string, error) {
		return "", workflow.NewError(kind, "of the shop")
	})
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	ctx := testContext(t)
	for _, kind := range []string{"timeout", "undeliverable", "mode_conflict", "diverged"} {
		run, err := flow.Start(ctx, w.Engine, kind)
		if err != nil {
			t.Fatal(err)
		}
		_, err = run.Result(ctx)
		if !errors.Is(err, workflow.NewError(kind, "")) {
			t.Errorf("%s: %v", kind, err)
		}
		for _, one := range ours {
			if errors.Is(err, one) {
				t.Errorf("%s is %v", kind, one)
			}
		}
	}
}
