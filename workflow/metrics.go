package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"sync"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// scope names the library to whoever exports metrics and spans.
const scope = "github.com/romancy-go/romancy/workflow"

// What came of an attempt of an activity.
const (
	attemptCompleted = "completed"
	attemptFailed    = "failed"    // it returned an error or panicked; it may be attempted again
	attemptAbandoned = "abandoned" // the run was lost meanwhile, or the outcome could not be recorded
)

// maxActivityNames bounds the attributes kept of activities, in case somebody makes up names as he goes.
const maxActivityNames = 1000

// engineMetrics is what an [Engine] records as it goes. What it only shows is observedMetrics. Attributes are made once, so
// that recording costs a run little, and nothing to speak of while nobody collects.
type engineMetrics struct {
	meter        metric.Meter
	wake         metric.Float64Histogram
	lateness     metric.Float64Histogram
	activity     metric.Float64Histogram
	ended        metric.Int64Counter
	leaseLosses  metric.Int64Counter
	interrupted  metric.Int64Counter
	unrecorded   metric.Int64Counter
	foreign      metric.Int64Counter
	commitSize   metric.Int64Histogram
	commitWait   metric.Float64Histogram
	commitFlush  metric.Float64Histogram
	clock        databaseClock
	ends         map[endKey][]metric.AddOption // guarded by mu, like activities
	mu           sync.RWMutex
	activities   map[activityKey]*[3][]metric.RecordOption
	runs, starts []metric.RecordOption // of the two committers
}

type endKey struct {
	workflow string
	status   string
}

type activityKey struct {
	workflow, activity string
	kind               journal.Kind
}

