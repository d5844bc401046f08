package schema

import (
	"context"
	"io/fs"
	"log/slog"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
)

// Build is a build of the library with migrations of its own.
type Build struct{ migrations []migration }

func NewBuild(directory fs.FS) (Build, error) {
	migrations, err := load(directory)
	return Build{migrations}, err
}

func (b Build) Version() int32 { return int32(len(b.migrations)) }

func (b Build) Migrate(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) error {
	return migrate(ctx, pool, Default, Options{Logger: logger}, b.migrations)
}

func (b Build) Check(ctx context.Context, pool *pgxpool.Pool) error {
	return check(ctx, pool, Default, b.Version())
}

func (b Build) Plan(ctx context.Context, pool *pgxpool.Pool) (int32, []migrator.Planned, error) {
	return plan(ctx, pool, Default, Options{}, b.migrations)
}

// Texts are the migrations of this build, as they are sent.
func Texts(schema string) (texts []string) {
	for _, m := range embedded() {
		texts = append(texts, m.sql(schema))
	}
	return texts
}

var Split = split

// Script sends statements in one message.
func Script(ctx context.Context, conn *pgx.Conn, sql string) error { return script(ctx, conn, sql) }
