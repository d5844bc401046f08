package romancy

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/riverjobs"
)

// SchemaVersionError says that the database's schema is not at the version this build works with, and what to do.
type SchemaVersionError = schema.VersionError

type migration struct{ schema string }

// Migrate brings the library's schema, "romancy" or as WithSchema says, to the version of this build, creating it if it
// does not exist, together with the tables that an App's own River client needs. Run it when deploying, before the first
// process of the new build starts; it is harmless when there is nothing to do. Concurrent calls wait for one another.
//
// It returns a *SchemaVersionError, having changed nothing, if the schema is newer than this build. If it fails half-way,
// run it again: what is done stays done, and Start refuses a half-migrated schema.
func Migrate(ctx context.Context, pool *pgxpool.Pool, opts ...MigrateOption) error {
	m := migration{schema: DefaultSchema}
	for _, opt := range opts {
		opt.applyMigrate(&m)
	}
	if err := schema.Migrate(ctx, pool, m.schema); err != nil {
		return err
	}
	return riverjobs.Migrate(ctx, pool, m.schema)
}
