package romancy

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestStatusNamesWhoHoldsAnOldSnapshot(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	config := pool.Config().ConnConfig
	config.RuntimeParams["application_name"] = "nightly report"
	culprit, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = culprit.Close(context.Background()) }) // ends its transaction, whatever comes back
	if _, err := culprit.Exec(t.Context(), "begin isolation level repeatable read; select count(*) from romancy.instances"); err != nil {
		t.Fatal(err)
	}
	reader := sdkmetric.NewManualReader()
	app := start(t, WithPool(pool), WithWorkflows(orderFlow), WithAutoMigrate(), WithMeterProvider(sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))))
	for deadline := time.Now().Add(patience); app.Status().Snapshot.LookedAt.IsZero(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("nobody has looked")
		}
	}
	snapshot := app.Status().Snapshot
	if snapshot.Oldest == nil {
		t.Fatal("nobody")
	}
	if got := snapshot.Oldest; got.Kind != "session" || got.Name != "nightly report" || got.State != "idle in transaction" ||
		got.PID != int32(culprit.PgConn().PID()) || got.Age <= 0 {
		t.Errorf("got %+v", got)
	}
	if snapshot.Hidden != 0 {
		t.Errorf("%d sessions hidden from a superuser", snapshot.Hidden)
	}
	if age := gauge(t, reader, "romancy.snapshot.age"); age != snapshot.Oldest.Age.Seconds() {
		t.Errorf("romancy.snapshot.age is %g, want %g", age, snapshot.Oldest.Age.Seconds())
	}
}

// gauge returns the one value of a gauge.
func gauge(t *testing.T, reader sdkmetric.Reader, name string) float64 {
	t.Helper()
	var collected metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &collected); err != nil {
		t.Fatal(err)
	}
	for _, scope := range collected.ScopeMetrics {
		for _, m := range scope.Metrics {
			if data, ok := m.Data.(metricdata.Gauge[float64]); ok && m.Name == name && len(data.DataPoints) == 1 {
				return data.DataPoints[0].Value
			}
		}
	}
	t.Fatalf("no gauge %s with one value", name)
	return 0
}
