package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
)

// loadOrder asks for runs of five steps.
type loadOrder struct {
	InFlight int           `json:"in_flight"`
	Warm     time.Duration `json:"warm"` // before the counting begins
	Span     time.Duration `json:"span"` // of the counting
	Profile  string        `json:"profile,omitempty"`
}

type loadAnswer struct {
	PerSecond    float64 `json:"per_second"`
	Transactions float64 `json:"transactions"` // a run: those that wrote
	WAL          float64 `json:"wal"`          // bytes a run
}

// pointsPerRun are the points of a run at which it is durable: its start, its steps, its end.
const pointsPerRun = stepsPerRun + 2

// load keeps so many runs in flight and counts the points that they pass within the span. Runs in flight tend to march in
// step: whether one more wave of ends falls into the span would decide the figure, if ends were counted.
func (w *worker) load(ctx context.Context, ask loadOrder) (any, error) {
	server, err := pgx.Connect(ctx, w.as.URL)
	if err != nil {
		return nil, err
	}
	defer func() { _ = server.Close(ctx) }()

	var failure atomic.Pointer[error]
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stopping := make(chan struct{})
	var wg sync.WaitGroup
	for range ask.InFlight {
		wg.Go(func() {
			for {
				select {
				case <-stopping:
					return
				default:
				}
				if err := w.system.fiveSteps(ctx); err != nil {
					failure.CompareAndSwap(nil, &err)
					cancel()
					return
				}
			}
		})
	}
	counted, err := count(ctx, server, ask)
	close(stopping)
	wg.Wait()
	if first := failure.Load(); first != nil {
		return nil, *first
	}
	return counted, err
}

func count(ctx context.Context, server *pgx.Conn, ask loadOrder) (counted loadAnswer, err error) {
	if err := pass(ctx, ask.Warm); err != nil {
		return counted, err
	}
	if ask.Profile != "" {
		stop, err := startProfile(ask.Profile)
		if err != nil {
			return counted, err
		}
		defer stop()
	}
	writtenBefore, walBefore, err := written(ctx, server)
	if err != nil {
		return counted, err
	}
	pointsBefore, begun := observed.points.Load(), time.Now()
	if err := pass(ctx, ask.Span); err != nil {
		return counted, err
	}
	runs, took := float64(observed.points.Load()-pointsBefore)/pointsPerRun, time.Since(begun)
	writtenAfter, walAfter, err := written(ctx, server)
	if err != nil {
		return counted, err
	}
	if runs == 0 {
		return counted, fmt.Errorf("nothing moved within %[2]s with %[1]d runs in flight", ask.InFlight, took)
	}
	return loadAnswer{
		PerSecond:    runs / took.Seconds(),
		Transactions: float64(writtenAfter-writtenBefore) / runs,
		WAL:          float64(walAfter-walBefore) / runs,
	}, nil
}

// written returns the server's counters of transactions that wrote, rolled back ones included, and of WAL bytes. They are
// exact at once, which the statistics views are not.
func written(ctx context.Context, server *pgx.Conn) (transactions, wal int64, err error) {
	err = server.QueryRow(ctx, `select pg_snapshot_xmax(pg_current_snapshot())::text::bigint,
		(pg_current_wal_insert_lsn() - '0/0')::bigint`).Scan(&transactions, &wal)
	return transactions, wal, err
}

// sendOrder asks for messages to a run, one after the other, with a pause of 10 to 30 ms before each.
type sendOrder struct {
	To       string `json:"to"`
	Messages int    `json:"messages"`
}

// send returns when each message was durable.
func (w *worker) send(ctx context.Context, ask sendOrder) (any, error) {
	var sent []time.Time
	for i := range ask.Messages {
		// At random, or it would beat in time with somebody's ticker.
		if err := pass(ctx, 10*time.Millisecond+rand.N(20*time.Millisecond)); err != nil {
			return nil, err
		}
		if err := w.system.send(ctx, ask.To, i); err != nil {
			return nil, err
		}
		sent = append(sent, time.Now())
	}
	return sent, nil
}

// arrivals returns when each message was received.
func (w *worker) arrivals(_ context.Context, messages int) (any, error) {
	return take(observed.arrivals, messages, time.Minute)
}

// sleepers starts runs that sleep for longer than the measurement.
func (w *worker) sleepers(ctx context.Context, runs int) (any, error) {
	return nothing{}, each(runs, 200, func(int) error {
		return w.system.startSleeper(ctx, foreverSleep)
	})
}

// timersOrder asks for runs that sleep, started one after the other, Every apart.
type timersOrder struct {
	Runs  int           `json:"runs"`
	Sleep time.Duration `json:"sleep"`
	Every time.Duration `json:"every"`
}

// timers returns how late each went on: what the recording of the timer took is part of that.
func (w *worker) timers(ctx context.Context, ask timersOrder) (any, error) {
	ticker := time.NewTicker(ask.Every)
	defer ticker.Stop()
	for range ask.Runs {
		<-ticker.C
		if err := w.system.startSleeper(ctx, ask.Sleep); err != nil {
			return nil, err
		}
	}
	late, err := take(observed.lateness, ask.Runs, ask.Sleep+time.Minute)
	for i, by := range late {
		if by < -time.Millisecond { // which DBOS rounds to
			return nil, fmt.Errorf("a run went on %s early: it was replayed, or the timer is wrong", -by)
		}
		late[i] = max(by, 0)
	}
	return late, err
}

// memory starts receivers, waits until they are parked, and returns the bytes that each keeps.
func (r *romancySystem) memory(ctx context.Context, runs int) (any, error) {
	before := inUse()
	if err := each(runs, 200, func(int) error {
		_, err := r.startReceiver(ctx, 1)
		return err
	}); err != nil {
		return nil, err
	}
	if _, err := r.awaitParked(ctx, runs); err != nil {
		return nil, err
	}
	return float64(inUse()-before) / float64(runs), nil
}

// inUse returns the bytes of live objects and of goroutines' stacks.
func inUse() int64 {
	runtime.GC() // shrinks stacks and begins to sweep
	runtime.GC() // has swept what the first has found
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return int64(stats.HeapAlloc + stats.StackInuse)
}

// addOne is what a step does. It is counted before it is recorded, which on average over a span is the same.
func addOne(n int) int {
	observed.points.Add(1)
	return n + 1
}

// wantFive checks the output of a run of five steps.
func wantFive(got int, err error) error {
	if err == nil && got != stepsPerRun {
		err = fmt.Errorf("the run's output is %d, want %d", got, stepsPerRun)
	}
	return err
}

// poll waits until a condition of this process holds.
func poll(ctx context.Context, holds func() bool) error {
	ctx, cancel := context.WithTimeoutCause(ctx, time.Minute, errors.New("did not come about within a minute"))
	defer cancel()
	for !holds() {
		if err := pass(ctx, time.Millisecond); err != nil {
			return err
		}
	}
	return nil
}

// pass lets time pass.
func pass(ctx context.Context, span time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(span):
		return nil
	}
}

// withParameter adds a parameter to a URL.
func withParameter(text, name, value string) (string, error) {
	parsed, err := url.Parse(text)
	if err != nil {
		return "", err
	}
	query := parsed.Query()
	query.Set(name, value)
	parsed.RawQuery = query.Encode()
	return parsed.String(), nil
}
