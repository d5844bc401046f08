package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// A run is one trace, whoever executes it: that of its starter, or one that begins with its start. The span of the start is
// in the run's row, and all its other spans have it as their ancestor:
//
//	start order               where it was started
//	  workflow order          a segment: a worker executes it, until it parks, ends or goes elsewhere
//	    activity charge       an attempt
//	    timer sleep           a deadline is recorded
//	    send approvals        a message is sent; its context travels in the message's metadata
//	  receive approvals       from the line that waits to the message, with a link to where that was sent
//	  workflow order          the next segment
//
// What is answered from history has been done before, and gets no span.

// w3c is how trace context is written: in rows, and in the metadata of messages.
var w3c = propagation.TraceContext{}

// What a segment ended with, beside the final states and stuck.
const (
	segmentParked = "parked"
	segmentLeft   = "left" // handed over, lost, or interrupted
)

// Kinds of spans, made once.
var (
	producing = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindProducer)}
	internal  = []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindInternal)}
)

// tracing is what a run knows of its trace. Without a tracer it stays as it is, and costs a look at a nil pointer a step.
type tracing struct {
	origin  trace.SpanContext          // of the start
	segment atomic.Pointer[runSegment] // the last one; nil: not traced. Steps beside the run's goroutine look at it
}

type runSegment struct{ span trace.Span }

// encodeTrace returns the span of ctx as it is stored; nil if there is none.
func encodeTrace(span trace.SpanContext) []byte {
	if !span.IsValid() {
		return nil
	}
	text, err := json.Marshal(carry(span))
	if err != nil {
		panic(err) // a map of strings
	}
	return text
}

func carry(span trace.SpanContext) propagation.MapCarrier {
	carrier := propagation.MapCarrier{}
	w3c.Inject(trace.ContextWithSpanContext(context.Background(), span), carrier)
	return carrier
}

// decodeTrace returns what encodeTrace was given, or metadata carries. Whatever else is there is no trace.
func decodeTrace(text []byte) trace.SpanContext {
	if text == nil {
		return trace.SpanContext{}
	}
	var carrier propagation.MapCarrier
	if json.Unmarshal(text, &carrier) != nil {
		return trace.SpanContext{}
	}
	return trace.SpanContextFromContext(w3c.Extract(context.Background(), carrier))
}

// beginStart begins the span of a start. The run belongs to its trace.
func (e *Engine) beginStart(ctx context.Context, ask *newStart) trace.Span {
	_, span := e.tracer.Start(ctx, "start "+ask.Workflow, producing...)
	if span.IsRecording() {
		span.SetAttributes(attribute.String("romancy.instance_id", ask.ID), attribute.String("romancy.workflow", ask.Workflow))
	}
	ask.Trace = encodeTrace(span.SpanContext())
	return span
}

func finishStart(span trace.Span, existing bool, err error) {
	if existing && span.IsRecording() {
		span.SetAttributes(attribute.Bool("romancy.existing", true))
	}
	endSpan(span, err)
}

// beginSegment begins the span of what is executed from now on.
func (r *run) beginSegment(replaying bool) {
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), r.tracing.origin)
	_, span := r.engine.tracer.Start(ctx, "workflow "+r.definition.Name(), internal...)
	if !span.SpanContext().IsValid() {
		return // nobody traces
	}
	if span.IsRecording() {
		span.SetAttributes(r.attributes(attribute.Bool("romancy.replaying", replaying))...)
	}
	if !r.tracing.origin.IsValid() {
		r.adoptTrace(span.SpanContext())
	}
	r.tracing.segment.Store(&runSegment{span})
}

// adoptTrace has the run continue this trace from now on, because its starter traces nothing. Rare, so it is not batched.
func (r *run) adoptTrace(origin trace.SpanContext) {
	r.tracing.origin = origin
	fence, text := r.fence(), encodeTrace(origin)
	r.engine.committer.Do(true, func(b *pgx.Batch) { r.engine.store.AdoptTrace(b, fence, text) }, func(_ struct{}, err error) {
		switch {
		case err == nil:
			r.engine.reports.traces.Succeeded(context.Background())
		case !errors.Is(err, commit.ErrClosed):
			r.engine.reports.traces.Failed(context.Background(), err, aboutRun(r.id, r.definition.Name())...)
		}
	})
}

