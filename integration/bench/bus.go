package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// busParts are what -parts can name, in the order they are measured.
var busParts = []struct {
	name string
	run  func(ctx context.Context, b *bench, url string) error
}{{"latency", busLatency}, {"rate", busRate}, {"modes", busNotifyModes}, {"woken", busWoken}}

func busPartNames() []string {
	var names []string
	for _, part := range busParts {
		names = append(names, part.name)
	}
	return names
}

// runBus measures the bus against the bare connection under it, and the ways to notify against not notifying.
func runBus(ctx context.Context, b *bench) (err error) {
	url, drop, err := b.server.CreateDatabase(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, drop(context.WithoutCancel(ctx))) }()
	for _, part := range busParts {
		if len(b.parts) > 0 && !slices.Contains(b.parts, part.name) {
			continue
		}
		if err := part.run(ctx, b, url); err != nil {
			return fmt.Errorf("%s: %w", part.name, err)
		}
	}
	return nil
}

// withPool runs f with a pool of up to conns connections, each with the parameters set.
func withPool(ctx context.Context, url string, conns int, parameters map[string]string, f func(pool *pgxpool.Pool) error) error {
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		return err
	}
	config.MaxConns = int32(conns)
	maps.Copy(config.ConnConfig.RuntimeParams, parameters)
	pool, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return err
	}
	defer pool.Close()
	return f(pool)
}

// quiet keeps the library's log lines out of the table.
func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// middle is the median: of figures from rounds that a shared machine disturbs now and then, the one to report.
func middle(figures []float64) float64 {
	if len(figures) == 0 {
		return 0
	}
	sorted := slices.Sorted(slices.Values(figures))
	return sorted[len(sorted)/2]
}

// rest waits for d, or until ctx ends, whose error it returns.
func rest(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}
