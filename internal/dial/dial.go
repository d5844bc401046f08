// Package dial makes connections of our own beside a pool, from the pool's configuration.
package dial

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// connectTimeout bounds the attempt to reach one host: pgx's own default of two minutes would keep a host that
	// answers nothing from ever being given up for the next one.
	connectTimeout = 10 * time.Second
	// closeTimeout bounds the goodbye to a server that may be gone.
	closeTimeout = time.Second
	// maxApplicationName is where PostgreSQL cuts.
	maxApplicationName = 63
)

// Beside connects with pool's configuration, without taking one of its connections; BeforeConnect and AfterConnect are
// honoured. application_name gets the suffix, so that pg_stat_activity tells our connections from the host's. prepare, if
// given, has the last word on the configuration.
func Beside(ctx context.Context, pool *pgxpool.Pool, suffix string, prepare func(*pgx.ConnConfig)) (*pgx.Conn, error) {
	poolConfig := pool.Config()
	cfg := poolConfig.ConnConfig
	if poolConfig.BeforeConnect != nil {
		if err := poolConfig.BeforeConnect(ctx, cfg); err != nil {
			return nil, fmt.Errorf("BeforeConnect of the pool: %w", err)
		}
	}
	conn, err := open(ctx, cfg, suffix, prepare)
	if err != nil {
		return nil, err
	}
	if poolConfig.AfterConnect != nil {
		if err := poolConfig.AfterConnect(ctx, conn); err != nil {
			HangUp(conn)
			return nil, fmt.Errorf("AfterConnect of the pool: %w", err)
		}
	}
	return conn, nil
}

// With connects with a configuration made by pgx.ParseConfig, which stays as it is. Suffix and prepare are as for Beside.
func With(ctx context.Context, cfg *pgx.ConnConfig, suffix string, prepare func(*pgx.ConnConfig)) (*pgx.Conn, error) {
	return open(ctx, cfg.Copy(), suffix, prepare)
}

// open connects with cfg, which it changes.
func open(ctx context.Context, cfg *pgx.ConnConfig, suffix string, prepare func(*pgx.ConnConfig)) (*pgx.Conn, error) {
	if cfg.RuntimeParams == nil {
		cfg.RuntimeParams = map[string]string{}
	}
	name := cmp.Or(cfg.RuntimeParams["application_name"], "romancy")
	cfg.RuntimeParams["application_name"] = name[:min(len(name), maxApplicationName-len(suffix))] + suffix
	if cfg.ConnectTimeout <= 0 || cfg.ConnectTimeout > connectTimeout {
		cfg.ConnectTimeout = connectTimeout
	}
	if prepare != nil {
		prepare(cfg)
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.ConnectTimeout*time.Duration(1+len(cfg.Fallbacks)))
	defer cancel()
	return refusal.Answer(pgx.ConnectConfig(ctx, cfg))
}

// HangUp closes conn, whose server may be gone, and waits for pgx to have cleaned up, both within bounds.
func HangUp(conn *pgx.Conn) {
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
	defer cancel()
	_ = conn.Close(ctx) // nothing can be done about a goodbye that was not heard
	select {
	case <-conn.PgConn().CleanupDone():
	case <-ctx.Done():
	}
}
