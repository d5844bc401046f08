package riverjobs

import (
	"context"
	"log/slog"
	"slices"
	"strings"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
)

// quiet passes an own client's log on one level lower where it is only informative: River says at INFO that a periodic
// job had nothing to insert, which is five lines a second of an idle cluster.
// Its warnings and errors come with each attempt of River's, so of each only the first of a minute passes, and floods
// count the others. What a notification has said is taken out: anybody can have sent it. floods may be nil.
type quiet struct {
	handler slog.Handler
	floods  *floods
}

// floods ration River's own lines.
type floods struct {
	lines    *outage.Flood // of each the first of a minute passes
	notified *outage.Flood // all about notifications, which anybody can send, are one
}

func newFloods(logger *slog.Logger) *floods {
	return &floods{
		lines: outage.NewFlood(logger, "River has said this more often in the last minute than is logged", 1),
		notified: outage.NewFlood(logger,
			"River has refused or dropped more notifications in the last minute than are logged: somebody else may notify on its channels", 1).Once(),
	}
}

// pass reports whether a line is to be logged. about: it is about a notification.
func (f *floods) pass(message string, about bool) bool {
	if about {
		return f.notified.Pass("")
	}
	return f.lines.Pass(message, "line", message)
}

func (f *floods) close() {
	f.lines.Close()
	f.notified.Close()
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
	about := aboutNotification(record.Message)
	if q.floods != nil && record.Level >= slog.LevelWarn && !q.floods.pass(record.Message, about) {
		return nil
	}
	record = withoutPayloads(record, about)
	record.Level = lower(record.Level)
	return q.handler.Handle(ctx, record)
}

// aboutNotification reports whether one of River's lines is about what a notification has said. That waiting for them
// has failed is a matter of the connection.
func aboutNotification(message string) bool {
	message = strings.ToLower(message)
	return strings.Contains(message, "notification") && !strings.Contains(message, "notification wait")
}

// withoutPayloads returns one of River's records without what it quotes of a notification.
func withoutPayloads(record slog.Record, about bool) slog.Record {
	said := func(attr slog.Attr) bool { return quotesNotification(attr, about) }
	var attrs []slog.Attr
	record.Attrs(func(attr slog.Attr) bool {
		attrs = append(attrs, attr)
		return true
	})
	if !slices.ContainsFunc(attrs, said) {
		return record
	}
	rest := slog.NewRecord(record.Time, record.Level, record.Message, record.PC)
	for _, attr := range attrs {
		err, isError := attr.Value.Any().(error)
		switch {
		case !said(attr):
			rest.AddAttrs(attr)
		case isError:
			rest.AddAttrs(slog.String(attr.Key, refusal.Decoding(err).Error()))
		}
	}
	rest.AddAttrs(slog.String("payload", "withheld"))
	return rest
}

// quotesNotification reports whether an attribute may quote a notification; about: its line is about one. River names
// in such lines what it has decoded, and has formatted some of the errors that quote what it could not decode.
func quotesNotification(attr slog.Attr, about bool) bool {
	switch attr.Key {
	case "payload", "action", "queue_in_message":
		return true
	case "client_id", "topic":
		return false
	}
	if err, isError := attr.Value.Any().(error); isError {
		return refusal.Decodes(err)
	}
	return about
}

func (q quiet) WithAttrs(attrs []slog.Attr) slog.Handler {
	return quiet{q.handler.WithAttrs(attrs), q.floods}
}

func (q quiet) WithGroup(name string) slog.Handler { return quiet{q.handler.WithGroup(name), q.floods} }
