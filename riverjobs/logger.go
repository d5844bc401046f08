package riverjobs

import (
	"context"
	"log/slog"
)

// quiet passes an own client's log on one level lower where it is only informative: River says at INFO that a periodic
// job had nothing to insert, which is five lines a second of an idle cluster.
type quiet struct{ handler slog.Handler }

func lower(level slog.Level) slog.Level {
	if level >= slog.LevelInfo && level < slog.LevelWarn {
		return slog.LevelDebug
	}
	return level
}

func (q quiet) Enabled(ctx context.Context, level slog.Level) bool {
	return q.handler.Enabled(ctx, lower(level))
}

func (q quiet) Handle(ctx context.Context, record slog.Record) error {
	record.Level = lower(record.Level)
	return q.handler.Handle(ctx, record)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler { return quiet{q.handler.WithAttrs(attrs)} }

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.handler.WithGroup(name)} }
