package romancy

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/riverjobs"
	"github.com/romancy-go/romancy/workflow"
)

const patience = 30 * time.Second

var (
	charge = workflow.DefineActivity("charge_card", func(_ context.Context, o order) (order, error) {
		o.Cents = -o.Cents
		return o, nil
	})
	placed = workflow.DefineActivity("place_order", func(ctx context.Context, o order) (order, error) {
		return o, outbox.Add(ctx, workflow.Tx(ctx), outbox.Event{ID: "placed-" + o.ID, Topic: "order.placed", Key: o.ID, Payload: []byte(o.ID)})
	}, workflow.WithTransaction())
	orderFlow = workflow.Define("order", func(ctx *workflow.Context, o order) (order, error) {
		if _, err := placed.Execute(ctx, o); err != nil {
			return order{}, err
		}
		if err := workflow.Sleep(ctx, 50*time.Millisecond); err != nil {
			return order{}, err
		}
		approval, err := workflow.Receive[string](ctx, "approvals")
		if err != nil {
			return order{}, err
		}
		o.ID += " " + approval.Body
		return charge.Execute(ctx, o)
	})
)

// start starts an App and shuts it down when the test ends.
func start(t *testing.T, opts ...Option) *App {
	t.Helper()
	app := NewApp(opts...)
	if err := app.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { shutdown(t, app) })
	return app
}

func shutdown(t *testing.T, app *App) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := app.Shutdown(ctx); err != nil {
		t.Error(err)
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited %s until %s", patience, what)
		}
	}
}

// broker is a Watermill publisher that remembers what it got.
type broker struct {
	mu  sync.Mutex
	got []string
}

func (b *broker) Publish(topic string, messages ...*message.Message) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, msg := range messages {
		b.got = append(b.got, topic+" "+string(msg.Payload))
	}
	return nil
}

func (*broker) Close() error { return nil }

func (b *broker) has(entry string) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Contains(b.got, entry)
}

type logBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func (b *logBuffer) logger() *slog.Logger { return slog.New(slog.NewTextHandler(b, nil)) }

// runOrder runs one order from its start to its result, through every part of app.
func runOrder(t *testing.T, app *App, id string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	run, err := orderFlow.Start(ctx, app.Engine(), order{ID: id, Cents: 100}, workflow.WithID(id))
	if err != nil {
		t.Fatal(err)
	}
	if err := app.Engine().SendTo(ctx, run.ID(), "approvals", "approved"); err != nil {
		t.Fatal(err)
	}
	got, err := run.Result(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if want := (order{ID: id + " approved", Cents: -100}); got != want {
		t.Errorf("result %+v, want %+v", got, want)
	}
}

func TestAnOrderRunsFromStartToResult(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{
		"with LISTEN/NOTIFY":     {WithListenNotify(BoolPtr(true))},
		"without LISTEN/NOTIFY":  {WithListenNotify(BoolPtr(false))},
		"in a schema of its own": {WithSchema("shop")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			sink := &broker{}
			app := start(t, append(opts, WithDatabase(pgtest.EmptyURL(t)), WithAutoMigrate(),
				WithWorkflows(echoFlow), WithOutboxPublisher(sink))...)
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			run, err := echoFlow.Start(ctx, app.Engine(), "hello", workflow.WithID("echo"))
			if err != nil {
				t.Fatal(err)
			}
			if got, err := run.Result(ctx); err != nil || got != "hello" {
				t.Fatalf("result %q, %v", got, err)
			}
			if err := pgx.BeginFunc(ctx, app.Pool(), func(tx pgx.Tx) error {
				return app.Outbox().Add(ctx, tx, outbox.Event{Topic: "greetings", Payload: []byte("hello")})
			}); err != nil {
				t.Fatal(err)
			}
			eventually(t, "the event is relayed", func() bool { return sink.has("greetings hello") })
		})
	}
}

func TestItWorksInEveryQueryExecModeAndTimeZone(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			url := pgtest.EmptyURL(t)
			separator := "?"
			if strings.Contains(url, "?") {
				separator = "&"
			}
			log, sink := &logBuffer{}, &broker{}
			app := start(t, WithDatabase(url+separator+"default_query_exec_mode="+mode+"&TimeZone=Pacific/Kiritimati"), WithAutoMigrate(),
				WithWorkflows(orderFlow), WithOutboxPublisher(sink), WithListenNotify(BoolPtr(false)), WithLogger(log.logger()))
			runOrder(t, app, "order-1")
			eventually(t, "the event is relayed", func() bool { return sink.has("order.placed order-1") })
			eventually(t, "River has worked a sweep", func() bool {
				var done bool
				err := app.Pool().QueryRow(t.Context(), "select exists (select from romancy.river_job where kind = $1::text and state = 'completed')", riverjobs.KindTimers).Scan(&done)
				return err == nil && done
			})
			if strings.Contains(log.String(), "level=ERROR") || strings.Contains(log.String(), "level=WARN") {
				t.Errorf("there are complaints:\n%s", log)
			}
		})
	}
}

var echoFlow = workflow.Define("echo", func(ctx *workflow.Context, text string) (string, error) {
	return text, workflow.Sleep(ctx, 10*time.Millisecond)
})

