package integration_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/trace"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

// faultsTables are the application's. Nothing is unique, so that what happened twice can be seen.
const faultsTables = `
create schema shop;
create table shop.effects (key text not null, what text not null);
`

// faultsPatience bounds one cell: it only decides how long a failure takes.
const faultsPatience = 2 * time.Minute

// faultsSlow is how long the broker takes for some events: their lease is renewed meanwhile.
const faultsSlow = 2200 * time.Millisecond

// faultsGrace is how long the other scenarios of a cell have after one of them has failed.
const faultsGrace = 3 * time.Second

// faultsWorld is a database behind proxies, three processes on it, and all that their activities have done, in memory.
//
// The shop is an App as most have one: it executes, relays nothing, and has River sweep. The annex is an engine made of its
// parts, which keeps one parked run in memory and takes its server for a pooler. The desk executes nothing: it starts,
// sends, relays the outbox and subscribes to the four channels.
type faultsWorld struct {
	t       *testing.T
	ctx     context.Context //nolint:containedctx // the cell's
	made    time.Time
	giveUp  context.CancelFunc
	url     string
	direct  *pgxpool.Pool // not through a proxy
	proxies []*pgtest.FaultProxy
	cells   []*faultsCell
	before  []*pgtest.Injection
	outages sync.WaitGroup // faults that last

	flows    faultsFlows
	trapped  bool          // sessions find names of others first: what is not ours has sessions that do not, or is left out
	fallback time.Duration // how often what a notification would have said is swept for
	shop     *romancy.App
	annex    *faultsAnnex
	desk     *romancy.App
	deskPool *pgxpool.Pool
	relay    *outbox.Relay
	bus      *bus.Subscriber
	handlers sync.WaitGroup

	broken   atomic.Bool // the activity fragile fails for good while it is set
	poisoned atomic.Bool // the broker refuses the topic poison while it is set
	log      *faultsLog

	returning chan struct{} // a patient is past its last command
	leave     chan struct{} // closed when it may end

	mu        sync.Mutex
	begun     map[faultsExecution]int
	returned  map[faultsExecution]int
	noted     map[string]int // what runs have received, by run and key
	published map[string]int // by event
	refusals  map[string]int // what calls were refused with before they succeeded
	workers   map[string]int64
}

// faultsExecution is one attempt of one step.
type faultsExecution struct {
	Key     string // the idempotency key
	Attempt int
	Name    string
	Tx      bool
}

func newFaultsWorld(t *testing.T) *faultsWorld {
	t.Helper()
	return newFaultsWorldFor(t, faultsPatience)
}

func newFaultsWorldFor(t *testing.T, patience time.Duration) *faultsWorld {
	t.Helper()
	return newFaultsWorldOn(t, patience, pgtest.URL(t))
}

func newFaultsWorldOn(t *testing.T, patience time.Duration, url string) *faultsWorld {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	w := &faultsWorld{
		t: t, ctx: ctx, made: time.Now(), fallback: time.Second, giveUp: cancel, url: url, log: &faultsLog{},
		begun: map[faultsExecution]int{}, returned: map[faultsExecution]int{}, noted: map[string]int{}, published: map[string]int{},
		refusals: map[string]int{}, workers: map[string]int64{}, returning: make(chan struct{}, 1), leave: make(chan struct{}),
	}
	t.Cleanup(func() { cancel(); w.outages.Wait() })
	w.direct = pgtest.Connect(t, w.url, func(c *pgxpool.Config) { c.ConnConfig.RuntimeParams["search_path"] = "pg_catalog" })
	_, err := w.direct.Exec(ctx, faultsTables)
	w.must(err)
	for range 2 {
		w.proxies = append(w.proxies, pgtest.NewFaultProxy(t, w.url))
	}
	w.proxies[1].Disguise()
	w.flows = w.defineFlows()
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(w.report())
		}
	})
	return w
}

// sweeps reports whether anything sweeps in this world; else it has to find without a sweep what there is to wake runs for.
func (w *faultsWorld) sweeps() bool { return w.fallback <= time.Second }

// settle waits until each worker has renewed its lease once: the first time it sweeps.
func (w *faultsWorld) settle() {
	w.t.Helper()
	var last time.Time
	w.must(w.direct.QueryRow(w.ctx, "select max(lease_until) from romancy.workers").Scan(&last))
	w.must(w.until("all have renewed their leases", "select bool_and(lease_until > $1::timestamptz) from romancy.workers", last))
	time.Sleep(200 * time.Millisecond) // for what they sweep then
}

