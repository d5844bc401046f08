package romancy

import (
	"context"
	"fmt"
	"log/slog"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/rivertables"
	"github.com/romancy-go/romancy/internal/schema"
)

// SchemaVersionError says that the database's schema is not one that this build works with, and what to do.
type SchemaVersionError = schema.VersionError

// MigrateOption configures Migrate, PlanMigration and MigrationSQL.
type MigrateOption interface{ applyMigrate(m *migration) }

type migration struct {
	schema   string
	logger   *slog.Logger
	nonEmpty bool
}

func (m migration) options() schema.Options {
	return schema.Options{Logger: m.logger, NonEmpty: m.nonEmpty}
}

func newMigration(opts []MigrateOption) migration {
	m := migration{schema: DefaultSchema, logger: slog.Default()}
	for _, opt := range opts {
		if opt != nil {
			opt.applyMigrate(&m)
		}
	}
	if m.logger == nil {
		m.logger = slog.Default()
	}
	m.logger = refusal.Logger(m.logger)
	return m
}

// Migrate brings the library's schema, "romancy" or as WithSchema says, to the version of this build, creating it if it
// does not exist, together with the tables that an App's own River client needs. Run it when deploying, before the first
// process of the new build starts; it is harmless when there is nothing to do. It works through poolers.
//
// Concurrent calls wait for one another, bounded by ctx. Waiting for more than a second is logged, to slog.Default() or as
// WithLogger says, with who is waited for. A table that others keep locked is waited for in short attempts, so that the
// application's statements do not queue up behind the migration. Timeouts that are set for the role or the database do not apply.
//
// A schema that belongs to a role of which the migrating one is no member is an error, whether there is something to do or not:
// who owns it may replace what is in it. So is one that exists and is not empty before the first migration, see
// WithNonEmptySchema.
//
// A schema that is newer than this build is left alone. It is an error, a *SchemaVersionError, unless the schema says that
// this build can live with it.
//
// If Migrate fails half-way, run it again: what is done stays done, and Start refuses a half-migrated schema.
func Migrate(ctx context.Context, pool *pgxpool.Pool, opts ...MigrateOption) error {
	if err := checkPool("Migrate", pool); err != nil {
		return err
	}
	return refusal.Public(newMigration(opts).run(ctx, pool, true))
}

func checkPool(function string, pool *pgxpool.Pool) error {
	if flaw := dial.Unusable(pool); flaw != "" {
		return fmt.Errorf("romancy: the pool of %s %s: give the application's *pgxpool.Pool", function, flaw)
	}
	return nil
}

func (m migration) run(ctx context.Context, pool *pgxpool.Pool, river bool) error {
	if err := schema.MigrateWith(ctx, pool, m.schema, m.options()); err != nil {
		return err
	}
	if !river {
		return nil
	}
	return rivertables.Migrate(ctx, pool, m.schema, m.logger)
}
