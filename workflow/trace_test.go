package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	sdktrace "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// tracing is a process's tracer, and what it has exported.
type tracing struct {
	*sdktrace.TracerProvider

	exported *tracetest.InMemoryExporter
}

func newTracing() tracing {
	exporter := tracetest.NewInMemoryExporter()
	return tracing{sdktrace.NewTracerProvider(sdktrace.WithSyncer(exporter)), exporter}
}

func (tr tracing) option() workerOption {
	return configured(func(c *workflow.Config) { c.TracerProvider = tr })
}

var untraced = configured(func(c *workflow.Config) { c.TracerProvider = noop.NewTracerProvider() })

// spans are those exported by some processes, by name.
type spans map[string][]tracetest.SpanStub

func exported(from ...tracing) spans {
	byName := spans{}
	for _, process := range from {
		for _, span := range process.exported.GetSpans() {
			byName[span.Name] = append(byName[span.Name], span)
		}
	}
	return byName
}

func (s spans) wantCounts(t *testing.T, counts map[string]int) {
	t.Helper()
	for name, want := range counts {
		if got := len(s[name]); got != want {
			t.Errorf("%d spans %q, want %d", got, name, want)
		}
	}
	for name := range s {
		if _, known := counts[name]; !known {
			t.Errorf("%d spans %q that nobody expected", len(s[name]), name)
		}
	}
}

// wantOneTrace: all spans belong to the trace, and each has its parent in it, or the one given.
func (s spans) wantOneTrace(t *testing.T, root trace.SpanContext) {
	t.Helper()
	ids := map[trace.SpanID]bool{root.SpanID(): true}
	for _, named := range s {
		for _, span := range named {
			ids[span.SpanContext.SpanID()] = true
		}
	}
	for name, named := range s {
		for _, span := range named {
			if span.SpanContext.TraceID() != root.TraceID() {
				t.Errorf("span %q is in the trace %s, want %s", name, span.SpanContext.TraceID(), root.TraceID())
			}
			if !ids[span.Parent.SpanID()] {
				t.Errorf("span %q has a parent %s that is not there", name, span.Parent.SpanID())
			}
		}
	}
}

func attributeOf(span tracetest.SpanStub, key string) string {
	for _, attribute := range span.Attributes {
		if string(attribute.Key) == key {
			return attribute.Value.String()
		}
	}
	return ""
}

// A run that begins on one worker and ends on another is one trace, which is its starter's, and everything that it does is one
// span, however often it is replayed.
func TestRunIsOneTraceAcrossWorkers(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	caller, one, two := newTracing(), newTracing(), newTracing()
	attempts := tally{}
	charge := workflow.DefineActivity("charge", func(ctx context.Context, n int) (int, error) {
		_, inner := trace.SpanFromContext(ctx).TracerProvider().Tracer("shop").Start(ctx, "POST /charges")
		inner.End()
		return n, nil
	})
	ship := workflow.DefineActivity("ship", func(_ context.Context, n int) (int, error) {
		if attempts.add("ship") == 1 {
			return 0, errors.New("no truck")
		}
		return n, nil
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 2, InitialInterval: time.Millisecond}))
	flow := workflow.Define("order", func(ctx *workflow.Context, n int) (int, error) {
		if _, err := charge.Execute(ctx, n); err != nil {
			return 0, err
		}
		if err := workflow.Sleep(ctx, time.Millisecond); err != nil {
			return 0, err
		}
		if err := workflow.Publish(ctx, "log", n); err != nil {
			return 0, err
		}
		if _, err := workflow.Receive[int](ctx, "go", workflow.WithTimeout(time.Hour)); err != nil {
			return 0, err
		}
		return ship.Execute(ctx, n)
	})
	ctx := testContext(t)
	first := startWorker(t, pool, []workflow.Definition{flow}, one.option())
	request, span := caller.Tracer("shop").Start(ctx, "POST /orders")
	run, err := flow.Start(request, first.Engine, 7)
	if err != nil {
		t.Fatal(err)
	}
	span.End()
	eventually(t, "the run waits for the message", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'waiting' and 'go' = any (wake_channels)") == 1
	})
	first.shutdown(t)
	second := startWorker(t, pool, []workflow.Definition{flow}, two.option())
	sending, sent := caller.Tracer("shop").Start(ctx, "POST /go")
	if err := second.SendTo(sending, run.ID(), "go", 0, workflow.WithMetadata(map[string]string{"own": "kept"})); err != nil {
		t.Fatal(err)
	}
	sent.End()
	if out, err := flow.Run(second.Engine, run.ID()).Result(ctx); err != nil || out != 7 {
		t.Fatalf("got %d, %v", out, err)
	}
	second.shutdown(t)

	all := exported(one, two)
	send := all["send go"]
	delete(all, "send go")
	all.wantOneTrace(t, span.SpanContext())
	// The segments: how many there are depends on what parked in time.
	if segments := all["workflow order"]; len(segments) < 2 {
		t.Errorf("%d segments, want one on each worker at least", len(segments))
	}
	delete(all, "workflow order")
	all.wantCounts(t, map[string]int{
		"start order": 1, "activity charge": 1, "POST /charges": 1, "timer sleep": 1, "send log": 1, "timer receive:go": 1,
		"receive go": 1, "activity ship": 2,
	})
	if t.Failed() {
		t.FailNow()
	}
	if got, want := all["POST /charges"][0].Parent.SpanID(), all["activity charge"][0].SpanContext.SpanID(); got != want {
		t.Errorf("the parent of what the activity did is %s, want the activity's %s", got, want)
	}
	for i, span := range all["activity ship"] {
		if got := attributeOf(span, "romancy.attempt"); got != fmt.Sprint(i+1) {
			t.Errorf("attempt %d is shown as %q", i+1, got)
		}
		if failed := span.Status.Description == "no truck"; failed != (i == 0) {
			t.Errorf("attempt %d has status %+v", i+1, span.Status)
		}
		if attributeOf(span, "romancy.instance_id") != run.ID() || attributeOf(span, "romancy.workflow") != "order" || attributeOf(span, "romancy.position") == "" {
			t.Errorf("attempt %d does not say where it belongs: %v", i+1, span.Attributes)
		}
	}
	// The message comes from another trace, and the span that has received it says from which.
	if len(send) != 1 || send[0].Parent.SpanID() != sent.SpanContext().SpanID() {
		t.Fatalf("spans of the sender: %v", send)
	}
	links := all["receive go"][0].Links
	if len(links) != 1 || links[0].SpanContext.SpanID() != send[0].SpanContext.SpanID() {
		t.Errorf("the receiver is linked to %v, want %s", links, send[0].SpanContext.SpanID())
	}
}

