package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

const (
	// roundCommits is how many notifications a round of the latency measurement sends, one after the other.
	roundCommits = 25
	// roundWarmUp is how many come before them, unmeasured: plans, caches, the first catch-up.
	roundWarmUp = 5
	// apart is the time between two, in which everything goes to sleep.
	apart = 2 * time.Millisecond
)

// wayToHandler is how long notifications took, by round.
type wayToHandler struct {
	committed [][]time.Duration // since the commit returned
	called    [][]time.Duration // since it was called
}

// busLatency measures from a commit that notified to the handler's decoded payload, in rounds of which each has one of
// the ears listen.
func busLatency(ctx context.Context, b *bench, url string) error {
	rounds := 120
	if b.quick {
		rounds = 40
	}
	ears := []ear{bareEar, subscriberEar(0, 1), routerEar(0)}
	ways := make([]wayToHandler, len(ears))
	err := withPool(ctx, url, 10, nil, func(pool *pgxpool.Pool) error {
		if _, err := pool.Exec(ctx, "create table busy_rows (id bigint primary key)"); err != nil {
			return err
		}
		for round := range rounds {
			for turn := range ears {
				i := (round + turn) % len(ears)
				committed, called, err := latencyRound(ctx, pool, ears[i])
				if err != nil {
					return err
				}
				ways[i].committed = append(ways[i].committed, committed)
				ways[i].called = append(ways[i].called, called)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	reportWay(b, "bus_bare", "bare WaitForNotification loop", ways[0], ways[0])
	reportWay(b, "bus_latency", "bus.Subscriber", ways[1], ways[0])
	reportWay(b, "bus_router", "Watermill router on bus.Subscriber", ways[2], ways[0])
	return nil
}

func reportWay(b *bench, name, what string, way, bare wayToHandler) {
	for _, from := range []struct {
		name, what  string
		times, bare [][]time.Duration
	}{
		{"", "commit returned to handler, " + what, way.committed, bare.committed},
		{"_call", "  commit called to handler", way.called, bare.called},
	} {
		for _, p := range []struct {
			name  string
			share float64
			block int // rounds that are compared at a time
		}{{"_p50", 0.50, 1}, {"_p99", 0.99, 4}} {
			b.report(name+from.name+p.name, percentile(slices.Concat(from.times...), p.share), "ms", from.what+", "+p.name[1:])
			if name != "bus_bare" {
				b.report(name+from.name+p.name+"_ratio_bare", ratioOf(from.times, from.bare, p.share, p.block), "x", "    against bare")
			}
		}
	}
}

// ratioOf compares a few rounds at a time, in which the machine was about as busy for the one as for the other, and
// returns the middle of what that gives: the outliers of a shared machine would decide what all of them give together.
func ratioOf(times, bare [][]time.Duration, share float64, block int) float64 {
	var ratios []float64
	for from := 0; from+block <= len(times); from += block {
		if base := percentile(slices.Concat(bare[from:from+block]...), share); base > 0 {
			ratios = append(ratios, percentile(slices.Concat(times[from:from+block]...), share)/base)
		}
	}
	return middle(ratios)
}

// latencyRound opens the ear, and commits and waits until it is heard, again and again.
func latencyRound(ctx context.Context, pool *pgxpool.Pool, open ear) (sinceReturned, sinceCalled []time.Duration, err error) {
	channel := bus.ChannelsFor("romancy").WorkflowResumable
	arrived := make(chan time.Time, 1)
	stop, err := open(ctx, pool, channel, func(bus.WorkflowResumable) { arrived <- time.Now() })
	if err != nil {
		return nil, nil, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	conn, err := pool.Acquire(ctx)
	if err != nil {
		return nil, nil, err
	}
	defer conn.Release()
	for i := range roundWarmUp + roundCommits {
		if err := rest(ctx, apart); err != nil {
			return nil, nil, err
		}
		called, err := notifyingCommit(ctx, conn, channel)
		if err != nil {
			return nil, nil, err
		}
		committed := time.Now()
		select {
		case at := <-arrived:
			if i >= roundWarmUp {
				sinceReturned = append(sinceReturned, max(at.Sub(committed), 0))
				sinceCalled = append(sinceCalled, at.Sub(called))
			}
		case <-time.After(10 * time.Second):
			return nil, nil, fmt.Errorf("notification %d of a round did not arrive within 10 s", i)
		}
	}
	return sinceReturned, sinceCalled, nil
}

// notifyingCommit returns when the commit was called.
func notifyingCommit(ctx context.Context, conn *pgxpool.Conn, channel string) (called time.Time, err error) {
	err = pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, "insert into busy_rows select coalesce(max(id), 0) + 1 from busy_rows"); err != nil {
			return err
		}
		payload := bus.Encode(bus.WorkflowResumable{InstanceID: "0198c0de-5f5c-7000-8000-000000000001", WorkflowName: "order"})
		_, err := tx.Exec(ctx, "select pg_notify($1, $2)", channel, payload)
		called = time.Now()
		return err
	})
	return called, err
}
