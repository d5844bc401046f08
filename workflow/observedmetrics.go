package workflow

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// readyInterval is the least time between two counts of ready runs, however often metrics are collected; a count that was
	// dear is put off for readyShare times as long.
	readyInterval = 15 * time.Second
	readyShare    = 100
	// readyTimeout bounds a count, and with it what it adds to a collection.
	readyTimeout = 2 * time.Second
	// maxReady is where the count ends.
	maxReady = 10_000
)

// observedMetrics is what an [Engine] shows when metrics are collected.
type observedMetrics struct {
	engine                     *Engine
	runs, depth, unexecuted    metric.Int64ObservableGauge
	age                        metric.Float64ObservableGauge
	resumed, replayed, evicted metric.Int64ObservableCounter
	executing, parked          metric.MeasurementOption
	workflows                  map[string]metric.MeasurementOption
	mu                         sync.Mutex // guards the rest, and held while ready runs are counted
	ready                      []store.Ready
	next                       time.Time
}

// observe has the metrics read from e until stop is called.
func (e *Engine) observe() (stop func(), err error) {
	m := &observedMetrics{
		engine: e, workflows: map[string]metric.MeasurementOption{},
		executing: with(attribute.String("state", "executing")), parked: with(attribute.String("state", "parked")),
	}
	for _, name := range e.names {
		m.workflows[name] = with(attribute.String("workflow", name))
	}
	meter := e.metrics.meter
	var errs [8]error
	m.runs, errs[0] = meter.Int64ObservableGauge("romancy.workflow.runs", metric.WithUnit("{run}"),
		metric.WithDescription("Runs in memory here, executing or parked."))
	m.resumed, errs[1] = meter.Int64ObservableCounter("romancy.workflow.resumed", metric.WithUnit("{run}"),
		metric.WithDescription("Times a parked run went on in memory."))
	m.replayed, errs[2] = meter.Int64ObservableCounter("romancy.workflow.replayed", metric.WithUnit("{run}"),
		metric.WithDescription("Times a run was rebuilt from its history."))
	m.evicted, errs[3] = meter.Int64ObservableCounter("romancy.workflow.evicted", metric.WithUnit("{run}"),
		metric.WithDescription("Parked runs dropped from memory to stay within the cache's size."))
	m.depth, errs[4] = meter.Int64ObservableGauge("romancy.workflow.ready.depth", metric.WithUnit("{run}"),
		metric.WithDescription("Ready runs of the whole cluster that no worker has taken, counted up to 10,000 a workflow."))
	m.age, errs[5] = meter.Float64ObservableGauge("romancy.workflow.ready.age", metric.WithUnit("s"),
		metric.WithDescription("How long the oldest ready run has not been taken; 0 if there is none."))
	m.unexecuted, errs[6] = meter.Int64ObservableGauge("romancy.workflow.runs.unexecuted", metric.WithUnit("{run}"),
		metric.WithDescription("Ready runs of the whole cluster that no living worker has the code for, counted up to 1,000 a workflow. One worker reports them."))
	registration, err := meter.RegisterCallback(m.collect, m.runs, m.resumed, m.replayed, m.evicted, m.depth, m.age, m.unexecuted)
	errs[7] = err
	if err := errors.Join(errs[:]...); err != nil {
		return nil, err
	}
	return func() {
		if err := registration.Unregister(); err != nil {
			e.logger.Warn("the engine's metrics are still observed", "error", err)
		}
	}, nil
}

func (m *observedMetrics) collect(ctx context.Context, o metric.Observer) error {
	status := m.engine.Status()
	o.ObserveInt64(m.runs, int64(status.Executing), m.executing)
	o.ObserveInt64(m.runs, int64(status.Parked), m.parked)
	o.ObserveInt64(m.resumed, status.Resumed)
	o.ObserveInt64(m.replayed, status.Replayed)
	o.ObserveInt64(m.evicted, status.Evicted)
	for _, runs := range status.Unexecuted {
		o.ObserveInt64(m.unexecuted, int64(runs.Runs), with(attribute.String("workflow", runs.Workflow)))
	}
	for _, ready := range m.countReady(ctx) {
		o.ObserveInt64(m.depth, ready.Runs, m.workflows[ready.Workflow])
		o.ObserveFloat64(m.age, ready.Age.Seconds(), m.workflows[ready.Workflow])
	}
	return nil
}

// countReady returns the last count, or a new one if that is old. On the pool, not by the committer: thousands of index
// entries are not worth a step's wait. While the database does not answer there is no count.
func (m *observedMetrics) countReady(collection context.Context) []store.Ready {
	m.mu.Lock()
	defer m.mu.Unlock()
	began := time.Now()
	if began.Before(m.next) {
		return m.ready
	}
	ctx, cancel := context.WithTimeout(collection, readyTimeout)
	defer cancel()
	var ready []store.Ready
	var cost time.Duration // without the wait for a connection, which says nothing of the next count
	err := m.engine.config.Pool.AcquireFunc(ctx, func(conn *pgxpool.Conn) (err error) {
		asked := time.Now()
		ready, err = m.engine.store.CountReady(ctx, conn, m.engine.names, maxReady)
		cost = time.Since(asked)
		return err
	})
	if err != nil && errors.Is(collection.Err(), context.Canceled) {
		return nil // nobody wants to know any more, which says nothing of the database
	}
	if err != nil {
		m.engine.reports.readyCount.Failed(ctx, err)
	} else {
		m.engine.reports.readyCount.Succeeded(ctx)
	}
	m.ready = ready
	m.next = began.Add(max(readyInterval, readyShare*cost))
	return ready
}