func (r *run) attributes(more ...attribute.KeyValue) []attribute.KeyValue {
	return append(more, attribute.String("romancy.instance_id", r.id), attribute.String("romancy.workflow", r.definition.Name()),
		attribute.Int64("romancy.worker", r.engine.lease.ID()))
}

// endSegment ends it, unless it has been ended.
func (r *run) endSegment(outcome string, err error) {
	segment := r.tracing.segment.Load()
	if segment == nil {
		return
	}
	if segment.span.IsRecording() {
		segment.span.SetAttributes(attribute.String("romancy.outcome", outcome))
	}
	endSpan(segment.span, err)
}

// endLastSegment ends the span of a run that has ended.
func (r *run) endLastSegment(finish store.Finish) {
	if r.tracing.segment.Load() == nil {
		return
	}
	var cause error
	if finish.Error != nil {
		cause = r.engine.toldFailure(decodeFailure(finish.Error))
	}
	r.endSegment(finish.Status, cause)
}

// shownAttempt is an attempt that is under way.
type shownAttempt struct {
	run      *run
	key      activityKey
	began    time.Time
	measured bool
	span     trace.Span // nil: not traced
	over     bool
}

// attempt executes a step's body once, see try. It is the place where attempts are seen from outside: their spans, which are the
// parents of those that the body makes, and their durations. They begin when it may, see admission; its error can be errDraining
// instead. It may be called by any goroutine of the run.
func (r *run) attempt(ctx context.Context, s step, position int32, attempt int, body stepBody) (attempted, error) {
	leave, err := r.engine.admission.admit(ctx, r.id, r.definition.Name(), s)
	if err != nil {
		return attempted{}, fmt.Errorf("wait for a slot: %w", err)
	}
	defer leave()
	if s.begin != nil {
		if err := s.begin(); err != nil {
			return attempted{}, &interruption{err: err}
		}
	}
	ctx, shown := r.show(ctx, s, position, attempt)
	defer shown.end(attemptFailed, errGoexit) // unless the body has returned
	done, err := r.try(ctx, s, position, attempt, body)
	switch {
	case err == nil:
		shown.end(attemptCompleted, nil)
	case errors.As(err, new(*interruption)):
		shown.end(attemptAbandoned, r.engine.told(err))
	default:
		shown.end(attemptFailed, r.engine.told(err))
	}
	return done, err
}

// show begins to show an attempt; its body is to be given the context returned.
func (r *run) show(ctx context.Context, s step, position int32, attempt int) (context.Context, shownAttempt) {
	shown := shownAttempt{run: r, key: activityKey{r.definition.Name(), s.name, s.kind}}
	if shown.measured = r.engine.metrics.activity.Enabled(ctx); shown.measured {
		shown.began = time.Now()
	}
	if segment := r.tracing.segment.Load(); segment != nil {
		ctx, shown.span = r.engine.tracer.Start(trace.ContextWithSpan(ctx, segment.span), string(s.kind)+" "+s.name, //nolint:spancheck // shown.end ends it
			trace.WithAttributes(r.attributes(attribute.Int("romancy.position", int(position)), attribute.Int("romancy.attempt", attempt))...))
	}
	return ctx, shown
}

func (a *shownAttempt) end(outcome string, err error) {
	if a.over {
		return
	}
	a.over = true
	if a.measured {
		a.run.engine.metrics.attempted(a.key, outcome, time.Since(a.began))
	}
	if a.span != nil {
		endSpan(a.span, err)
	}
}

