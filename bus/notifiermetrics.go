package bus

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
)

// meterName names the library to whoever exports the metrics.
const meterName = "github.com/romancy-go/romancy/bus"

// meterOf returns the meter of provider, or of the process's.
func meterOf(provider metric.MeterProvider) metric.Meter {
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	return provider.Meter(meterName)
}

// notifierMetrics is what a [Notifier] counts.
type notifierMetrics struct {
	meter                    metric.Meter
	sent, collapsed, batches metric.Int64Counter
	withheld                 metric.Int64Counter
	pending, open            metric.Int64ObservableGauge
	usage                    metric.Float64ObservableGauge
}

func newNotifierMetrics(provider metric.MeterProvider) (*notifierMetrics, error) {
	meter := meterOf(provider)
	m := &notifierMetrics{meter: meter}
	var errs [7]error
	m.sent, errs[0] = meter.Int64Counter("romancy.notifier.sent", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications sent after the commits that they speak of."))
	m.collapsed, errs[1] = meter.Int64Counter("romancy.notifier.collapsed", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications that an empty payload replaced, because too many were pending."))
	m.batches, errs[2] = meter.Int64Counter("romancy.notifier.batches", metric.WithUnit("{statement}"),
		metric.WithDescription("Statements that sent notifications or asked for the fate of transactions."))
	m.pending, errs[3] = meter.Int64ObservableGauge("romancy.notifier.pending", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications of committed transactions that are not sent yet."))
	m.open, errs[4] = meter.Int64ObservableGauge("romancy.notifier.open_transactions", metric.WithUnit("{transaction}"),
		metric.WithDescription("Callers' transactions whose commit is waited for."))
	m.withheld, errs[5] = meter.Int64Counter("romancy.notifier.withheld", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications of transactions left to polling, because the server's NOTIFY queue was filling."))
	m.usage, errs[6] = meter.Float64ObservableGauge("romancy.notifier.queue.usage", metric.WithUnit("1"),
		metric.WithDescription("How much of the server's NOTIFY queue is in use, from 0 to 1. At 1 no transaction that notifies can commit."))
	return m, errors.Join(errs[:]...)
}

// observe has the gauges read from n until stop is called.
func (m *notifierMetrics) observe(n *Notifier) (stop func()) {
	registration, err := m.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		status := n.Status()
		o.ObserveInt64(m.pending, int64(status.Pending))
		o.ObserveInt64(m.open, int64(status.OpenTransactions))
		if !status.QueueChecked.IsZero() {
			o.ObserveFloat64(m.usage, status.QueueUsage)
		}
		return nil
	}, m.pending, m.open, m.usage)
	if err != nil {
		n.log.Warn("the notifier's gauges are not observed", "error", err)
		return func() {}
	}
	return func() {
		if err := registration.Unregister(); err != nil {
			n.log.Warn("the notifier's gauges are still observed", "error", err)
		}
	}
}

// collapse counts payloads that an empty one replaced.
func (m *notifierMetrics) collapse(payloads int) {
	if payloads > 0 {
		m.collapsed.Add(context.Background(), int64(payloads))
	}
}

// withhold counts notifications that nobody sends.
func (m *notifierMetrics) withhold(ctx context.Context, notifications int) {
	m.withheld.Add(ctx, int64(notifications))
}

// sentBatch counts a statement, and the notifications that it has sent.
func (m *notifierMetrics) sentBatch(ctx context.Context, sent int64) {
	m.batches.Add(ctx, 1)
	if sent > 0 {
		m.sent.Add(ctx, sent)
	}
}
