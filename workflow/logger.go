package workflow

import (
	"context"
	"log/slog"
)

// workerHandler adds the worker's id to every line, while there is one: it changes when a lease is lost.
type workerHandler struct {
	slog.Handler

	worker func() int64
}

func (h workerHandler) Handle(ctx context.Context, line slog.Record) error {
	if id := h.worker(); id != 0 {
		line = line.Clone()
		line.AddAttrs(slog.Int64("worker", id))
	}
	return h.Handler.Handle(ctx, line)
}

func (h workerHandler) WithAttrs(attributes []slog.Attr) slog.Handler {
	return workerHandler{h.Handler.WithAttrs(attributes), h.worker}
}

func (h workerHandler) WithGroup(name string) slog.Handler {
	return workerHandler{h.Handler.WithGroup(name), h.worker}
}

// about returns the logger for what is said of a run.
func (e *Engine) about(id, workflow string) *slog.Logger {
	return e.logger.With("instance_id", id, "workflow", workflow)
}
