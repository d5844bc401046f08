package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

// writersChannel is what the writers notify.
const writersChannel = "bench_writers"

// A notifyWay is how a commit tells of itself. Either function may be missing.
type notifyWay struct {
	name, what string
	inside     func(ctx context.Context, tx pgx.Tx, xid, payload string) error // within the transaction
	after      func(payload string)                                            // after its commit
}

// busNotifyModes measures what each way to notify leaves of the throughput of writers that do not, on the disk as it is
// and on one that needs a millisecond more for each flush.
func busNotifyModes(ctx context.Context, b *bench, url string) error {
	for _, disk := range []struct {
		name, what string
		parameters map[string]string
	}{
		{"", "", nil},
		{"slow_disk_", ", 1 ms slower disk", map[string]string{"commit_delay": "1000", "commit_siblings": "0"}},
	} {
		err := withPool(ctx, url, 80, disk.parameters, func(pool *pgxpool.Pool) error {
			return withWays(ctx, pool, func(ways []notifyWay) error {
				for _, writers := range []int{1, 4, 16, 64} {
					results, err := compareWays(ctx, b, pool, ways, writers)
					if err != nil {
						return fmt.Errorf("%d writers%s: %w", writers, disk.what, err)
					}
					reportWays(b, fmt.Sprintf("bus_notify_%d_%s", writers, disk.name), fmt.Sprintf("%d writers%s", writers, disk.what), ways, results)
				}
				return nil
			})
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// withWays runs f with a way to notify for each mode, each with a notifier of its own.
func withWays(ctx context.Context, pool *pgxpool.Pool, f func(ways []notifyWay) error) (err error) {
	ways := []notifyWay{{name: "none", what: "no notification"}}
	for _, mode := range []struct {
		mode       bus.NotifyMode
		name, what string
	}{
		{bus.ModeInTransaction, "in_tx", "in the transaction"},
		{bus.ModeCoalesced, "coalesced", "coalesced"},
		{bus.ModeAdaptive, "adaptive", "adaptive"},
		{bus.ModeAdaptive, "after_commit", "told after the commit"},
	} {
		notifier, err := bus.NewNotifier(bus.NotifierConfig{Pool: pool, Mode: mode.mode, Logger: quiet()})
		if err != nil {
			return err
		}
		if err := notifier.Start(ctx); err != nil {
			return err
		}
		defer func() { err = errors.Join(err, notifier.Close(context.WithoutCancel(ctx))) }()
		way := notifyWay{name: mode.name, what: mode.what}
		if mode.name == "after_commit" {
			way.after = func(payload string) { notifier.Notify(writersChannel, payload) }
		} else {
			way.inside = func(ctx context.Context, tx pgx.Tx, xid, payload string) error {
				return notifier.NotifyTxID(ctx, tx, xid, []bus.Message{{Channel: writersChannel, Payload: payload}})
			}
		}
		ways = append(ways, way)
	}
	return f(ways)
}

// wayResult is what the rounds of one way gave.
type wayResult struct {
	rates []float64 // commits a second
	kept  []float64 // share of the first way's rate in the same round
	wakes []time.Duration
}

// compareWays measures the ways in turns, because a machine that others use changes its speed all the time.
func compareWays(ctx context.Context, b *bench, pool *pgxpool.Pool, ways []notifyWay, writers int) ([]wayResult, error) {
	rounds, span := 25, 250*time.Millisecond
	if b.quick {
		rounds, span = 11, 100*time.Millisecond
	}
	results := make([]wayResult, len(ways))
	for round := range rounds {
		rates := make([]float64, len(ways))
		for turn := range ways {
			i := (round + turn) % len(ways)
			rate, wakes, err := writeFlatOut(ctx, pool, ways[i], writers, span)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", ways[i].what, err)
			}
			rates[i] = rate
			results[i].wakes = append(results[i].wakes, wakes...)
		}
		for i, rate := range rates {
			results[i].rates = append(results[i].rates, rate)
			results[i].kept = append(results[i].kept, rate/rates[0])
		}
	}
	return results, nil
}

func reportWays(b *bench, name, what string, ways []notifyWay, results []wayResult) {
	b.report(name+"none_per_second", middle(results[0].rates), "commits/s", what+", no notification")
	for i, way := range ways[1:] {
		result := results[i+1]
		b.report(name+way.name+"_kept", middle(result.kept), "ratio", "  "+way.what+": share of the throughput kept")
		b.report(name+way.name+"_wake_p50", percentile(result.wakes, 0.50), "ms", "    commit to wake, p50")
	}
}
