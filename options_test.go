package romancy

import (
	"context"
	"log/slog"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	metricnoop "go.opentelemetry.io/otel/metric/noop"
	tracenoop "go.opentelemetry.io/otel/trace/noop"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/secret"
	"github.com/romancy-go/romancy/workflow"
)

type order struct {
	ID    string `json:"id"`
	Cents int64  `json:"cents"`
}

func define(name string) workflow.Definition {
	return workflow.Define(name, func(*workflow.Context, order) (order, error) { return order{}, nil })
}

// startError starts an App that must not start, and returns why.
func startError(t *testing.T, opts ...Option) string {
	t.Helper()
	app := NewApp(opts...)
	err := app.Start(t.Context())
	if err == nil {
		_ = app.Shutdown(context.Background())
		t.Fatal("it started, want an error")
	}
	if err := app.Shutdown(t.Context()); err != nil {
		t.Errorf("shutdown after a failed start: %v", err)
	}
	return err.Error()
}

func wantSays(t *testing.T, text string, wants ...string) {
	t.Helper()
	for _, want := range wants {
		if !strings.Contains(text, want) {
			t.Errorf("the error does not say %q:\n%s", want, text)
		}
	}
}

func TestStartWithoutADatabaseSaysHowToGiveOne(t *testing.T) {
	t.Parallel()
	wantSays(t, startError(t), "no database: give WithDatabase(url) or WithPool(pool)")
	wantSays(t, startError(t, WithDatabase("")), `WithDatabase("")`, "postgres://user:password@localhost:5432/dbname")
	wantSays(t, startError(t, WithPool(nil)), "WithPool(nil)")
}

func TestStartWithTwoDatabasesSaysSo(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://localhost/nowhere") // connects to nothing
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	wantSays(t, startError(t, WithDatabase("postgres://localhost/a"), WithPool(pool)), "2 databases (WithDatabase 1 times, WithPool 1 times): give exactly one")
	wantSays(t, startError(t, WithDatabase("postgres://localhost/a"), WithDatabase("postgres://localhost/b")), "2 databases (WithDatabase 2 times")
}

func TestStartReportsAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	text := startError(t,
		WithDatabase("postgres://user:secret@localhost:notaport/db"),
		WithDatabase(""),
		WithSchema("Tick; drop"),
		WithChannels(bus.Channels{TimerExpired: strings.Repeat("x", 64)}),
		WithWorkflows(define("order"), nil, define("order"), define("")),
		WithLease(time.Millisecond),
		WithNotifyFallbackInterval(-time.Second),
		WithNotifyReconnectDelay(time.Nanosecond),
		WithMaxWorkflowsPerBatch(-1),
		WithMaxTimersPerBatch(-2),
		WithMaxMessagesPerBatch(-3),
		WithMaxConcurrentRuns(-4),
		WithMaxConcurrentActivities(-5),
		WithMaxDeaths(-6),
		WithMaxInterruptions(-7),
		WithRetention(-time.Hour),
		WithEventRetention(-time.Minute),
		WithSendKeyRetention(time.Nanosecond),
		WithOutboxPublisher(nil),
		WithLogger(nil),
		WithMeterProvider(nil),
		WithTracerProvider(nil),
		WithListenURL("postgres://user:secret@localhost:notaport/db"),
		WithListenURL(""),
		WithListener(nil),
		WithRiver(nil, nil),
	)
	wantSays(t, text,
		"2 databases", "WithDatabase: ", `WithDatabase("")`,
		`WithSchema: schema "Tick; drop"`,
		"WithChannels: ",
		"workflow 2 of 4 is nil", `two workflows are named "order": rename one`, "workflow name is empty",
		"WithLease(1ms)",
		"WithNotifyFallbackInterval(-1s)", "0 for 30s",
		"WithNotifyReconnectDelay(1ns)", "0 for 1m0s",
		"WithMaxWorkflowsPerBatch(-1)", "WithMaxTimersPerBatch(-2)", "WithMaxMessagesPerBatch(-3)", "0 for 100",
		"WithMaxConcurrentRuns(-4)", "WithMaxConcurrentActivities(-5)", "0 for 1000", "WithMaxDeaths(-6)", "0 for 5", "WithMaxInterruptions(-7)", "0 for 20",
		"WithRetention(-1h0m0s)", "WithEventRetention(-1m0s)", "WithSendKeyRetention(1ns)", "0 for 24h0m0s",
		"WithOutboxPublisher(nil)", "WithLogger(nil)", "WithMeterProvider(nil)", "WithTracerProvider(nil)", "WithRiver with a nil client",
		"WithListenURL: ", `WithListenURL("")`, "WithListener(nil)", "3 ways to listen (WithListenURL 2 times, WithListener 1 times): give at most one",
	)
	if strings.Contains(text, "secret") {
		t.Errorf("the error tells the password:\n%s", text)
	}
	seen := map[string]bool{}
	for line := range strings.Lines(text) {
		if seen[line] {
			t.Errorf("said twice: %s", line)
		}
		seen[line] = true
	}
}

