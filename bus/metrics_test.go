package bus

import (
	"fmt"
	"testing"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// meter is a provider to be read by hand.
type meter struct {
	*metric.MeterProvider

	reader *metric.ManualReader
}

func newMeter() meter {
	reader := metric.NewManualReader()
	return meter{metric.NewMeterProvider(metric.WithReader(reader)), reader}
}

// read returns the values by name, or by name and attributes where there are any: "name{key=value}".
func (m meter) read(t testing.TB) map[string]int64 {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := m.reader.Collect(within(t), &all); err != nil {
		t.Fatal(err)
	}
	values := map[string]int64{}
	add := func(name string, attributes attribute.Set, value int64) {
		if attributes.Len() > 0 {
			name += "{" + attributes.Encoded(attribute.DefaultEncoder()) + "}"
		}
		values[name] = value
	}
	for _, scope := range all.ScopeMetrics {
		for _, metrics := range scope.Metrics {
			switch data := metrics.Data.(type) {
			case metricdata.Sum[int64]:
				for _, point := range data.DataPoints {
					add(metrics.Name, point.Attributes, point.Value)
				}
			case metricdata.Gauge[int64]:
				for _, point := range data.DataPoints {
					add(metrics.Name, point.Attributes, point.Value)
				}
			}
		}
	}
	return values
}

func TestNotifierIsMeasured(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	m := newMeter()
	s := subscribe(t, startListener(t, pool), 0, "a")
	n := startNotifier(t, pool, func(c *NotifierConfig) {
		c.MeterProvider, c.Mode, c.MaxPending, c.Window = m, ModeCoalesced, 2, time.Hour
	})
	n.Notify("a", "first")
	next(t, s)
	eventually(t, "the statement is counted", func() bool { return m.read(t)["romancy.notifier.batches"] == 1 })
	for i := range 5 { // within the window
		n.Notify("a", fmt.Sprint(i))
	}
	tx := begin(t, pool)
	notifyTx(t, n, tx, "a", "open")
	got := m.read(t)
	for name, want := range map[string]int64{
		"romancy.notifier.sent": 1, "romancy.notifier.batches": 1, "romancy.notifier.collapsed": 3,
		"romancy.notifier.pending": 3, "romancy.notifier.open_transactions": 1,
	} {
		if got[name] != want {
			t.Errorf("%s is %d, want %d", name, got[name], want)
		}
	}
	commit(t, tx)
	if err := n.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	got = m.read(t)
	if sent := got["romancy.notifier.sent"]; sent != 5 { // first, 0, 1, the empty one, open
		t.Errorf("%d were sent", sent)
	}
	if _, observed := got["romancy.notifier.pending"]; observed {
		t.Error("a closed notifier is still observed")
	}
}

func TestSubscriberIsMeasured(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	m := newMeter()
	l := startListener(t, pool)
	eventually(t, "the listener is connected", l.Healthy)
	addEvents(t, pool, "evt_1", "evt_2")
	s := newSubscriber(t, pool, l, func(c *SubscriberConfig) { c.MeterProvider = m })
	out := messages(t, s, outboxChannel)
	receive(t, out).Nack()
	wantEvent(t, out, "evt_1", SourceCatchUp)
	wantEvent(t, out, "evt_2", SourceCatchUp)
	notify(t, pool, outboxChannel, Encode(OutboxPending{"evt_3"}))
	wantEvent(t, out, "evt_3", SourceNotify)
	execute(t, pool, "alter view romancy.pending_outbox_pending rename to hidden")
	notify(t, pool, outboxChannel, "")
	want := map[string]int64{
		"romancy.subscriber.delivered{channel=romancy_outbox_pending,source=catchup}": 3,
		"romancy.subscriber.delivered{channel=romancy_outbox_pending,source=notify}":  1,
		"romancy.subscriber.catch_ups{channel=romancy_outbox_pending,outcome=done}":   1,
	}
	failed := "romancy.subscriber.catch_ups{channel=romancy_outbox_pending,outcome=failed}"
	eventually(t, "the catch-up has failed", func() bool { return m.read(t)[failed] > 0 })
	got := m.read(t)
	for name, value := range want {
		if got[name] != value {
			t.Errorf("%s is %d, want %d", name, got[name], value)
		}
	}
}
