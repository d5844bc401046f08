package riverjobs

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// DefaultFallbackInterval is the time between two sweeps of a kind while the listener is healthy.
const DefaultFallbackInterval = 30 * time.Second

// maxWorkers is the number of sweeps one process runs at a time: one of each kind.
const maxWorkers = 5

// Config says what to sweep, how often, and in which River client. Intervals are at most 8760 h (a year).
type Config struct {
	// Pool is the pool an own client works on, and where the database's clock is read if a sweep has a NextDue. Required
	// for an own client, or if a sweep has a NextDue and Clock is nil. The pool is never closed.
	Pool *pgxpool.Pool

	// Clock returns the database's time. Default: asks Pool.
	Clock func(ctx context.Context) (time.Time, error)

	// Schema is the schema of this installation. An own client has its River tables there; as a guest it only marks the
	// jobs, so that two installations can share a River. Default: "romancy".
	Schema string

	// Sweeps are what to run. At least one; each kind at most once. In a cluster of unlike processes each has the sweeps
	// it can run: a job of another kind is left, or handed back, to the others.
	Sweeps []Sweep

	// Healthy reports whether notifications are arriving. It is called at every tick under a lock of River's, so it must
	// not block. Default: never healthy, which means polling.
	Healthy func() bool

	// FallbackInterval is the default of every sweep's HealthyInterval. Default: 30 s.
	FallbackInterval time.Duration

	// Client and Workers make us a guest in the application's own River client: give both or neither. Workers is the
	// bundle the client was made with, and the client must not be started before New has added to it; New adds nothing
	// else. Start adds a queue and periodic jobs, before or after the client's own start; Stop takes them out again. The
	// client is never started nor stopped here.
	Client  *river.Client[pgx.Tx]
	Workers *river.Workers

	// PollOnly makes an own client work without LISTEN: for a pooler that does not pass notifications on. It then takes
	// one pool connection less, and learns of a job within half a second and of a lost leader within five.
	PollOnly bool

	// Logger is where sweeps report. Default: slog.Default().
	Logger *slog.Logger
}

func (c Config) withDefaults() Config {
	c.Schema = cmp.Or(c.Schema, schema.Default)
	c.FallbackInterval = cmp.Or(c.FallbackInterval, DefaultFallbackInterval)
	c.Logger = refusal.Logger(cmp.Or(c.Logger, slog.Default()))
	if c.Healthy == nil {
		c.Healthy = func() bool { return false }
	}
	if c.Clock == nil && dial.Unusable(c.Pool) == "" {
		c.Clock = poolClock(c.Pool)
	}
	c.Sweeps = slices.Clone(c.Sweeps)
	for i := range c.Sweeps {
		sweep := &c.Sweeps[i]
		kind, _ := kindByName(sweep.Kind)
		sweep.Interval = cmp.Or(sweep.Interval, kind.interval)
		healthy := c.FallbackInterval
		if sweep.Kind == KindRetention {
			healthy = sweep.Interval
		}
		sweep.HealthyInterval = cmp.Or(sweep.HealthyInterval, healthy)
	}
	return c
}

func (c Config) validate() error {
	var errs []error
	mistake := func(format string, args ...any) { errs = append(errs, fmt.Errorf("riverjobs: "+format, args...)) }
	interval := func(field string, d time.Duration) {
		if err := bounds.Number(field, d, 1, bounds.Longest, ", or 0 for the default"); err != nil {
			mistake("%w", err)
		}
	}

	switch {
	case c.Client == nil && c.Workers == nil:
		if c.Pool == nil {
			mistake("Pool is nil: give the pool for an own River client, or Client and Workers to be a guest in yours")
		}
	case c.Client == nil:
		mistake("Workers is set but Client is nil: give the river.Client that was made with these Workers, or neither")
	case c.Workers == nil:
		mistake("Client is set but Workers is nil: give the river.Workers that this client was made with, or neither")
	case c.Client.Stopped() != nil:
		mistake("Client is already started: River takes no workers after its start, so come before client.Start")
	}
	if flaw := dial.Unusable(c.Pool); c.Pool != nil && flaw != "" {
		mistake("Pool %s: give the application's *pgxpool.Pool", flaw)
	}
	if err := sqlfile.CheckSchema(c.Schema); err != nil {
		mistake("Schema: %w", err)
	}
	interval("FallbackInterval", c.FallbackInterval)
	if len(c.Sweeps) == 0 {
		mistake("Sweeps is empty: give at least one sweep to run")
	}
	seen := map[string]bool{}
	for i, sweep := range c.Sweeps {
		if _, ok := kindByName(sweep.Kind); !ok {
			mistake("Sweeps[%d].Kind is %.40q: use one of %s", i, sweep.Kind, strings.Join(kindNames(), ", "))
		} else if seen[sweep.Kind] {
			mistake("Sweeps[%d].Kind is %q again: give each kind once", i, sweep.Kind)
		}
		seen[sweep.Kind] = true
		if sweep.Run == nil {
			mistake("Sweeps[%d].Run is nil (%s): give the function that sweeps", i, sweep.Kind)
		}
		if sweep.Interval != 0 { // the default of a kind that there is not
			interval(fmt.Sprintf("Sweeps[%d].Interval (%s)", i, sweep.Kind), sweep.Interval)
		}
		if sweep.HealthyInterval != c.FallbackInterval && sweep.HealthyInterval != sweep.Interval { // else it is the other's mistake
			interval(fmt.Sprintf("Sweeps[%d].HealthyInterval (%s)", i, sweep.Kind), sweep.HealthyInterval)
		}
		if sweep.NextDue != nil && c.Clock == nil && c.Client != nil {
			mistake("Sweeps[%d] (%s) has a NextDue but there is neither Pool nor Clock: give one, because announced deadlines are on the database's clock", i, sweep.Kind)
		}
	}
	return errors.Join(errs...)
}

func poolClock(pool *pgxpool.Pool) func(ctx context.Context) (time.Time, error) {
	return func(ctx context.Context) (now time.Time, err error) {
		err = pool.QueryRow(ctx, "-- name: DatabaseClock\nselect pg_catalog.clock_timestamp()").Scan(&now)
		return now, refusal.Public(err)
	}
}
