package romancy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/secret"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/riverjobs"
	"github.com/romancy-go/romancy/workflow"
)

// reachTimeout is how long Start waits for the database.
const reachTimeout = 10 * time.Second

// build makes every part, none of which does anything yet, and returns all mistakes: those of the options, and those that
// only the parts can find.
func (a *App) build() (*parts, error) {
	pool, err := a.makePool()
	if err != nil {
		return nil, errors.Join(a.mistake, err)
	}
	o := &a.options
	r := &parts{pool: pool, jobs: a.guests}
	errs := []error{a.mistake}

	if o.ownsListener() {
		r.listener, err = bus.NewListener(bus.ListenerConfig{
			Pool: pool, ListenURL: o.listenURL(), Disabled: !o.listens(), ReconnectDelay: o.reconnectDelay,
			FallbackInterval: o.fallbackInterval, Logger: o.logger, MeterProvider: o.meter,
		})
		errs = append(errs, err)
	} else {
		r.listener = o.listeners[0]
	}
	r.notifier, err = bus.NewNotifier(bus.NotifierConfig{Pool: pool, Disabled: !o.listens(), Logger: o.logger, MeterProvider: o.meter})
	errs = append(errs, err)
	r.engine, err = workflow.NewEngine(o.engineConfig(r))
	errs = append(errs, err)
	r.writer, err = outbox.NewWriter(outbox.WriterConfig{Schema: o.schema, Channels: o.channels, Notifier: r.notifier})
	errs = append(errs, err)
	if o.publisher != nil {
		r.relay, err = outbox.NewRelay(outbox.RelayConfig{
			Pool: pool, Schema: o.schema, Channels: o.channels, Publisher: o.publisher, Listener: r.listener,
			FallbackInterval: o.fallbackInterval, Logger: o.logger, HideErrorTexts: o.hideErrors,
		})
		errs = append(errs, err)
	}
	if o.sweeps() && !o.riverGiven {
		config := a.riverConfig()
		config.Pool = pool
		r.jobs, err = riverjobs.New(config)
		errs = append(errs, err)
	}
	r.snapshots, err = a.newSnapshotWatch(pool)
	errs = append(errs, err)
	if err := errors.Join(errs...); err != nil {
		a.closeOwn(pool)
		return nil, fmt.Errorf("romancy: %w", err)
	}
	return r, nil
}

// engineConfig is what the engine needs of the options and of the parts made before it.
func (o *options) engineConfig(r *parts) workflow.Config {
	return workflow.Config{
		Pool: r.pool, Schema: o.schema, Channels: o.channels, Listener: r.listener, Notifier: r.notifier,
		Workflows: o.workflows, ClientOnly: o.client, Lease: o.lease, FallbackInterval: o.fallbackInterval, Logger: o.logger,
		MeterProvider: o.meter, TracerProvider: o.tracer, HideErrorTexts: o.hideErrors,
		MaxWorkflowsPerBatch: o.maxWorkflows, MaxTimersPerBatch: o.maxTimers, MaxMessagesPerBatch: o.maxMessages,
		MaxConcurrentRuns: o.maxRuns, MaxConcurrentActivities: o.maxActivities, MaxDeaths: o.maxDeaths, MaxInterruptions: o.maxInterruptions,
		Retention: o.retention, EventRetention: o.eventRetention, SendKeyRetention: o.sendKeyRetention,
	}
}

// makePool returns the application's pool, or one of our own. It connects to nothing. If the options name no usable
// database, it returns a pool that can never be used, so that the parts can still say what is wrong with them.
func (a *App) makePool() (*pgxpool.Pool, error) {
	if len(a.options.pools) > 0 && a.options.pools[0] != nil {
		return a.options.pools[0], nil
	}
	url := ""
	if len(a.options.urls) > 0 {
		url = a.options.urls[0].Reveal()
	}
	config, err := secret.Parse(url)
	if err != nil && a.mistake != nil {
		config, err = pgxpool.ParseConfig("host=localhost port=5432")
	}
	if err != nil {
		return nil, fmt.Errorf("romancy: the PostgreSQL settings of the environment: %w", err)
	}
	if config.ConnConfig.RuntimeParams["application_name"] == "" {
		config.ConnConfig.RuntimeParams["application_name"] = "romancy"
	}
	if a.mistake != nil {
		config.MinConns, config.MinIdleConns = 0, 0
	}
	pool, err := pgxpool.NewWithConfig(context.Background(), config)
	if err != nil {
		return nil, fmt.Errorf("romancy: make the pool: %w", err)
	}
	return pool, nil
}

func (a *App) ownsPool() bool { return len(a.options.pools) == 0 }

func (a *App) closeOwn(pool *pgxpool.Pool) {
	if a.ownsPool() || a.options.pools[0] == nil {
		pool.Close()
	}
}

