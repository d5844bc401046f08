package workflow_test

import (
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// A run that begins at a moment begins at it also if whoever has started it cannot wait for that: because the transaction may not commit,
// or because it executes no runs.
func TestARunThatWasStartedElsewhereForLaterBeginsInTime(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	hourly := configured(func(c *workflow.Config) { c.FallbackInterval = time.Hour })
	executing := startWorker(t, pool, []workflow.Definition{steps}, hourly)
	client := startWorker(t, pool, []workflow.Definition{steps}, hourly, configured(func(c *workflow.Config) { c.ClientOnly = true }))
	ctx := testContext(t)
	inTransaction := func(w *worker, id string) error {
		return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
			_, err := steps.StartTx(ctx, tx, w.Engine, 1, workflow.WithID(id), workflow.WithDelay(200*time.Millisecond))
			return err
		})
	}
	for name, start := range map[string]func(id string) error{
		"in a transaction":              func(id string) error { return inTransaction(executing, id) },
		"in a transaction, by a client": func(id string) error { return inTransaction(client, id) },
		"by a client": func(id string) error {
			_, err := steps.Start(ctx, client.Engine, 1, workflow.WithID(id), workflow.WithDelay(200*time.Millisecond))
			return err
		},
	} {
		if err := start(name); err != nil {
			t.Fatal(err)
		}
		if _, err := steps.Run(executing.Engine, name).Result(ctx); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
}
