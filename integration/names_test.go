package integration_test

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/internal/pgtest"
)

// applications begin the statements of the application in this world.
var applications = []string{"insert into shop."}

// pinnedRiver has the shop's sweeps be jobs of a River client as docs/security.md has applications make it: its statements leave
// out schemas, so its pool has a search_path of its own.
func (w *faultsWorld) pinnedRiver() (option romancy.Option, start, stop func(context.Context) error) {
	w.t.Helper()
	pool := pgtest.Connect(w.t, w.url, func(c *pgxpool.Config) {
		c.ConnConfig.RuntimeParams["search_path"], c.ConnConfig.RuntimeParams["application_name"] = "pg_catalog", "river"
	})
	workers := river.NewWorkers()
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Schema: romancy.DefaultSchema, Workers: workers, Queues: map[string]river.QueueConfig{"shop": {MaxWorkers: 1}}, Logger: slog.New(slog.DiscardHandler),
	})
	w.must(err)
	start = func(ctx context.Context) error { return client.Start(context.WithoutCancel(ctx)) }
	return romancy.WithRiver(client, workers), start, client.Stop
}

// Another role has made, in public, what looks like the functions, operators, types and relations that come with PostgreSQL and like
// our tables, and every session looks there first. Whatever is executed of ours, it calls none of that.
func TestNoStatementOfOursSpringsATrap(t *testing.T) {
	t.Parallel()
	url := pgtest.TrapsURL(t)
	w := newFaultsWorldOn(t, faultsPatience, url)
	w.trapped = true
	w.must(romancy.Migrate(w.ctx, w.pool(0, "migration")))
	w.open()
	w.must(w.drive())
	executed := w.executed()
	for _, row := range faultsStatements(t) {
		// Only after something has failed, or not in every world.
		seldom := faultsBefore[row.String()].Statement != "" || slices.Contains(faultsSeldom, row.Name)
		others := strings.HasPrefix(row.Name, "river.") || row.Name == "Visibility"
		if !seldom && !others && row.times(executed) == 0 {
			t.Errorf("%s was not executed", row)
		}
	}
	calls := pgtest.Sprung(t, url)
	if len(calls) == 0 {
		t.Error("not even the application's statements have called a trap: there is none")
	}
	for _, call := range calls {
		_, statement, _ := strings.Cut(call, " in ")
		if !slices.ContainsFunc(applications, func(begin string) bool { return strings.HasPrefix(statement, begin) }) {
			t.Error(call)
		}
	}
}