// Replayed again and again, every run does everything once, and says so once. Each has a trace of its own, since nobody
// started it in one.
func TestReplayMakesNoSpans(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("replayed", func(ctx *workflow.Context, n int) (int, error) {
		for range 3 {
			if _, err := nothing.Execute(ctx, n); err != nil {
				return 0, err
			}
			if err := workflow.Publish(ctx, "unheard", n); err != nil {
				return 0, err
			}
			if err := workflow.Sleep(ctx, 30*time.Millisecond); err != nil {
				return 0, err
			}
		}
		return n, nil
	})
	process := newTracing()
	w := startWorker(t, pool, []workflow.Definition{flow}, evicting, process.option())
	ctx := testContext(t)
	requests := make([]workflow.StartRequest[int], 10)
	runs, err := flow.StartMany(ctx, w.Engine, requests)
	if err != nil {
		t.Fatal(err)
	}
	for _, run := range runs {
		if _, err := run.Result(ctx); err != nil {
			t.Fatal(err)
		}
	}
	if w.Status().Replayed == 0 {
		t.Error("nothing was replayed, so nothing was tested")
	}
	w.shutdown(t)
	all := exported(process)
	starts := all["start replayed"]
	if len(starts) != len(requests) {
		t.Fatalf("%d starts are shown, want %d", len(starts), len(requests))
	}
	for _, start := range starts {
		of := spans{}
		for name, named := range all {
			for _, span := range named {
				if span.SpanContext.TraceID() == start.SpanContext.TraceID() && name != start.Name {
					of[name] = append(of[name], span)
				}
			}
		}
		of.wantOneTrace(t, start.SpanContext)
		delete(of, "workflow replayed")
		of.wantCounts(t, map[string]int{"activity nothing": 3, "send unheard": 3, "timer sleep": 3})
	}
}

