package workflow_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// Whoever waits for a database that is away is told so when its time is over, by whatever it calls, and the reason is logged once.
func TestCallersLearnThatTheDatabaseCannotBeReached(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(testContext(t))
	if err != nil {
		t.Fatal(err)
	}
	var logged lines
	w := startWorker(t, pgtest.Connect(t, url), []workflow.Definition{steps}, configured(func(c *workflow.Config) { c.Logger = logged.logger() }))
	if err := server.Halt(testContext(t), "immediate"); err != nil {
		t.Fatal(err)
	}
	// Statements that are on their way when the connection ends say so; what comes after that waits for the next.
	eventually(t, "the engine has noticed", func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		err := w.SendTo(ctx, "nobody", "approvals", 1)
		return err != nil && strings.Contains(err.Error(), "the database cannot be reached")
	})
	calls := map[string]func(ctx context.Context) error{
		"Start": func(ctx context.Context) error { _, err := steps.Start(ctx, w.Engine, 1); return err },
		"Start with id": func(ctx context.Context) error {
			_, err := steps.Start(ctx, w.Engine, 1, workflow.WithID("x"))
			return err
		},
		"StartMany": func(ctx context.Context) error {
			_, err := steps.StartMany(ctx, w.Engine, make([]workflow.StartRequest[int], 3))
			return err
		},
		"SendTo":  func(ctx context.Context) error { return w.SendTo(ctx, "x", "approvals", 1) },
		"Publish": func(ctx context.Context) error { return w.Publish(ctx, "approvals", 1) },
		"SendEvent": func(ctx context.Context) error {
			return w.SendEvent(ctx, workflow.OutgoingEvent{Type: "paid", Source: "test"})
		},
		"Retry":  func(ctx context.Context) error { return w.Retry(ctx, "x") },
		"Result": func(ctx context.Context) error { _, err := steps.Run(w.Engine, "x").Result(ctx); return err },
	}
	for name, call := range calls {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := call(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "the database cannot be reached: ") || !strings.Contains(err.Error(), "connect") {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, call := range map[string]func(ctx context.Context) error{ // on the pool, which says it by itself if it can
		"Get":     func(ctx context.Context) error { _, err := w.Get(ctx, "x"); return err },
		"List":    func(ctx context.Context) error { _, err := w.List(ctx, workflow.Filter{}); return err },
		"History": func(ctx context.Context) error { _, err := w.History(ctx, "x"); return err },
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		err := call(ctx)
		cancel()
		if err == nil || !strings.Contains(err.Error(), "connect") {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := server.Resume(testContext(t)); err != nil {
		t.Fatal(err)
	}
	eventually(t, "calls succeed again", func() bool { _, err := steps.Start(testContext(t), w.Engine, 1); return err == nil })
	said := map[any]int{}
	for _, line := range logged.all(t) {
		said[line["msg"]]++
	}
	if said["the engine cannot connect to the database, what it has to write is kept"] == 0 || said["the engine is connected again"] == 0 {
		t.Errorf("it is logged as %v", said)
	}
}
