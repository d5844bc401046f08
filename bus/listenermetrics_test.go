package bus

import (
	"testing"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// probes returns how many probes were measured and how long they took together.
func (m meter) probes(t testing.TB) (count uint64, total time.Duration) {
	t.Helper()
	var all metricdata.ResourceMetrics
	if err := m.reader.Collect(within(t), &all); err != nil {
		t.Fatal(err)
	}
	for _, scope := range all.ScopeMetrics {
		for _, metrics := range scope.Metrics {
			data, ok := metrics.Data.(metricdata.Histogram[float64])
			if !ok || metrics.Name != "romancy.listener.probe.duration" {
				continue
			}
			for _, point := range data.DataPoints {
				count += point.Count
				total += time.Duration(point.Sum * float64(time.Second))
			}
		}
	}
	return count, total
}

func TestListenerIsMeasured(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	m := newMeter()
	l := startListener(t, pool, func(c *ListenerConfig) { c.MeterProvider = m })
	s := subscribe(t, l, 1, "measured")
	want := func(when string, wanted map[string]int64) {
		t.Helper()
		got := m.read(t)
		for name, value := range wanted {
			if got[name] != value {
				t.Errorf("%s: %s is %d, want %d", when, name, got[name], value)
			}
		}
	}
	execute(t, pool, "select count(pg_notify('measured', i::text)) from generate_series(1, 3) i")
	eventually(t, "they came", func() bool { return l.Status().Received == 3 })
	want("listening", map[string]int64{
		"romancy.listener.state{state=listening}": 1, "romancy.listener.state{state=backoff}": 0,
		"romancy.listener.received": 3, "romancy.listener.reconnects": 0,
		"romancy.listener.dropped": 3, // one catch-up is for all of them
	})
	status := l.Status()
	count, total := m.probes(t)
	if count != 1 || total <= 0 || (total-status.ProbeRoundTrip).Abs() > time.Microsecond {
		t.Errorf("%d probes in %s were measured, want one in %s", count, total, status.ProbeRoundTrip)
	}
	pgtest.KillBackends(t, pool, "% listen")
	for n := next(t, s); n.PID != 0; n = next(t, s) { // what is left, and then the catch-up after the reconnect
	}
	eventually(t, "it is back", func() bool { return l.Status().Reconnects == 1 })
	want("back again", map[string]int64{"romancy.listener.state{state=listening}": 1, "romancy.listener.reconnects": 1})
	if err := l.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if _, observed := m.read(t)["romancy.listener.received"]; observed {
		t.Error("it is still observed after Close")
	}

	disabled := startListener(t, nil, func(c *ListenerConfig) { c.MeterProvider, c.Disabled = m, true })
	eventually(t, "a disabled listener shows", func() bool { return m.read(t)["romancy.listener.state{state=disabled}"] == 1 })
	if err := disabled.Close(within(t)); err != nil {
		t.Fatal(err)
	}
	if state := disabled.Status().State; state != StateClosed {
		t.Errorf("state is %s", state)
	}
}
