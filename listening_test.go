package romancy

import (
	"context"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestListenURLReachesPostgreSQLAroundAPooler(t *testing.T) {
	t.Parallel()
	url := pgtest.URL(t)
	pool := pgtest.Connect(t, pgtest.PgBouncer(t, url, "transaction"), func(c *pgxpool.Config) {
		c.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	})
	log := &logBuffer{}
	app := start(t, WithPool(pool), WithListenURL(url), WithLogger(log.logger()))
	eventually(t, "it listens", app.Listener().Healthy)
	subscription, err := app.Listener().Subscribe(0, "around")
	if err != nil {
		t.Fatal(err)
	}
	defer subscription.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if n, err := subscription.Next(ctx); err != nil || !n.CatchUp {
		t.Fatalf("got %+v, %v", n, err)
	}
	if _, err := pool.Exec(ctx, "select pg_notify('around', 'x')"); err != nil {
		t.Fatal(err)
	}
	if n, err := subscription.Next(ctx); err != nil || n.Payload != "x" {
		t.Errorf("got %+v, %v", n, err)
	}
}

func TestTheApplicationsListenerIsUsedAndStaysItsOwn(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	listener, err := bus.NewListener(bus.ListenerConfig{Pool: pool, Logger: (&logBuffer{}).logger()})
	if err != nil {
		t.Fatal(err)
	}
	if err := listener.Start(ctx); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := listener.Close(ctx); err != nil {
			t.Error(err)
		}
	}()
	log := &logBuffer{}
	app := start(t, WithPool(pool), WithListener(listener), WithLogger(log.logger()), WithWorkflows(echoFlow), WithAutoMigrate())
	if app.Listener() != listener {
		t.Error("the App has another listener")
	}
	eventually(t, "it listens", listener.Healthy)
	if state := app.Status().Listener.State; state != bus.StateListening {
		t.Errorf("the status says that it is %s", state)
	}
	run, err := echoFlow.Start(ctx, app.Engine(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	if got, err := run.Result(ctx); err != nil || got != "hello" {
		t.Errorf("result %q, %v", got, err)
	}
	var listening int
	if err := pool.QueryRow(ctx, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% listen'").Scan(&listening); err != nil {
		t.Fatal(err)
	}
	if listening != 1 {
		t.Errorf("%d connections listen, want the application's alone", listening)
	}
	shutdown(t, app)
	if !listener.Healthy() {
		t.Errorf("after Shutdown it is %s", listener.Status().State)
	}
}

func TestMetricsAreMadeByTheProviderGiven(t *testing.T) {
	t.Parallel()
	reader := metric.NewManualReader()
	log := &logBuffer{}
	app := start(t, WithPool(pgtest.Pool(t)), WithWorkflows(echoFlow), WithAutoMigrate(),
		WithMeterProvider(metric.NewMeterProvider(metric.WithReader(reader))), WithLogger(log.logger()))
	eventually(t, "it listens", app.Listener().Healthy)
	var all metricdata.ResourceMetrics
	if err := reader.Collect(t.Context(), &all); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, scope := range all.ScopeMetrics {
		for _, metrics := range scope.Metrics {
			names[metrics.Name] = true
		}
	}
	for _, name := range []string{"romancy.listener.state", "romancy.notifier.pending", "romancy.workflow.ready.depth"} {
		if !names[name] {
			t.Errorf("%s is missing in %v", name, names)
		}
	}
}

func TestSpansAreMadeByTheProviderGiven(t *testing.T) {
	t.Parallel()
	exporter := tracetest.NewInMemoryExporter()
	log := &logBuffer{}
	app := start(t, WithPool(pgtest.Pool(t)), WithWorkflows(echoFlow), WithAutoMigrate(),
		WithTracerProvider(trace.NewTracerProvider(trace.WithSyncer(exporter))), WithLogger(log.logger()))
	run, err := echoFlow.Start(t.Context(), app.Engine(), "traced")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := run.Result(t.Context()); err != nil {
		t.Fatal(err)
	}
	names := map[string]bool{}
	for _, span := range exporter.GetSpans() {
		names[span.Name] = true
	}
	for _, name := range []string{"start echo", "workflow echo"} {
		if !names[name] {
			t.Errorf("no span %q in %v", name, names)
		}
	}
}

// In a long outage the pauses between attempts to listen again have grown. The engine, whose attempts are never more than a
// second apart, tells when the server is back.
func TestListeningIsBackSoonAfterALongOutage(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("the outage lasts 15 s")
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(ctx)
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	app := start(t, WithDatabase(url), WithAutoMigrate(), WithWorkflows(echoFlow), WithLogger(log.logger()), WithNotifyReconnectDelay(time.Hour))
	eventually(t, "it listens", app.Listener().Healthy)
	if err := server.Halt(ctx, "immediate"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-time.After(15 * time.Second):
	case <-ctx.Done():
	}
	back := make(chan struct{}, 1)
	defer app.Listener().OnChange(func(state bus.State) {
		if state == bus.StateListening {
			back <- struct{}{}
		}
	})()
	if err := server.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	resumed := time.Now()
	select {
	case <-back:
	case <-ctx.Done():
		t.Fatalf("it is %s", app.Status().Listener.State)
	}
	if took := time.Since(resumed); took > 4*time.Second {
		t.Errorf("it listened again after %s, want 2s on a quiet machine", took)
	}
}
