package refusal

import (
	"context"
	"log/slog"
	"slices"
)

// Logger returns logger with a handler that prints errors of the database as Public does, wherever they come from. Given what it has
// returned, or nil, it returns that.
func Logger(logger *slog.Logger) *slog.Logger {
	if logger == nil {
		return nil
	}
	if _, already := logger.Handler().(publicHandler); already {
		return logger
	}
	return slog.New(publicHandler{logger.Handler()})
}

type publicHandler struct{ slog.Handler }

func (h publicHandler) Handle(ctx context.Context, record slog.Record) error {
	changed := false
	record.Attrs(func(attr slog.Attr) bool {
		changed = quotes(attr.Value)
		return !changed
	})
	if !changed {
		return h.Handler.Handle(ctx, record)
	}
	public := slog.NewRecord(record.Time, record.Level, record.Message, record.PC)
	record.Attrs(func(attr slog.Attr) bool {
		public.AddAttrs(publicAttr(attr))
		return true
	})
	return h.Handler.Handle(ctx, public)
}

func (h publicHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	public := make([]slog.Attr, 0, len(attrs))
	for _, attr := range attrs {
		public = append(public, publicAttr(attr))
	}
	return publicHandler{h.Handler.WithAttrs(public)}
}

func (h publicHandler) WithGroup(name string) slog.Handler {
	return publicHandler{h.Handler.WithGroup(name)}
}

// quotes reports whether value is to be replaced.
func quotes(value slog.Value) bool {
	if value.Kind() == slog.KindGroup {
		return slices.ContainsFunc(value.Group(), func(attr slog.Attr) bool { return quotes(attr.Value) })
	}
	err, ok := value.Any().(error)
	return ok && known(err)
}

func publicAttr(attr slog.Attr) slog.Attr {
	if !quotes(attr.Value) {
		return attr
	}
	if attr.Value.Kind() != slog.KindGroup {
		err, _ := attr.Value.Any().(error)
		// A handler may look into the error that it is given, so it gets the text.
		return slog.String(attr.Key, Text(err))
	}
	var group []slog.Attr
	for _, inner := range attr.Value.Group() {
		group = append(group, publicAttr(inner))
	}
	return slog.Attr{Key: attr.Key, Value: slog.GroupValue(group...)}
}