// Who started the run traces nothing, and the workers that execute it do: it is one trace still.
func TestRunOfAnUntracedStarterIsOneTrace(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("adopted", func(ctx *workflow.Context, n int) (int, error) {
		for range 2 {
			if _, err := nothing.Execute(ctx, n); err != nil {
				return 0, err
			}
			if _, err := workflow.Receive[int](ctx, "go"); err != nil {
				return 0, err
			}
		}
		return n, nil
	})
	ctx := testContext(t)
	client := startWorker(t, pool, []workflow.Definition{flow}, untraced, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	run, err := flow.Start(ctx, client.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	one, two := newTracing(), newTracing()
	for i, process := range []tracing{one, two} {
		w := startWorker(t, pool, []workflow.Definition{flow}, process.option())
		eventually(t, "the run waits", func() bool {
			return count(t, pool, "select count(*) from romancy.instances where status = 'waiting'") == 1 &&
				count(t, pool, "select count(*) from romancy.history where kind = 'activity'") == i+1
		})
		if i == 0 {
			w.shutdown(t)
		}
		if err := client.SendTo(ctx, run.ID(), "go", 0); err != nil {
			t.Fatal(err)
		}
		if i == 1 {
			if _, err := run.Result(ctx); err != nil {
				t.Fatal(err)
			}
			w.shutdown(t)
		}
	}
	all := exported(one, two)
	root := all["workflow adopted"][0].SpanContext
	for name, named := range all {
		for _, span := range named {
			if span.SpanContext.TraceID() != root.TraceID() {
				t.Errorf("span %q is in the trace %s, want %s", name, span.SpanContext.TraceID(), root.TraceID())
			}
		}
	}
	delete(all, "workflow adopted")
	all.wantCounts(t, map[string]int{"activity nothing": 2, "receive go": 2})
}

// A Watermill message that starts a run hands its trace over in its metadata, as W3C has it, and one run's message to
// another does.
func TestTraceTravelsInMessages(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	process := newTracing()
	receiver := workflow.Define("receiver", func(ctx *workflow.Context, _ int) (map[string]string, error) {
		message, err := workflow.Receive[int](ctx, "replies")
		return message.Metadata, err
	})
	sender := workflow.Define("sender", func(ctx *workflow.Context, to string) (string, error) {
		return to, workflow.SendTo(ctx, to, "replies", 1, workflow.WithMetadata(map[string]string{"own": "kept"}))
	})
	w := startWorker(t, pool, []workflow.Definition{receiver, sender}, process.option())
	ctx := testContext(t)
	to, err := receiver.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	msg := message.NewMessage("sender-1", []byte(fmt.Sprintf("%q", to.ID())))
	msg.SetContext(ctx)
	msg.Metadata.Set("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
	if err := w.StartHandler(sender, workflow.WithTraceFromMetadata())(msg); err != nil {
		t.Fatal(err)
	}
	metadata, err := to.Result(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sender.Run(w.Engine, workflow.MessageRunID(sender, msg)).Result(ctx); err != nil {
		t.Fatal(err)
	}
	w.shutdown(t)
	all := exported(process)
	start, sent, received := all["start sender"][0], all["send replies"][0], all["receive replies"][0]
	if got := start.Parent.SpanID().String(); got != "b7ad6b7169203331" {
		t.Errorf("the parent of the start is %s", got)
	}
	if got := sent.SpanContext.TraceID().String(); got != "0af7651916cd43dd8448eb211c80319c" {
		t.Errorf("the run that the message started is in the trace %s", got)
	}
	if len(received.Links) != 1 || !received.Links[0].SpanContext.Equal(sent.SpanContext.WithRemote(true)) {
		t.Errorf("the receiver is linked to %v, want %v", received.Links, sent.SpanContext)
	}
	want := fmt.Sprintf("00-%s-%s-01", sent.SpanContext.TraceID(), sent.SpanContext.SpanID())
	if metadata["traceparent"] != want || metadata["own"] != "kept" {
		t.Errorf("the message has the metadata %v, want traceparent %s beside its own", metadata, want)
	}
}

// Steps beside each other, a choice between messages and timers, and a run that continues as new stay in one trace.
func TestConcurrentAndContinuedRunIsOneTrace(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("continued", func(ctx *workflow.Context, n int) (int, error) {
		if n > 0 {
			return n, nil
		}
		if err := workflow.All(ctx, nothing.Go(ctx, 1), nothing.Go(ctx, 2)); err != nil {
			return 0, err
		}
		if err := workflow.Select(ctx,
			workflow.OnMessage("go", func(workflow.Message[int]) error { return nil }),
			workflow.OnTimer(time.Hour, func() error { return errors.New("too late") }),
		); err != nil {
			return 0, err
		}
		return 0, workflow.ContinueAsNew(ctx, n+1)
	})
	process := newTracing()
	w := startWorker(t, pool, []workflow.Definition{flow}, process.option())
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.SendTo(ctx, run.ID(), "go", 0); err != nil {
		t.Fatal(err)
	}
	if n, err := run.Result(ctx); err != nil || n != 1 {
		t.Fatalf("got %d, %v", n, err)
	}
	w.shutdown(t)
	all := exported(process)
	sent := all["send go"][0]
	delete(all, "send go") // it was sent outside the run's trace
	all.wantOneTrace(t, all["start continued"][0].SpanContext.WithSpanID(trace.SpanID{}))
	if links := all["select"][0].Links; len(links) != 1 || links[0].SpanContext.SpanID() != sent.SpanContext.SpanID() {
		t.Errorf("the choice is linked to %v, want %s", links, sent.SpanContext.SpanID())
	}
	ended := map[string]bool{}
	for _, segment := range all["workflow continued"] {
		ended[attributeOf(segment, "romancy.outcome")] = true
	}
	if !ended["continued"] || !ended["completed"] {
		t.Errorf("the segments ended as %v", ended)
	}
	delete(all, "workflow continued")
	all.wantCounts(t, map[string]int{"start continued": 1, "activity nothing": 2, "timer select": 1, "select": 1})
}