func (w *faultsWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// pool is a process's, by way of a proxy.
func (w *faultsWorld) pool(proxy int, name string) *pgxpool.Pool {
	return pgtest.Connect(w.t, w.proxies[proxy].URL(), func(c *pgxpool.Config) {
		c.MaxConns = 8
		if name == "guest" { // there are two, and all worlds have one server
			c.MaxConns = 3
		}
		c.ConnConfig.RuntimeParams["application_name"] = name
	})
}

// open starts the three processes. A fault may refuse a start, which is then tried again.
func (w *faultsWorld) open() {
	w.t.Helper()
	tracer := trace.NewTracerProvider()
	reader := metric.NewManualReader()
	meter := metric.NewMeterProvider(metric.WithReader(reader))
	w.t.Cleanup(func() { _ = errors.Join(tracer.Shutdown(context.Background()), meter.Shutdown(context.Background())) })

	shopPool := w.pool(0, "shop")
	options := []romancy.Option{
		romancy.WithPool(shopPool), romancy.WithAutoMigrate(), romancy.WithWorkflows(w.flows.shop()...), romancy.WithLogger(w.logger("shop")),
		romancy.WithNotifyFallbackInterval(w.fallback), romancy.WithRetention(time.Hour), romancy.WithMeterProvider(meter), romancy.WithTracerProvider(tracer),
	}
	if w.trapped {
		option, start, stop := w.pinnedRiver()
		options = append(options, option)
		defer func() { w.start("the shop's River", start, stop) }()
	}
	w.shop = w.startApp("the shop", options...)

	w.annex = newFaultsAnnex(w, w.logger("annex"))
	w.start("the annex", w.annex.start, w.annex.shutdown)
	w.workers["the shop"], w.workers["the annex"] = w.shop.Status().Engine.Worker, w.annex.engine.Status().Worker

	w.desk = w.startDesk(w.flows.annex()...)
	w.openRelay()
	w.subscribe()
	w.scrape(reader)
}

// startDesk starts the process that executes nothing.
func (w *faultsWorld) startDesk(others ...workflow.Definition) *romancy.App {
	w.t.Helper()
	w.deskPool = w.pool(0, "desk")
	return w.startApp("the desk",
		romancy.WithPool(w.deskPool), romancy.WithClientOnly(), romancy.WithWorkflows(append(w.flows.shop(), others...)...),
		romancy.WithNotifyFallbackInterval(w.fallback), romancy.WithLogger(w.logger("desk")), romancy.WithRetention(time.Hour),
	)
}

// startApp starts an App. One that cannot undo a start that has failed, within the time that it has, is replaced.
func (w *faultsWorld) startApp(what string, options ...romancy.Option) *romancy.App {
	w.t.Helper()
	app := romancy.NewApp(options...)
	start := func(ctx context.Context) error {
		err := app.Start(ctx)
		if errors.Is(err, romancy.ErrShutDown) {
			if ended := app.Shutdown(ctx); ended != nil {
				return ended
			}
			app = romancy.NewApp(options...)
		}
		return err
	}
	w.start(what, start, func(ctx context.Context) error { return app.Shutdown(ctx) })
	return app
}

func (w *faultsWorld) logger(process string) *slog.Logger {
	return slog.New(slog.NewTextHandler(w.log, &slog.HandlerOptions{Level: slog.LevelWarn})).With("process", process)
}

// start starts a part, which ends with the test.
func (w *faultsWorld) start(what string, start, shutdown func(context.Context) error) {
	w.t.Helper()
	w.insist("start "+what, func() error { return start(w.ctx) })
	w.t.Logf("started %s after %s", what, time.Since(w.made).Round(time.Millisecond))
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		began := time.Now()
		defer func() { w.t.Logf("shut %s down in %s", what, time.Since(began).Round(time.Millisecond)) }()
		if err := shutdown(ctx); err != nil {
			w.t.Errorf("shut %s down: %v", what, err)
		}
	})
}

// scrape collects metrics as a server of them is asked.
func (w *faultsWorld) scrape(reader *metric.ManualReader) {
	ctx, cancel := context.WithCancel(w.ctx)
	var busy sync.WaitGroup
	busy.Go(func() {
		for {
			_ = reader.Collect(ctx, &faultsMetrics{}) // what cannot be counted now is not shown
			select {
			case <-time.After(300 * time.Millisecond):
			case <-ctx.Done():
				return
			}
		}
	})
	w.t.Cleanup(func() { cancel(); busy.Wait() })
}

func (w *faultsWorld) openRelay() {
	w.t.Helper()
	relay, err := outbox.NewRelay(outbox.RelayConfig{
		Pool: w.deskPool, Publisher: &faultsPublisher{w: w}, Listener: w.desk.Listener(), Logger: w.logger("relay"),
		MaxAttempts: 3, InitialBackoff: 20 * time.Millisecond, MaxBackoff: 50 * time.Millisecond, FallbackInterval: time.Second,
		DeadLetterRetention: time.Hour, PublishTimeout: 3 * time.Second, Lease: 6 * time.Second,
	})
	w.must(err)
	w.relay = relay
	w.start("the relay", relay.Start, relay.Shutdown)
}

// subscribe has the desk handle all that is notified, as an application's router does.
func (w *faultsWorld) subscribe() {
	w.t.Helper()
	subscriber, err := w.desk.Subscriber(bus.SubscriberConfig{
		FallbackInterval: 300 * time.Millisecond, PollInterval: 200 * time.Millisecond, NackDelay: 5 * time.Millisecond, Logger: w.logger("subscriber"),
	})
	w.must(err)
	w.bus = subscriber
	w.t.Cleanup(func() {
		if err := subscriber.Close(); err != nil {
			w.t.Errorf("close the subscriber: %v", err)
		}
		w.handlers.Wait()
	})
	for _, channel := range w.desk.Channels().All() {
		messages, err := subscriber.Subscribe(context.Background(), channel)
		w.must(err)
		w.handlers.Go(func() {
			for msg := range messages {
				msg.Ack()
			}
		})
	}
}

