package workflow_test

import (
	"bytes"
	"context"
	"log/slog"
	"strings"
	"sync"
	"testing"

	sdktrace "go.opentelemetry.io/otel/sdk/trace"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// wild is a span processor that panics.
type wild struct{ atStart, atEnd bool }

func (w wild) OnStart(context.Context, sdktrace.ReadWriteSpan) {
	if w.atStart {
		panic("at the start")
	}
}

func (w wild) OnEnd(sdktrace.ReadOnlySpan) {
	if w.atEnd {
		panic("at the end")
	}
}
func (wild) Shutdown(context.Context) error   { return nil }
func (wild) ForceFlush(context.Context) error { return nil }

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

// A tracer that panics ends neither the process nor a run, wherever its spans begin and end; that is said once.
func TestATracerThatPanicsEndsNothing(t *testing.T) {
	t.Parallel()
	for name, processor := range map[string]wild{"at the start": {atStart: true}, "at the end": {atEnd: true}} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			add := workflow.DefineActivity("add", func(_ context.Context, n int) (int, error) { return n + 1, nil })
			flow := workflow.Define("flow", func(ctx *workflow.Context, n int) (int, error) {
				beside := add.Go(ctx, n)
				n, err := add.Execute(ctx, n)
				if err != nil {
					return 0, err
				}
				if _, err := beside.Get(ctx); err != nil {
					return 0, err
				}
				if err := workflow.Sleep(ctx, 1); err != nil {
					return 0, err
				}
				message, err := workflow.Receive[int](ctx, "letters")
				return n + message.Body, err
			})
			log := &lockedBuffer{}
			w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow}, configured(func(c *workflow.Config) {
				c.TracerProvider = sdktrace.NewTracerProvider(sdktrace.WithSpanProcessor(processor))
				c.Logger = slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelError}))
			}))
			ctx := testContext(t)
			run, err := flow.Start(ctx, w.Engine, 1)
			if err != nil {
				t.Fatal(err)
			}
			if err := w.SendTo(ctx, run.ID(), "letters", 10); err != nil {
				t.Fatal(err)
			}
			if out, err := run.Result(ctx); err != nil || out != 12 {
				t.Errorf("%d, %v", out, err)
			}
			w.shutdown(t)
			if lines := log.text.String(); strings.Count(lines, "has panicked") != 1 || strings.Count(lines, "level=ERROR") != 1 {
				t.Errorf("want one line:\n%s", lines)
			}
		})
	}
}
