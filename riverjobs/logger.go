package riverjobs

import (
	"context"
	"log/slog"

	"github.com/romancy-go/romancy/internal/outage"
)

// quiet passes an own client's log on one level lower where it is only informative: River says at INFO that a periodic
// job had nothing to insert, which is five lines a second of an idle cluster.
// Its warnings and errors come with each attempt of River's, so of each only the first of a minute passes, and flood counts the
// others. flood may be nil.
type quiet struct {
	handler slog.Handler
	flood   *outage.Flood
}

// newFlood rations River's own lines.
func newFlood(logger *slog.Logger) *outage.Flood {
	return outage.NewFlood(logger, "River has said this more often in the last minute than is logged", 1)
}

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
	if q.flood != nil && record.Level >= slog.LevelWarn && !q.flood.Pass(record.Message, "line", record.Message) {
		return nil
	}
	record.Level = lower(record.Level)
	return q.handler.Handle(ctx, record)
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{q.handler.WithAttrs(attrs), q.flood}
}

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.handler.WithGroup(name), q.flood} }
