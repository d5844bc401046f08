package romancy

import (
	"context"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/schema"
)

// GrantError says which privileges the role that an App connects as lacks for what the App is to do, all of them, and the
// statements that grant them.
type GrantError = schema.GrantError

// checkGrants returns a *GrantError if the role lacks a privilege that would be missed later, in the middle of the work. What
// the writer of the outbox needs is not asked for: whether it will be used is unknown, and it says so itself.
func (a *App) checkGrants(ctx context.Context, pool *pgxpool.Pool) error {
	return schema.CheckGrants(ctx, pool, a.options.schema, a.options.needs()...)
}

// needs lists what the App is to do with its tables.
func (o *options) needs() (needs []schema.Need) {
	switch {
	case o.executes():
		needs = append(needs, schema.Execute)
	case o.client || !o.relays(): // a process that only relays needs nothing of runs
		needs = append(needs, schema.Client)
	}
	if o.relays() {
		needs = append(needs, schema.Relay)
	}
	if o.sweeps() && !o.riverGiven {
		needs = append(needs, schema.River)
	}
	return needs
}