// traceTimer shows that a deadline has been recorded.
func (r *run) traceTimer(ask store.Wait, firesAtMicros int64) {
	segment := r.tracing.segment.Load()
	if segment == nil {
		return
	}
	_, span := r.engine.tracer.Start(trace.ContextWithSpan(context.Background(), segment.span), "timer "+ask.TimerName,
		trace.WithAttributes(r.attributes(attribute.Int("romancy.position", int(ask.TimerPosition)),
			attribute.String("romancy.fires_at", time.UnixMicro(firesAtMicros).UTC().Format(time.RFC3339Nano)))...))
	span.End()
}

// receivedMessage is what a span says of a message.
type receivedMessage struct {
	ID       int64           `json:"id"`
	Sender   string          `json:"sender"`
	Metadata json.RawMessage `json:"metadata"`
}

// traceChoice shows that a receive or a Select is over, and recorded. It has waited here since began.
func (r *run) traceChoice(kind journal.Kind, name string, position int32, began time.Time, outcome string, message []byte) {
	if r.tracing.segment.Load() == nil {
		return
	}
	var messages []receivedMessage
	if received := (receivedMessage{}); message != nil && json.Unmarshal(message, &received) == nil {
		messages = append(messages, received)
	}
	if kind == journal.Receive {
		r.traceReceived("receive "+name, position, began, outcome, messages)
		return
	}
	r.traceReceived(string(kind), position, began, outcome, messages)
}

// traceMore shows that a run has taken more messages of a channel.
func (r *run) traceMore(channel string, position int32, list []byte) {
	var messages []receivedMessage
	if r.tracing.segment.Load() != nil && json.Unmarshal(list, &messages) == nil && len(messages) > 0 {
		r.traceReceived("receive "+channel, position, time.Now(), store.GotMessage, messages)
	}
}

func (r *run) traceReceived(name string, position int32, began time.Time, outcome string, messages []receivedMessage) {
	attributes := r.attributes(attribute.Int("romancy.position", int(position)), attribute.String("romancy.outcome", outcome))
	options := []trace.SpanStartOption{trace.WithSpanKind(trace.SpanKindConsumer), trace.WithTimestamp(began)}
	for _, message := range messages {
		if sent := decodeTrace(message.Metadata); sent.IsValid() {
			options = append(options, trace.WithLinks(trace.Link{SpanContext: sent, Attributes: []attribute.KeyValue{
				attribute.Int64("romancy.message_id", message.ID), attribute.String("romancy.sender", message.Sender),
			}}))
		}
	}
	ctx := trace.ContextWithRemoteSpanContext(context.Background(), r.tracing.origin)
	_, span := r.engine.tracer.Start(ctx, name, append(options, trace.WithAttributes(attributes...))...)
	span.End()
}

// beginSend begins the span of a message that the run sends. Without a tracer it is nil.
func (r *run) beginSend(ask *store.Deliver) trace.Span {
	segment := r.tracing.segment.Load()
	if segment == nil {
		return nil
	}
	span := r.engine.beginSend(trace.ContextWithSpan(context.Background(), segment.span), ask)
	if span.IsRecording() {
		span.SetAttributes(r.attributes(attribute.Int("romancy.position", int(ask.Position)))...)
	}
	return span
}

// beginSend begins the span of a message, which carries it to whoever receives it.
func (e *Engine) beginSend(ctx context.Context, ask *store.Deliver) trace.Span {
	_, span := e.tracer.Start(ctx, "send "+ask.Channel, producing...)
	if span.IsRecording() {
		span.SetAttributes(attribute.String("romancy.channel", ask.Channel), attribute.String("romancy.receiver", ask.Target))
	}
	ask.Metadata = withTrace(ask.Metadata, span.SpanContext())
	return span
}

// withTrace adds the span to a message's metadata.
func withTrace(metadata []byte, span trace.SpanContext) []byte {
	if !span.IsValid() {
		return metadata
	}
	all := map[string]string{}
	if metadata != nil && json.Unmarshal(metadata, &all) != nil {
		return metadata // not ours to mend
	}
	maps.Copy(all, carry(span))
	text, err := json.Marshal(all)
	if err != nil {
		panic(err) // a map of strings
	}
	return text
}