// Boundaries of the histograms: what is fast on one machine, and what an operator has to see.
var (
	fastSeconds = metric.WithExplicitBucketBoundaries(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
	slowSeconds = metric.WithExplicitBucketBoundaries(0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 60, 300, 1800, 3600)
	batchSizes  = metric.WithExplicitBucketBoundaries(1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
)

func newEngineMetrics(provider metric.MeterProvider) (*engineMetrics, error) {
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	meter := provider.Meter(scope)
	m := &engineMetrics{
		meter: meter, ends: map[endKey][]metric.AddOption{}, activities: map[activityKey]*[3][]metric.RecordOption{},
		runs:   []metric.RecordOption{with(attribute.String("committer", "runs"))},
		starts: []metric.RecordOption{with(attribute.String("committer", "starts"))},
	}
	var errs [11]error
	m.wake, errs[0] = meter.Float64Histogram("romancy.workflow.wake.latency", metric.WithUnit("s"), fastSeconds,
		metric.WithDescription("From the sending of a message, by the database's clock, to its parked receiver's next line."))
	m.lateness, errs[1] = meter.Float64Histogram("romancy.workflow.timer.lateness", metric.WithUnit("s"), fastSeconds,
		metric.WithDescription("From the deadline of a parked run to the statement that let it go on, by the database's clock."))
	m.activity, errs[2] = meter.Float64Histogram("romancy.workflow.activity.duration", metric.WithUnit("s"), slowSeconds,
		metric.WithDescription("Of attempts of activities and compensations."))
	m.ended, errs[3] = meter.Int64Counter("romancy.workflow.runs.ended", metric.WithUnit("{run}"),
		metric.WithDescription("Runs that this process has ended or stopped as stuck."))
	m.leaseLosses, errs[4] = meter.Int64Counter("romancy.workflow.lease.losses", metric.WithUnit("{lease}"),
		metric.WithDescription("Times this worker lost its lease, and with it its runs."))
	m.interrupted, errs[8] = meter.Int64Counter("romancy.workflow.interruptions", metric.WithUnit("{interruption}"),
		metric.WithDescription("Steps that are executed again because the database has refused their transactions."))
	m.unrecorded, errs[9] = meter.Int64Counter("romancy.workflow.commit.abandoned", metric.WithUnit("{operation}"),
		metric.WithDescription("What runs had done and the database had not taken when this worker lost its lease: it is done again elsewhere."))
	m.commitSize, errs[5] = meter.Int64Histogram("romancy.workflow.commit.batch", metric.WithUnit("{operation}"), batchSizes,
		metric.WithDescription("Operations that the committer wrote together."))
	m.commitWait, errs[6] = meter.Float64Histogram("romancy.workflow.commit.wait", metric.WithUnit("s"), fastSeconds,
		metric.WithDescription("How long the first operation of a batch was queued."))
	m.commitFlush, errs[7] = meter.Float64Histogram("romancy.workflow.commit.duration", metric.WithUnit("s"), fastSeconds,
		metric.WithDescription("How long the committer took to write a batch."))
	m.foreign, errs[10] = meter.Int64Counter("romancy.workflow.notifications.foreign", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications on the engine's channels whose payloads are not the engine's."))
	return m, errors.Join(errs[:]...)
}

func with(attributes ...attribute.KeyValue) metric.MeasurementOption {
	return metric.WithAttributeSet(attribute.NewSet(attributes...))
}

// late notes how late a parked run was let go on.
func (m *engineMetrics) late(by time.Duration) {
	m.lateness.Record(context.Background(), max(by, 0).Seconds())
}

// resumed notes how long the message that has woken a parked run was on its way. Messages that were there before the run
// asked for them are not noted.
func (m *engineMetrics) resumed(with resumption) {
	if with.outcome != store.GotMessage || !m.wake.Enabled(context.Background()) {
		return
	}
	now, known := m.clock.at(time.Now())
	var message struct {
		SentAt time.Time `json:"sent_at"`
	}
	if err := json.Unmarshal(with.message, &message); err != nil || !known {
		return // the run will say that its history is damaged
	}
	m.wake.Record(context.Background(), max(now.Sub(message.SentAt), 0).Seconds())
}

// foreignPayload counts a notification that names nothing, by one of the engine's own channels.
func (m *engineMetrics) foreignPayload(channel string) {
	m.foreign.Add(context.Background(), 1, with(attribute.String("channel", channel)))
}

// abandoned notes what runs had done and was not recorded before this worker lost its lease.
func (m *engineMetrics) abandoned(operations int) {
	m.unrecorded.Add(context.Background(), int64(operations))
}

// flushed is told by the committer of each batch.
func (m *engineMetrics) flushed(committer []metric.RecordOption) func(operations int, waited, took time.Duration) {
	return func(operations int, waited, took time.Duration) {
		ctx := context.Background()
		m.commitSize.Record(ctx, int64(operations), committer...)
		m.commitWait.Record(ctx, waited.Seconds(), committer...)
		m.commitFlush.Record(ctx, took.Seconds(), committer...)
	}
}

// end counts a run that has ended or is stuck.
func (m *engineMetrics) end(run store.Run) {
	if !m.ended.Enabled(context.Background()) {
		return
	}
	key := endKey{run.Workflow, run.Status}
	m.mu.RLock()
	attributes := m.ends[key]
	m.mu.RUnlock()
	if attributes == nil {
		attributes = []metric.AddOption{with(attribute.String("workflow", run.Workflow), attribute.String("status", run.Status))}
		m.mu.Lock()
		m.ends[key] = attributes // as many as there are workflows and states
		m.mu.Unlock()
	}
	m.ended.Add(context.Background(), 1, attributes...)
}

// attempted notes an attempt of a step.
func (m *engineMetrics) attempted(key activityKey, outcome string, took time.Duration) {
	attributes := m.attributesOf(key)
	of := attributes[0]
	switch outcome {
	case attemptFailed:
		of = attributes[1]
	case attemptAbandoned:
		of = attributes[2]
	}
	m.activity.Record(context.Background(), took.Seconds(), of...)
}

func (m *engineMetrics) attributesOf(key activityKey) *[3][]metric.RecordOption {
	m.mu.RLock()
	attributes := m.activities[key]
	m.mu.RUnlock()
	if attributes != nil {
		return attributes
	}
	attributes = new([3][]metric.RecordOption)
	for i, outcome := range []string{attemptCompleted, attemptFailed, attemptAbandoned} {
		attributes[i] = []metric.RecordOption{with(attribute.String("workflow", key.workflow), attribute.String("activity", key.activity),
			attribute.String("kind", string(key.kind)), attribute.String("outcome", outcome))}
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.activities) < maxActivityNames {
		m.activities[key] = attributes
	}
	return attributes
}