// inOrder lists what to start. It is stopped in reverse.
func (a *App) inOrder(r *parts) []part {
	nothing := func(context.Context) error { return nil }
	var order []part
	if a.options.ownsListener() {
		order = append(order, part{"the listener", r.listener.Start, r.listener.Close})
	}
	order = append(order,
		part{"the notifier", r.notifier.Start, r.notifier.Close},
		part{"the engine", r.engine.Start, r.engine.Shutdown})
	if r.relay != nil {
		order = append(order, part{"the outbox relay", r.relay.Start, r.relay.Shutdown})
	}
	order = append(order, part{"the watch on old snapshots", r.snapshots.start, r.snapshots.stop})
	// From here on the accessors give the parts, and the sweeps find them.
	order = append(order, part{"serving", func(context.Context) error { a.running.Store(r); return nil }, nothing})
	if r.jobs != nil {
		order = append(order, part{"the River jobs", r.jobs.Start, r.jobs.Stop})
	}
	if r.jobs != nil && a.options.executes() {
		announced := &announced{listener: r.listener, channel: a.options.channels.TimerExpired, jobs: r.jobs, logger: a.options.logger}
		order = append(order, part{"the announced deadlines", announced.start, announced.stop})
	}
	return order
}

func (a *App) closePool(ctx context.Context, pool *pgxpool.Pool) error {
	if !a.ownsPool() {
		return nil
	}
	closed := make(chan struct{})
	go func() { pool.Close(); close(closed) }() // waits until the application has given back every connection
	select {
	case <-closed:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%d connections are still in use: %w", pool.Stat().AcquiredConns(), context.Cause(ctx))
	}
}

func reach(ctx context.Context, pool *pgxpool.Pool) error {
	callers := ctx
	ctx, cancel := context.WithTimeoutCause(ctx, reachTimeout, fmt.Errorf("no answer within %s", reachTimeout))
	defer cancel()
	err := pool.Ping(ctx)
	if err == nil {
		return nil
	}
	if callers.Err() != nil {
		return fmt.Errorf("the context of Start has ended before the database has answered: %w: give it more time", context.Cause(callers))
	}
	if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
		err = fmt.Errorf("%w: %w", cause, err)
	}
	config := pool.Config().ConnConfig
	address := net.JoinHostPort(config.Host, strconv.Itoa(int(config.Port)))
	return fmt.Errorf("database %q at %s cannot be reached: %w: check that PostgreSQL runs there and lets user %q in, and the address in WithDatabase or of the pool in WithPool",
		config.Database, address, err, config.User)
}

func (a *App) checkSchema(ctx context.Context, pool *pgxpool.Pool) error {
	if a.options.migrate {
		// As guests in the application's River we need no tables of River's own.
		ownRiver := a.options.sweeps() && !a.options.riverGiven
		return migration{schema: a.options.schema, logger: refusal.Logger(a.options.logger), nonEmpty: a.options.nonEmpty}.run(ctx, pool, ownRiver)
	}
	err := schema.Check(ctx, pool, a.options.schema)
	if version := (*SchemaVersionError)(nil); errors.As(err, &version) && version.Found < version.Want {
		return fmt.Errorf("%w, or start with romancy.WithAutoMigrate()", err)
	}
	return err
}

// riverConfig is that of the sweeps, but for the pool, which guests find when the App runs. The sweeps run between the
// start and the stop of the jobs only, when there are parts.
func (a *App) riverConfig() riverjobs.Config {
	o := &a.options
	config := riverjobs.Config{
		Schema: o.schema, FallbackInterval: o.fallbackInterval, Client: o.river, Workers: o.workers,
		PollOnly: !o.listens(), Logger: o.logger,
		Healthy: func() bool { return a.Listener().Healthy() },
		Clock: func(ctx context.Context) (now time.Time, err error) {
			err = a.running.Load().pool.QueryRow(ctx, "-- name: DatabaseClock\nselect pg_catalog.clock_timestamp()").Scan(&now)
			return now, refusal.Public(err)
		},
	}
	if o.executes() {
		config.Sweeps = append(config.Sweeps,
			riverjobs.Sweep{Kind: riverjobs.KindResume, Run: func(ctx context.Context) (int, error) { return a.Engine().SweepResume(ctx) }},
			riverjobs.Sweep{
				Kind:    riverjobs.KindTimers,
				Run:     func(ctx context.Context) (int, error) { return a.Engine().SweepTimers(ctx) },
				NextDue: func(ctx context.Context) (time.Time, bool, error) { return a.Engine().NextDeadline(ctx) },
			},
			riverjobs.Sweep{Kind: riverjobs.KindChannelTimeouts, Run: func(ctx context.Context) (int, error) { return a.Engine().SweepChannelTimeouts(ctx) }},
		)
	}
	if o.relays() {
		config.Sweeps = append(config.Sweeps,
			riverjobs.Sweep{Kind: riverjobs.KindOutbox, Run: func(ctx context.Context) (int, error) { return a.running.Load().relay.Sweep(ctx) }})
	}
	if o.sweeps() {
		config.Sweeps = append(config.Sweeps, riverjobs.Sweep{Kind: riverjobs.KindRetention, Run: a.retain})
	}
	return config
}

// retain deletes what is kept for a limited time only.
func (a *App) retain(ctx context.Context) (int, error) {
	r := a.running.Load()
	deleted, err := r.engine.SweepRetention(ctx)
	if r.relay == nil {
		return deleted, err
	}
	dead, relayErr := r.relay.Retain(ctx)
	return deleted + dead, errors.Join(err, relayErr)
}
