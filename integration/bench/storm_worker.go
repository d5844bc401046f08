package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/metric/noop"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
)

const systemStorm = "romancy in a storm"

// stormEvery is how far apart ordinary runs are started: they must not be what is slow.
const stormEvery = 50 * time.Millisecond

// stormSystem is this library with all that listens: a worker, a relay and a subscriber to each of the four channels.
type stormSystem struct {
	*romancySystem

	lines      *countingHandler
	losses     atomic.Int64
	subscriber *bus.Subscriber
	unread     sync.WaitGroup

	observing *stormObservation // nil: none is under way
}

// stormAnswer is what the worker has observed of itself.
type stormAnswer struct {
	Heap       uint64          `json:"heap"` // the most bytes of heap that were in use
	Took       []time.Duration `json:"took"` // by ordinary runs
	Lines      int64           `json:"lines"`
	LeasesLost int64           `json:"leases_lost"`
}

type stormObservation struct {
	stop   chan struct{}
	busy   sync.WaitGroup
	before stormAnswer

	mu    sync.Mutex
	found stormAnswer
	err   error
}

func newStorm(ctx context.Context, as assignment) (system, error) {
	address, err := withParameter(as.URL, "pool_max_conns", fmt.Sprint(poolConnections))
	if err != nil {
		return nil, err
	}
	s := &stormSystem{lines: &countingHandler{
		Handler: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn}), lines: new(atomic.Int64),
	}}
	app := romancy.NewApp(
		romancy.WithDatabase(address), romancy.WithWorkflows(fiveSteps, receiver), romancy.WithOutboxPublisher(nowhere{}),
		romancy.WithLogger(slog.New(s.lines)), romancy.WithMeterProvider(lossProvider{losses: &s.losses}),
	)
	if err := app.Start(ctx); err != nil {
		return nil, err
	}
	s.romancySystem = &romancySystem{app}
	if err := s.subscribe(ctx); err != nil {
		return nil, errors.Join(err, app.Shutdown(ctx))
	}
	return s, nil
}

// subscribe acknowledges whatever comes.
func (s *stormSystem) subscribe(ctx context.Context) (err error) {
	if s.subscriber, err = s.app.Subscriber(bus.SubscriberConfig{}); err != nil {
		return err
	}
	for _, topic := range s.app.Channels().All() {
		messages, err := s.subscriber.Subscribe(ctx, topic)
		if err != nil {
			return errors.Join(err, s.subscriber.Close())
		}
		s.unread.Go(func() {
			for told := range messages {
				told.Ack()
			}
		})
	}
	return nil
}

func (s *stormSystem) stop(ctx context.Context) error {
	err := s.subscriber.Close()
	s.unread.Wait()
	return errors.Join(err, s.romancySystem.stop(ctx))
}

// addStormOrders adds what only this system is asked for.
func (s *stormSystem) addStormOrders(table map[string]func(context.Context, json.RawMessage) (any, error)) {
	table["park"] = taking(s.park)
	table["observe"] = taking(s.observe)
	table["observed"] = taking(s.observed)
}

// park starts receivers, waits until they are parked, and returns their ids.
func (s *stormSystem) park(ctx context.Context, runs int) (any, error) {
	ids := make([]string, runs)
	if err := each(runs, 200, func(i int) (err error) {
		ids[i], err = s.startReceiver(ctx, 1)
		return err
	}); err != nil {
		return nil, err
	}
	_, err := s.awaitParked(ctx, runs)
	return ids, err
}

// observe begins to start ordinary runs and to watch this process, until observed is asked.
func (s *stormSystem) observe(ctx context.Context, _ nothing) (any, error) {
	o := &stormObservation{stop: make(chan struct{}), before: stormAnswer{Lines: s.lines.lines.Load(), LeasesLost: s.losses.Load()}}
	s.observing = o
	runtime.GC() // what is left of the time before
	o.busy.Go(func() { o.every(100*time.Millisecond, o.noteHeap) })
	o.busy.Go(func() {
		o.every(stormEvery, func() {
			o.busy.Go(func() { o.ordinary(ctx, s.romancySystem) })
		})
	})
	return nothing{}, nil
}

func (o *stormObservation) every(interval time.Duration, do func()) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-o.stop:
			return
		case <-ticker.C:
			do()
		}
	}
}

func (o *stormObservation) noteHeap() {
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.found.Heap = max(o.found.Heap, stats.HeapInuse)
}

func (o *stormObservation) ordinary(ctx context.Context, of *romancySystem) {
	begun := time.Now()
	err := of.fiveSteps(ctx)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.found.Took = append(o.found.Took, time.Since(begun))
	if err != nil && o.err == nil {
		o.err = fmt.Errorf("an ordinary run: %w", err)
	}
}

// observed ends what observe has begun, when the last ordinary run has ended.
func (s *stormSystem) observed(context.Context, nothing) (any, error) {
	o := s.observing
	if o == nil {
		return nil, errors.New("nothing is observed")
	}
	s.observing = nil
	close(o.stop)
	o.busy.Wait()
	o.found.Lines, o.found.LeasesLost = s.lines.lines.Load()-o.before.Lines, s.losses.Load()-o.before.LeasesLost
	return o.found, o.err
}

// countingHandler counts all lines that a default logger would show.
type countingHandler struct {
	slog.Handler

	lines *atomic.Int64
}

func (h *countingHandler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelInfo
}

func (h *countingHandler) Handle(ctx context.Context, record slog.Record) error {
	if h.lines.Add(1) > 1000 || !h.Handler.Enabled(ctx, record.Level) {
		return nil // a storm of lines is counted, and not shown
	}
	return h.Handler.Handle(ctx, record)
}

func (h *countingHandler) WithAttrs(attributes []slog.Attr) slog.Handler {
	return &countingHandler{h.Handler.WithAttrs(attributes), h.lines}
}

func (h *countingHandler) WithGroup(name string) slog.Handler {
	return &countingHandler{h.Handler.WithGroup(name), h.lines}
}

// lossProvider counts lost leases, and measures nothing else.
type lossProvider struct {
	noop.MeterProvider

	losses *atomic.Int64
}

func (p lossProvider) Meter(string, ...metric.MeterOption) metric.Meter {
	return lossMeter{losses: p.losses}
}

type lossMeter struct {
	noop.Meter

	losses *atomic.Int64
}

func (m lossMeter) Int64Counter(name string, _ ...metric.Int64CounterOption) (metric.Int64Counter, error) {
	if name == "romancy.workflow.lease.losses" {
		return lossCounter{losses: m.losses}, nil
	}
	return noop.Int64Counter{}, nil
}

type lossCounter struct {
	noop.Int64Counter

	losses *atomic.Int64
}

func (c lossCounter) Add(_ context.Context, n int64, _ ...metric.AddOption) { c.losses.Add(n) }

// nowhere takes what the relay publishes.
type nowhere struct{}

func (nowhere) Publish(string, ...*message.Message) error { return nil }
func (nowhere) Close() error                              { return nil }
