package riverjobs

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/rivertables"
)

// Migrate brings the River tables in schemaName to the version of the River this build has, creating the schema if it
// does not exist. An application that has a River client of its own does not need it. Concurrent calls wait for one
// another, bounded by ctx; who is waited for is logged to slog.Default().
func Migrate(ctx context.Context, pool *pgxpool.Pool, schemaName string) error {
	if flaw := dial.Unusable(pool); flaw != "" {
		return fmt.Errorf("riverjobs: migrate: the pool %s: give the application's *pgxpool.Pool", flaw)
	}
	return refusal.Public(rivertables.Migrate(ctx, pool, schemaName, refusal.Logger(slog.Default())))
}

func checkMigrated(ctx context.Context, pool *pgxpool.Pool, schemaName string) error {
	if err := rivertables.Check(ctx, pool, schemaName); err != nil {
		return fmt.Errorf("riverjobs: %w", refusal.Public(err))
	}
	return nil
}
