package bus

import (
	"context"
	"errors"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"
)

// subscriberMetrics is what a [Subscriber] counts.
type subscriberMetrics struct {
	messages, passes, refused metric.Int64Counter
}

func newSubscriberMetrics(provider metric.MeterProvider) (*subscriberMetrics, error) {
	meter := meterOf(provider)
	m := &subscriberMetrics{}
	var errs [3]error
	m.messages, errs[0] = meter.Int64Counter("romancy.subscriber.delivered", metric.WithUnit("{message}"),
		metric.WithDescription("Messages let out to handlers, redeliveries included."))
	m.passes, errs[1] = meter.Int64Counter("romancy.subscriber.catch_ups", metric.WithUnit("{pass}"),
		metric.WithDescription("Readings of what notifications may have been missed."))
	m.refused, errs[2] = meter.Int64Counter("romancy.subscriber.refused", metric.WithUnit("{notification}"),
		metric.WithDescription("Notifications dropped because they are not what their channel carries."))
	return m, errors.Join(errs[:]...)
}

// topicMetrics are the counters with one topic's attributes, which are made once.
type topicMetrics struct {
	*subscriberMetrics

	notified, looked, done, failed, channel metric.MeasurementOption
}

func (m *subscriberMetrics) of(channel string) topicMetrics {
	with := func(key, value string) metric.MeasurementOption {
		return metric.WithAttributeSet(attribute.NewSet(attribute.String("channel", channel), attribute.String(key, value)))
	}
	return topicMetrics{
		subscriberMetrics: m,
		notified:          with("source", SourceNotify),
		looked:            with("source", SourceCatchUp),
		done:              with("outcome", "done"),
		failed:            with("outcome", "failed"),
		channel:           metric.WithAttributeSet(attribute.NewSet(attribute.String("channel", channel))),
	}
}

// delivered counts a message that was let out.
func (m topicMetrics) delivered(ctx context.Context, source string) {
	if source == SourceCatchUp {
		m.messages.Add(ctx, 1, m.looked)
		return
	}
	m.messages.Add(ctx, 1, m.notified)
}

// refuse counts a notification that was dropped.
func (m topicMetrics) refuse(ctx context.Context) { m.refused.Add(ctx, 1, m.channel) }

// caughtUp counts a pass that ended with err.
func (m topicMetrics) caughtUp(ctx context.Context, err error) {
	if err != nil {
		m.passes.Add(ctx, 1, m.failed)
		return
	}
	m.passes.Add(ctx, 1, m.done)
}
