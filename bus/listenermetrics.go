package bus

import (
	"context"
	"errors"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// listenerMetrics is what a [Listener] shows. All but the probes' duration is read from its Status when it is collected,
// so that receiving costs nothing more.
type listenerMetrics struct {
	meter                         metric.Meter
	state                         metric.Int64ObservableGauge
	reconnects, received, dropped metric.Int64ObservableCounter
	probe                         metric.Float64Histogram
	states                        map[State]metric.MeasurementOption
}

func newListenerMetrics(provider metric.MeterProvider) (*listenerMetrics, error) {
	meter := meterOf(provider)
	m := &listenerMetrics{meter: meter, states: map[State]metric.MeasurementOption{}}
	for _, state := range states {
		m.states[state] = metric.WithAttributeSet(attribute.NewSet(attribute.String("state", string(state))))
	}
	var errs [5]error
	m.state, errs[0] = meter.Int64ObservableGauge("romancy.listener.state",
		metric.WithDescription("1 for the state that the listening connection is in, 0 for the others."))
	m.reconnects, errs[1] = meter.Int64ObservableCounter("romancy.listener.reconnects", metric.WithUnit("{connection}"),
		metric.WithDescription("Listening connections made after the first."))
	m.received, errs[2] = meter.Int64ObservableCounter("romancy.listener.received", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications received."))
	m.dropped, errs[3] = meter.Int64ObservableCounter("romancy.listener.dropped", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications that full queues replaced by a catch-up."))
	m.probe, errs[4] = meter.Float64Histogram("romancy.listener.probe.duration", metric.WithUnit("s"),
		metric.WithDescription("From the sending of a probe by another connection to its arrival."),
		metric.WithExplicitBucketBoundaries(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2))
	return m, errors.Join(errs[:]...)
}

// observe has the metrics read from l until stop is called.
func (m *listenerMetrics) observe(l *Listener) (stop func()) {
	registration, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		status := l.Status()
		for _, state := range states {
			var is int64
			if state == status.State {
				is = 1
			}
			o.ObserveInt64(m.state, is, m.states[state])
		}
		o.ObserveInt64(m.reconnects, status.Reconnects)
		o.ObserveInt64(m.received, status.Received)
		o.ObserveInt64(m.dropped, status.Dropped)
		return nil
	}, m.state, m.reconnects, m.received, m.dropped)
	if err != nil {
		l.log.Warn("the listener's metrics are not observed", "error", err)
		return func() {}
	}
	return func() {
		if err := registration.Unregister(); err != nil {
			l.log.Warn("the listener's metrics are still observed", "error", err)
		}
	}
}

func (m *listenerMetrics) probed(ctx context.Context, roundTrip time.Duration) {
	m.probe.Record(ctx, roundTrip.Seconds())
}
