package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
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
	bases []float64 // what writers that do not notify reached just before and after
	wakes []time.Duration
}

// kept is the share of the throughput that is left. The quarters of the rounds in which it was largest and smallest are
// left out; the rest is added up, so that rounds in which the machine did little else count for more.
func (r wayResult) kept() float64 {
	type pair struct{ rate, base float64 }
	var pairs []pair
	for i, base := range r.bases {
		if base > 0 {
			pairs = append(pairs, pair{r.rates[i], base})
		}
	}
	slices.SortFunc(pairs, func(a, b pair) int { return cmp.Compare(a.rate/a.base, b.rate/b.base) })
	cut := len(pairs) / 4
	var sum pair
	for _, p := range pairs[cut : len(pairs)-cut] {
		sum.rate += p.rate
		sum.base += p.base
	}
	return sum.rate / sum.base
}

const (
	// inEveryRound is the way that has a goal. The others take turns.
	inEveryRound = "coalesced"
	// turns is in how many rounds each of the others is measured once.
	turns = 3
	// leastRounds are made even where they take longer than planned.
	leastRounds = 2 * turns
)

// compareWays measures the ways between two measurements of the first, because a machine that others use changes its
// speed all the time.
func compareWays(ctx context.Context, b *bench, pool *pgxpool.Pool, ways []notifyWay, writers int) (results []wayResult, err error) {
	span, budget := 250*time.Millisecond, 45*time.Second
	if b.quick {
		span, budget = 100*time.Millisecond, 15*time.Second
	}
	listener, err := startListener(ctx, pool)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, listener.Close(context.WithoutCancel(ctx))) }()
	results = make([]wayResult, len(ways))
	measure := func(i int) (float64, error) {
		rate, wakes, err := writeFlatOut(ctx, pool, listener, ways[i], writers, span)
		if err != nil {
			return 0, fmt.Errorf("%s: %w", ways[i].what, err)
		}
		results[i].rates = append(results[i].rates, rate)
		results[i].wakes = append(results[i].wakes, wakes...)
		return rate, nil
	}
	began := time.Now()
	before, err := measure(0)
	if err != nil {
		return nil, err
	}
	for round := 0; round < leastRounds || time.Since(began) < budget; round++ {
		var measured []int
		for i := 1; i < len(ways); i++ {
			if ways[i].name != inEveryRound && (round+i)%turns != 0 {
				continue
			}
			if _, err = measure(i); err != nil {
				return nil, err
			}
			measured = append(measured, i)
		}
		after, err := measure(0)
		if err != nil {
			return nil, err
		}
		for _, i := range measured {
			results[i].bases = append(results[i].bases, (before+after)/2)
		}
		before = after
	}
	return results, nil
}

func reportWays(b *bench, name, what string, ways []notifyWay, results []wayResult) {
	b.report(name+"none_per_second", middle(results[0].rates), "commits/s", what+", no notification")
	for i, way := range ways[1:] {
		result := results[i+1]
		b.report(name+way.name+"_kept", result.kept(), "ratio", "  "+way.what+": share of the throughput kept")
		b.report(name+way.name+"_wake_p50", percentile(result.wakes, 0.50), "ms", "    commit to wake, p50")
	}
}
