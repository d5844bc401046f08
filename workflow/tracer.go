package workflow

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/embedded"
	"go.opentelemetry.io/otel/trace/noop"
)

// carefulTracer is the application's tracer, whose panics, or those of a span processor, end nothing: neither the process, from a goroutine of the
// engine's, nor a run, in the middle of a step. The first is logged; what it was about is not traced.
type carefulTracer struct {
	embedded.Tracer

	tracer trace.Tracer
	logger *slog.Logger
	told   *sync.Once
}

func newCarefulTracer(tracer trace.Tracer, logger *slog.Logger) carefulTracer {
	return carefulTracer{tracer: tracer, logger: logger, told: new(sync.Once)}
}

// Start implements trace.Tracer.
func (t carefulTracer) Start(ctx context.Context, name string, options ...trace.SpanStartOption) (within context.Context, span trace.Span) {
	defer t.recovered(func() { within, span = ctx, noop.Span{} }) //nolint:fatcontext // it is the one given
	within, span = t.tracer.Start(ctx, name, options...)
	if !span.IsRecording() { // nobody is told of it
		return within, span
	}
	span = carefulSpan{Span: span, tracer: t}
	return trace.ContextWithSpan(within, span), span
}

// recovered is deferred. instead is what is done after a panic.
func (t carefulTracer) recovered(instead func()) {
	value := recover()
	if value == nil {
		return
	}
	t.told.Do(func() {
		t.logger.Error("the tracer, or a span processor, has panicked: spans are missing; this is said once", "panic", fmt.Sprintf("%T", value))
	})
	instead()
}

// carefulSpan is a span of it. Of what the engine does with a span, its methods may panic.
type carefulSpan struct {
	trace.Span

	tracer carefulTracer
}

func nothing() {}

// End implements trace.Span.
func (s carefulSpan) End(options ...trace.SpanEndOption) {
	defer s.tracer.recovered(nothing)
	s.Span.End(options...)
}

// AddEvent implements trace.Span.
func (s carefulSpan) AddEvent(name string, options ...trace.EventOption) {
	defer s.tracer.recovered(nothing)
	s.Span.AddEvent(name, options...)
}

// SetStatus implements trace.Span.
func (s carefulSpan) SetStatus(code codes.Code, description string) {
	defer s.tracer.recovered(nothing)
	s.Span.SetStatus(code, description)
}

// SetAttributes implements trace.Span.
func (s carefulSpan) SetAttributes(attributes ...attribute.KeyValue) {
	defer s.tracer.recovered(nothing)
	s.Span.SetAttributes(attributes...)
}