func TestAllPartsWorkTogether(t *testing.T) {
	t.Parallel()
	sink, log := &broker{}, &logBuffer{}
	app := start(t, WithDatabase(pgtest.EmptyURL(t)), WithAutoMigrate(), WithWorkflows(orderFlow), WithOutboxPublisher(sink),
		WithLogger(log.logger()))
	eventually(t, "the listener is healthy", app.Listener().Healthy)

	subscriber, err := app.Subscriber(bus.SubscriberConfig{})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = subscriber.Close() }()
	heard := map[string]*atomic.Int32{}
	for _, channel := range app.Channels().All() {
		messages, err := subscriber.Subscribe(t.Context(), channel)
		if err != nil {
			t.Fatal(err)
		}
		count := &atomic.Int32{}
		heard[channel] = count
		go func() {
			for msg := range messages {
				count.Add(1)
				msg.Ack()
			}
		}()
	}
	runOrder(t, app, "order-1")
	eventually(t, "the event is relayed", func() bool { return sink.has("order.placed order-1") })
	for channel, count := range heard {
		eventually(t, "something is heard on "+channel, func() bool { return count.Load() > 0 })
	}
	if status := app.Status(); status.State != StateRunning || status.Listener.State != bus.StateListening || !status.Engine.Listening {
		t.Errorf("status %+v", status)
	}
	for _, line := range []string{
		`level=INFO msg="PostgreSQL LISTEN/NOTIFY configured" fallback_interval=30s reconnect_delay=60s`,
		`level=INFO msg="PostgreSQL LISTEN/NOTIFY connection established"`,
	} {
		if !strings.Contains(log.String(), line) {
			t.Errorf("the log does not say %s:\n%s", line, log)
		}
	}
}

func TestInTheApplicationsRiverClientAndPool(t *testing.T) {
	t.Parallel()
	for _, order := range []string{"app first", "client first"} {
		t.Run(order, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			if err := riverjobs.Migrate(t.Context(), pool, "romancy"); err != nil {
				t.Fatal(err)
			}
			workers := river.NewWorkers()
			client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
				Logger: slog.New(slog.DiscardHandler), Schema: "romancy", Workers: workers,
				Queues: map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: 1}},
			})
			if err != nil {
				t.Fatal(err)
			}
			app := NewApp(WithPool(pool), WithRiver(client, workers), WithWorkflows(orderFlow), WithListenNotify(BoolPtr(false)))
			startClient := func() {
				if err := client.Start(context.Background()); err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { _ = client.Stop(context.Background()) })
			}
			if order == "client first" {
				startClient()
			}
			if err := app.Start(t.Context()); err != nil {
				t.Fatal(err)
			}
			if order == "app first" {
				startClient()
			}
			runOrder(t, app, "order-1")
			eventually(t, "the host's client has worked a sweep", func() bool {
				var done bool
				err := pool.QueryRow(t.Context(), "select exists (select from romancy.river_job where kind = $1::text and state = 'completed')", riverjobs.KindResume).Scan(&done)
				return err == nil && done
			})
			shutdown(t, app)
			if err := pool.Ping(t.Context()); err != nil {
				t.Errorf("the application's pool is closed: %v", err)
			}
		})
	}
}

func TestATimerWhoseWorkerHasGoneFiresElsewhereLongBeforeTheFallback(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyURL(t)
	nap := workflow.Define("nap", func(ctx *workflow.Context, d time.Duration) (string, error) {
		return "awake", workflow.Sleep(ctx, d)
	})
	leader := start(t, WithDatabase(url), WithAutoMigrate(), WithWorkflows(nap), WithNotifyFallbackInterval(time.Hour))
	eventually(t, "it leads and hears", func() bool { return leader.Status().Leading && leader.Listener().Healthy() })
	other := start(t, WithDatabase(url), WithWorkflows(nap), WithNotifyFallbackInterval(time.Hour))
	run, err := nap.Start(t.Context(), other.Engine(), 2*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "the run is parked", func() bool { return other.Status().Engine.Parked+leader.Status().Engine.Parked == 1 })
	shutdown(t, other)

	var got string
	eventually(t, "the run has ended", func() bool {
		err := leader.Pool().QueryRow(t.Context(), "select coalesce(output::text, '') from romancy.instances where id = $1::text", run.ID()).Scan(&got)
		return err == nil && got != ""
	})
	if got != `"awake"` {
		t.Errorf("output %s", got)
	}
}

func TestAClientOnlyAppExecutesNothing(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyURL(t)
	client := start(t, WithDatabase(url), WithAutoMigrate(), WithWorkflows(echoFlow), WithClientOnly())
	if client.running.Load().jobs != nil {
		t.Error("it has sweeps, though there is nothing to sweep for")
	}
	run, err := echoFlow.Start(t.Context(), client.Engine(), "hello")
	if err != nil {
		t.Fatal(err)
	}
	worker := start(t, WithDatabase(url), WithAutoMigrate(), WithWorkflows(echoFlow))
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if got, err := run.Result(ctx); err != nil || got != "hello" {
		t.Errorf("result %q, %v", got, err)
	}
	if got := worker.Status().Engine.Workflows; fmt.Sprint(got) != "[echo]" {
		t.Errorf("the worker executes %v", got)
	}
}