func TestOptionsThatContradictEachOtherAreReported(t *testing.T) {
	t.Parallel()
	listener, err := bus.NewListener(bus.ListenerConfig{Disabled: true})
	if err != nil {
		t.Fatal(err)
	}
	database := WithDatabase("postgres://localhost/a")
	wantSays(t, startError(t, database, WithListener(listener), WithNotifyReconnectDelay(time.Second)),
		"WithNotifyReconnectDelay(1s) has no effect on the listener of WithListener")
	wantSays(t, startError(t, database, WithListener(listener), WithListenURL("postgres://localhost/a")),
		"2 ways to listen (WithListenURL 1 times, WithListener 1 times)")
	for _, option := range []Option{WithListener(listener), WithListenURL("postgres://localhost/a")} {
		wantSays(t, startError(t, database, WithListenNotify(BoolPtr(false)), option), "WithListenNotify(false) together with WithListenURL or WithListener")
	}
}

func TestTheDefaultsAreTheDocumentedOnes(t *testing.T) {
	t.Parallel()
	o, err := check(options{urls: []secret.Text{secret.New("postgres://localhost/a")}})
	if err != nil {
		t.Fatal(err)
	}
	if o.schema != "romancy" || o.channels != bus.ChannelsFor("romancy") {
		t.Errorf("schema %q, channels %+v", o.schema, o.channels)
	}
	if o.fallbackInterval != 30*time.Second || o.reconnectDelay != time.Minute {
		t.Errorf("fallback interval %s, reconnect delay %s", o.fallbackInterval, o.reconnectDelay)
	}
	if o.maxWorkflows != 100 || o.maxTimers != 100 || o.maxMessages != 100 {
		t.Errorf("batches %d, %d, %d", o.maxWorkflows, o.maxTimers, o.maxMessages)
	}
	if !o.listens() {
		t.Error("LISTEN/NOTIFY is off by default")
	}
	for value, want := range map[*bool]bool{BoolPtr(true): true, BoolPtr(false): false, nil: true} {
		o.listenNotify = value
		if o.listens() != want {
			t.Errorf("listens = %t, want %t", !want, want)
		}
	}
}

func TestAChannelLeftEmptyKeepsTheNameOfTheSchema(t *testing.T) {
	t.Parallel()
	o, err := check(options{urls: []secret.Text{secret.New("postgres://localhost/a")}, schema: "shop", channels: bus.Channels{TimerExpired: "workflow_timer_expired"}})
	if err != nil {
		t.Fatal(err)
	}
	want := bus.Channels{
		WorkflowResumable: "shop_workflow_resumable", TimerExpired: "workflow_timer_expired",
		ChannelMessage: "shop_channel_message", OutboxPending: "shop_outbox_pending",
	}
	if o.channels != want {
		t.Errorf("channels %+v, want %+v", o.channels, want)
	}
}

// Each option sets one field of the engine's configuration to what was given, and no other.
func TestOptionsReachTheEngine(t *testing.T) {
	t.Parallel()
	logger, meter, tracer := slog.New(slog.DiscardHandler), metricnoop.NewMeterProvider(), tracenoop.NewTracerProvider()
	config := func(opts ...Option) reflect.Value {
		app := NewApp(append([]Option{WithDatabase("postgres://localhost/a")}, opts...)...)
		if app.mistake != nil {
			t.Fatal(app.mistake)
		}
		return reflect.ValueOf(app.options.engineConfig(&parts{}))
	}
	plain := config()
	for field, c := range map[string]struct {
		option Option
		want   any
	}{
		"ClientOnly":              {WithClientOnly(), true},
		"Lease":                   {WithLease(41 * time.Second), 41 * time.Second},
		"FallbackInterval":        {WithNotifyFallbackInterval(42 * time.Second), 42 * time.Second},
		"MaxWorkflowsPerBatch":    {WithMaxWorkflowsPerBatch(43), 43},
		"MaxTimersPerBatch":       {WithMaxTimersPerBatch(44), 44},
		"MaxMessagesPerBatch":     {WithMaxMessagesPerBatch(45), 45},
		"MaxConcurrentRuns":       {WithMaxConcurrentRuns(46), 46},
		"MaxConcurrentActivities": {WithMaxConcurrentActivities(47), 47},
		"MaxDeaths":               {WithMaxDeaths(48), 48},
		"MaxInterruptions":        {WithMaxInterruptions(49), 49},
		"Retention":               {WithRetention(49 * time.Hour), 49 * time.Hour},
		"EventRetention":          {WithEventRetention(50 * time.Hour), 50 * time.Hour},
		"SendKeyRetention":        {WithSendKeyRetention(51 * time.Hour), 51 * time.Hour},
		"Logger":                  {WithLogger(logger), logger},
		"MeterProvider":           {WithMeterProvider(meter), meter},
		"TracerProvider":          {WithTracerProvider(tracer), tracer},
		"HideErrorTexts":          {WithoutErrorTexts(), true},
	} {
		with := config(c.option)
		for i := range with.NumField() {
			switch name, got := with.Type().Field(i).Name, with.Field(i).Interface(); {
			case name == field && !reflect.DeepEqual(got, c.want):
				t.Errorf("%s is %v, want %v", name, got, c.want)
			case name != field && !reflect.DeepEqual(got, plain.Field(i).Interface()):
				t.Errorf("the option for %s sets %s to %v", field, name, got)
			}
		}
	}
}
