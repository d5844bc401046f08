package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

// busRate measures how fast a burst of notifications goes through a handler that decodes them.
func busRate(ctx context.Context, b *bench, url string) error {
	rounds, burst := 7, 50_000
	if b.quick {
		rounds, burst = 3, 20_000
	}
	ears := []struct {
		open       ear
		name, what string
	}{
		{bareEar, "bus_bare_per_second", "bare loop"},
		{subscriberEar(burst, 1), "bus_handled_per_second", "bus.Subscriber, 1 in flight"},
		{subscriberEar(burst, 100), "bus_handled_100_per_second", "bus.Subscriber, 100 in flight"},
		{routerEar(burst), "bus_router_per_second", "Watermill router on bus.Subscriber"},
	}
	rates := make([][]float64, len(ears))
	err := withPool(ctx, url, 10, nil, func(pool *pgxpool.Pool) error {
		for round := range rounds {
			for turn := range ears {
				i := (round + turn) % len(ears)
				rate, err := rateRound(ctx, pool, ears[i].open, burst)
				if err != nil {
					return fmt.Errorf("%s: %w", ears[i].what, err)
				}
				rates[i] = append(rates[i], rate)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for i, e := range ears {
		b.report(e.name, middle(rates[i]), "1/s", "notifications handled, "+e.what)
	}
	return nil
}

// rateRound notifies burst times in one transaction, and measures from the first to the last that is heard.
func rateRound(ctx context.Context, pool *pgxpool.Pool, open ear, burst int) (perSecond float64, err error) {
	channel := bus.ChannelsFor("romancy").WorkflowResumable
	begun := time.Now()
	var count, first, last atomic.Int64 // the times since begun
	done := make(chan struct{})
	stop, err := open(ctx, pool, channel, func(bus.WorkflowResumable) {
		switch count.Add(1) {
		case 1:
			first.Store(int64(time.Since(begun)))
		case int64(burst):
			last.Store(int64(time.Since(begun)))
			close(done)
		}
	})
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, stop()) }()
	if _, err := pool.Exec(ctx, `select count(pg_notify($1, '{"instance_id":"0198c0de-5f5c-7000-8000-' || i || '","workflow_name":"order"}'))
		from generate_series(1, $2::int) as i`, channel, burst); err != nil {
		return 0, err
	}
	select {
	case <-done:
		return float64(burst-1) / time.Duration(last.Load()-first.Load()).Seconds(), nil
	case <-time.After(time.Minute):
		return 0, fmt.Errorf("only %d of %d notifications arrived within a minute", count.Load(), burst)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}