// insist repeats a call that may be repeated until it succeeds: a fault may have refused it, or lost its answer.
func (w *faultsWorld) insist(what string, call func() error) {
	w.t.Helper()
	if err := w.persist(what, call); err != nil {
		w.t.Fatal(err)
	}
}

func (w *faultsWorld) persist(what string, call func() error) error {
	for {
		err := call()
		if err == nil {
			return nil
		}
		w.mu.Lock()
		w.refusals[what+": "+err.Error()]++
		w.mu.Unlock()
		select {
		case <-time.After(30 * time.Millisecond):
		case <-w.ctx.Done():
			return fmt.Errorf("%s: %w, at last after %w", what, w.ctx.Err(), err)
		}
	}
}

// until waits until a query, not through a proxy, says true.
func (w *faultsWorld) until(what, query string, args ...any) error {
	for {
		var ok bool
		if err := w.direct.QueryRow(w.ctx, query, args...).Scan(&ok); err != nil {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-w.ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, w.ctx.Err())
		}
	}
}

// executed is what went through all proxies.
func (w *faultsWorld) executed() map[pgtest.Execution]int {
	all := map[pgtest.Execution]int{}
	for _, proxy := range w.proxies {
		for execution, times := range proxy.Executed() {
			all[execution] += times
		}
	}
	return all
}

// note says that a run has received something.
func (w *faultsWorld) note(run, key string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.noted[run+" <- "+key]++
}

func (w *faultsWorld) begin(e faultsExecution) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun[e]++
}

func (w *faultsWorld) end(e faultsExecution) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.returned[e]++
}

// refused lists what calls were refused with, for a test that fails.
func (w *faultsWorld) refused() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var lines []string
	for _, what := range slices.Sorted(maps.Keys(w.refusals)) {
		lines = append(lines, fmt.Sprintf("\t%d times %s", w.refusals[what], what))
	}
	return strings.Join(lines, "\n")
}

// faultsAnnex is an engine made of its parts.
type faultsAnnex struct {
	listener *bus.Listener
	notifier *bus.Notifier
	engine   *workflow.Engine
	make     func() error
}

func newFaultsAnnex(w *faultsWorld, logger *slog.Logger) *faultsAnnex {
	pool := w.pool(1, "annex")
	a := &faultsAnnex{}
	a.make = func() error {
		var errs [3]error
		a.listener, errs[0] = bus.NewListener(bus.ListenerConfig{Pool: pool, ProbeInterval: 300 * time.Millisecond, ReconnectDelay: time.Second, Logger: logger})
		a.notifier, errs[1] = bus.NewNotifier(bus.NotifierConfig{Pool: pool, Logger: logger})
		a.engine, errs[2] = workflow.NewEngine(workflow.Config{
			Pool: pool, Workflows: w.flows.annex(), Listener: a.listener, Notifier: a.notifier, Logger: logger, Label: "annex",
			FallbackInterval: w.fallback, CacheSize: 1, Retention: time.Hour,
		})
		return errors.Join(errs[:]...)
	}
	return a
}

func (a *faultsAnnex) start(ctx context.Context) error {
	if err := a.make(); err != nil {
		return err
	}
	err := errors.Join(a.listener.Start(ctx), a.notifier.Start(ctx), a.engine.Start(ctx))
	if err != nil {
		return errors.Join(err, a.shutdown(ctx))
	}
	return nil
}

func (a *faultsAnnex) shutdown(ctx context.Context) error {
	return errors.Join(a.engine.Shutdown(ctx), a.listener.Close(ctx), a.notifier.Close(ctx))
}

// faultsPublisher is a broker in memory. It refuses the first attempt of some events, and poison for as long as the world
// is poisoned.
type faultsPublisher struct{ w *faultsWorld }

func (p *faultsPublisher) Publish(topic string, messages ...*message.Message) error {
	if topic == "slow" {
		time.Sleep(faultsSlow)
	}
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	for _, msg := range messages {
		if topic == "poison" && p.w.poisoned.Load() {
			return errors.New("poison")
		}
		if topic == "fragile" && p.w.published["refused "+msg.UUID] == 0 {
			p.w.published["refused "+msg.UUID]++
			return errors.New("not at the first attempt")
		}
		p.w.published[msg.UUID]++
	}
	return nil
}

func (p *faultsPublisher) Close() error { return nil }

// faultsLog keeps the last of what was logged.
type faultsLog struct {
	mu    sync.Mutex
	lines [][]byte
}

func (l *faultsLog) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.lines = append(l.lines, bytes.Clone(line)); len(l.lines) > 60 {
		l.lines = l.lines[1:]
	}
	return len(line), nil
}

func (l *faultsLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return string(bytes.Join(l.lines, nil))
}
