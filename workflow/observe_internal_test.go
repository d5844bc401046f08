package workflow

import (
	"context"
	"testing"
	"time"

	"go.opentelemetry.io/otel/metric/noop"
	"go.opentelemetry.io/otel/trace"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// The worker's clock is ten minutes fast, and is set back by an hour: the database's time is what the database says.
func TestDatabaseClockIsKnownHoweverThisMachinesIsSet(t *testing.T) {
	t.Parallel()
	var clock databaseClock
	if _, ok := clock.at(time.Now()); ok {
		t.Error("the time is known before anybody was asked")
	}
	began := time.Now()
	database := began.Add(-10 * time.Minute)
	// Slow answers, the truth near one end of them, and a fast one.
	for i, delay := range []time.Duration{time.Second, 3 * time.Millisecond, 2 * time.Second} {
		asked := began.Add(time.Duration(i) * time.Minute)
		clock.read(database.Add(time.Duration(i)*time.Minute).UnixMicro(), asked, asked.Add(delay))
	}
	moment := began.Add(5 * time.Minute)
	got, ok := clock.at(moment)
	if off := got.Sub(database.Add(5 * time.Minute)).Abs(); !ok || off > 2*time.Millisecond {
		t.Errorf("off by %s, known %v: want at most half of the fastest answer", off, ok)
	}
	// The fast answer grows old, and is forgotten.
	for i := range len(clock.readings) {
		asked := began.Add(time.Hour + time.Duration(i)*time.Minute)
		clock.read(database.Add(2*time.Hour).UnixMicro(), asked, asked.Add(time.Second))
	}
	if got, _ = clock.at(began.Add(time.Hour)); got.Before(database.Add(90 * time.Minute)) {
		t.Errorf("the clock says %s: it holds on to what the database said long ago", got)
	}
}

// Without an SDK a step costs no allocation for being observable.
func TestObservingAStepForNobodyAllocatesNothing(t *testing.T) { //nolint:paralleltest // allocations of others would be counted
	metrics, err := newEngineMetrics(noop.NewMeterProvider())
	if err != nil {
		t.Fatal(err)
	}
	r := &run{
		engine: &Engine{metrics: metrics, tracer: tracenoop.NewTracerProvider().Tracer(scope)}, id: "run",
		definition: Define("flow", func(*Context, int) (int, error) { return 0, nil }),
	}
	r.beginSegment(false)
	if r.tracing.segment.Load() != nil {
		t.Fatal("a run that nobody traces has a segment")
	}
	ctx, charge := t.Context(), step{kind: journal.Activity, name: "charge"}
	if allocated := testing.AllocsPerRun(100, func() {
		_, shown := r.show(ctx, charge, 1, 1)
		shown.end(attemptCompleted, nil)
		r.beginSend(&store.Deliver{})
		r.traceTimer(store.Wait{}, 0)
		r.traceChoice(journal.Receive, "", 1, time.Time{}, store.GotMessage, nil)
		metrics.end(store.Run{})
		metrics.resumed(resumption{outcome: store.GotMessage})
		metrics.late(time.Second)
		r.endSegment(segmentParked, nil)
	}); allocated != 0 {
		t.Errorf("%v allocations a step, want none", allocated)
	}
}

// What the rows and the metadata say is another's text: it is a trace or nothing.
func TestForeignTraceContextIsIgnored(t *testing.T) {
	t.Parallel()
	span := trace.NewSpanContext(trace.SpanContextConfig{TraceID: trace.TraceID{1}, SpanID: trace.SpanID{2}, TraceFlags: trace.FlagsSampled, Remote: true})
	if got := decodeTrace(encodeTrace(span)); !got.Equal(span) {
		t.Errorf("got %v back, want %v", got, span)
	}
	if text := encodeTrace(trace.SpanContext{}); text != nil {
		t.Errorf("no trace is stored as %s", text)
	}
	for _, text := range []string{"", "null", "17", `{"traceparent":17}`, `{"traceparent":"00-0-0-0"}`, `[]`, `{"traceparent":""}`} {
		if got := decodeTrace([]byte(text)); got.IsValid() {
			t.Errorf("%s is taken for the trace %s", text, got.TraceID())
		}
	}
	for _, metadata := range []string{"", "17", `{"a":1}`} {
		text := []byte(metadata)
		if metadata == "" {
			text = nil
		}
		got := withTrace(text, span)
		if carried := decodeTrace(got).IsValid(); carried != (metadata == "") || !carried && string(got) != metadata {
			t.Errorf("metadata %q became %q", metadata, got)
		}
	}
}

// However often metrics are collected, the database is asked now and then; while it does not answer there is no figure.
func TestReadyRunsAreCountedNowAndThen(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	engine, err := NewEngine(Config{Pool: pool, Workflows: []Definition{Define("order", func(*Context, int) (int, error) { return 0, nil })}})
	if err != nil {
		t.Fatal(err)
	}
	add := func(runs int) {
		t.Helper()
		if _, err := pool.Exec(t.Context(), `insert into romancy.instances (id, workflow, status, token, ready_at)
			select gen_random_uuid()::text, w, 'ready', 0, now() - interval '1 hour' from generate_series(1, $1) n, unnest(array['order', 'other']) w`, runs); err != nil {
			t.Fatal(err)
		}
	}
	m := &observedMetrics{engine: engine}
	failing := func() bool { return engine.reports.readyCount.Err() != nil }
	want := func(runs int64, why string) {
		t.Helper()
		got := m.countReady(t.Context())
		if len(got) != 1 || got[0].Workflow != "order" || got[0].Runs != runs || (got[0].Age < time.Hour) != (runs == 0) {
			t.Errorf("%s: got %+v, want %d runs of order", why, got, runs)
		}
	}
	want(0, "nothing is ready")
	add(3)
	m.next = time.Now().Add(time.Hour)
	want(0, "counted a moment ago")
	m.next = time.Time{}
	want(3, "it is time to count")
	add(maxReady)
	m.next = time.Time{}
	want(maxReady, "there are more than are counted")
	given, cancel := context.WithCancel(t.Context())
	cancel()
	m.next = time.Time{}
	if got := m.countReady(given); got != nil || failing() {
		t.Errorf("a collection that was given up: got %+v, failing %v", got, failing())
	}
	want(maxReady, "nobody has counted since")
	overdue, cancel := context.WithDeadline(t.Context(), time.Now().Add(-time.Second))
	defer cancel()
	m.next = time.Time{}
	if got := m.countReady(overdue); got != nil || !failing() || !m.next.After(time.Now()) {
		t.Errorf("got %+v from a database that did not answer, failing %v, next %s", got, failing(), m.next)
	}
}
