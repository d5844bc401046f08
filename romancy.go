package romancy

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/riverjobs"
	"github.com/romancy-go/romancy/workflow"
)

var (
	// ErrNotStarted is returned by what needs a running App.
	ErrNotStarted = errors.New("romancy: the App is not started: call Start first")
	// ErrAlreadyStarted is returned by the second Start.
	ErrAlreadyStarted = errors.New("romancy: the App is already started")
	// ErrShutDown is returned by Start after Shutdown.
	ErrShutDown = errors.New("romancy: the App is shut down: make a new one")
)

// graceTimeout bounds the stop of what a failed Start had started, and a Shutdown whose ctx has ended.
const graceTimeout = 5 * time.Second

// App is the library wired together: a listener, a notifier, a workflow engine, an outbox writer and relay, and the sweeps,
// on one pool. Make it with NewApp. All methods are safe for concurrent use.
type App struct {
	options options
	mistake error           // of the options
	guests  *riverjobs.Jobs // in the application's River client, since NewApp

	turn    chan struct{} // capacity 1, held by Start and Shutdown
	running atomic.Pointer[parts]
	started []part // in order; guarded by turn

	mu    sync.Mutex
	state State
}

// parts are what an App is made of.
type parts struct {
	pool     *pgxpool.Pool
	listener *bus.Listener
	notifier *bus.Notifier
	engine   *workflow.Engine
	writer   *outbox.Writer
	relay    *outbox.Relay   // nil without a publisher
	jobs     *riverjobs.Jobs // nil without anything to sweep

	snapshots *snapshotWatch
}

// part is something to start and to stop.
type part struct {
	name  string
	start func(ctx context.Context) error
	stop  func(ctx context.Context) error
}

// NewApp returns an App that does nothing until Start, which also reports what is wrong with the options. Only WithRiver
// has an effect at once: the workers of the sweeps are added to the application's bundle.
func NewApp(opts ...Option) *App {
	a := &App{turn: make(chan struct{}, 1), state: StateNew}
	var given options
	for _, opt := range opts {
		if opt != nil {
			opt.apply(&given)
		}
	}
	a.options, a.mistake = check(given)
	if a.options.river != nil && a.options.workers != nil && a.options.sweeps() {
		var err error
		if a.guests, err = riverjobs.New(a.riverConfig()); err != nil {
			a.mistake = errors.Join(a.mistake, fmt.Errorf("WithRiver: %w", err))
		}
	}
	return a
}

// Start checks everything and starts it. Mistakes in the options come all at once, each with the option, its value and
// a remedy. Then come, one at a time, a ctx that has ended, a database that cannot be reached within ten seconds,
// privileges that its role lacks (*GrantError, all at once), a schema at another version (*SchemaVersionError), and
// whatever keeps a part from starting. After an error nothing is left running and Start may be called again. ctx
// bounds the start only: to end the App, call Shutdown.
//
// It returns ErrAlreadyStarted if the App is running and ErrShutDown after Shutdown.
func (a *App) Start(ctx context.Context) error {
	release, err := a.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	switch a.currentState() {
	case StateNew:
	case StateRunning:
		return ErrAlreadyStarted
	case StateStopping, StateStopped:
		return ErrShutDown
	}
	r, err := a.build()
	if err != nil {
		return err
	}
	if ctx.Err() != nil {
		a.closeOwn(r.pool)
		return fmt.Errorf("romancy: start: the context has ended: %w: give one that lasts until the App has started", context.Cause(ctx))
	}
	if err := refusal.WithRemedy(refusal.Public(a.startParts(ctx, r))); err != nil {
		stopCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), graceTimeout)
		defer cancel()
		if stopErr := a.stopStarted(stopCtx); stopErr != nil {
			a.setState(StateStopping) // Shutdown may try again
			return errors.Join(err, stopErr)
		}
		a.running.Store(nil)
		return err
	}
	a.setState(StateRunning)
	return nil
}

func (a *App) startParts(ctx context.Context, r *parts) error {
	a.started = []part{{name: "the pool", stop: func(ctx context.Context) error { return a.closePool(ctx, r.pool) }}}
	if err := reach(ctx, r.pool); err != nil {
		return fmt.Errorf("romancy: %w", err)
	}
	// Before the schema, because reading its version needs a privilege, too. What does not exist yet is not missed.
	if err := a.checkGrants(ctx, r.pool); err != nil {
		return fmt.Errorf("romancy: %w", err)
	}
	if err := a.checkSchema(ctx, r.pool); err != nil {
		return fmt.Errorf("romancy: %w", err)
	}
	for _, part := range a.inOrder(r) {
		if err := part.start(ctx); err != nil {
			return fmt.Errorf("romancy: start %s: %w", part.name, err)
		}
		a.started = append(a.started, part)
	}
	return nil
}

// Shutdown stops everything in reverse order: no new work is taken, what is in flight ends or is handed to other workers,
// and an own pool is closed. It waits for all of it, bounded by ctx, or by five seconds if ctx has ended before (as after
// the signal that ends the process), and returns an error if something outlives that; it may then be called again. A run with a step
// that does not return within it stays this process's until its lease ends, and the error names it: see [workflow.Engine.Shutdown].
// Shutting down twice, before Start, or after a failed Start, is fine.
func (a *App) Shutdown(ctx context.Context) error {
	release, err := a.takeTurn(ctx)
	if err != nil {
		return err
	}
	defer release()
	if a.currentState() == StateStopped {
		return nil
	}
	if ctx.Err() != nil {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(context.WithoutCancel(ctx), graceTimeout)
		defer cancel()
	}
	a.setState(StateStopping)
	if err := a.stopStarted(ctx); err != nil {
		return fmt.Errorf("romancy: shutdown: %w", err)
	}
	a.setState(StateStopped)
	return nil
}

// stopStarted stops in reverse order what is started, and keeps what did not stop.
func (a *App) stopStarted(ctx context.Context) error {
	var errs []error
	var left []part
	for _, part := range slices.Backward(a.started) {
		if err := part.stop(ctx); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", part.name, err))
			left = append(left, part)
		}
	}
	slices.Reverse(left)
	a.started = left
	return errors.Join(errs...)
}

func (a *App) takeTurn(ctx context.Context) (release func(), err error) {
	release = func() { <-a.turn }
	select {
	case a.turn <- struct{}{}: // even if ctx has ended
		return release, nil
	default:
	}
	select {
	case a.turn <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("romancy: wait for another Start or Shutdown: %w", context.Cause(ctx))
	}
}

func (a *App) currentState() State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.state
}

func (a *App) setState(state State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.state = state
}

// Engine returns the workflow engine, to start runs and to send them messages. Before Start it is nil, and what is called
// on or with it returns workflow.ErrNotStarted; after Shutdown workflow.ErrClosed.
func (a *App) Engine() *workflow.Engine {
	if r := a.running.Load(); r != nil {
		return r.engine
	}
	return nil
}

// Outbox returns the writer of the outbox. Before Start it is nil: use package outbox's own Add then.
func (a *App) Outbox() *outbox.Writer {
	if r := a.running.Load(); r != nil {
		return r.writer
	}
	return nil
}

// Listener returns the listening connection, to subscribe to channels of one's own: the App's, or that of WithListener.
// Before Start it is nil.
func (a *App) Listener() *bus.Listener {
	if r := a.running.Load(); r != nil {
		return r.listener
	}
	return nil
}

// Pool returns the pool in use. Before Start it is nil; after Shutdown a pool that the App made is closed.
func (a *App) Pool() *pgxpool.Pool {
	if r := a.running.Load(); r != nil {
		return r.pool
	}
	return nil
}

// Channels returns the names of the four notification channels, the topics for Subscriber.
func (a *App) Channels() bus.Channels { return a.options.channels }

// Subscriber returns a Watermill subscriber to the notification channels, over the App's listening connection. Fields of
// config left zero are the App's. Close it, or the router that has it, before Shutdown. It returns ErrNotStarted before
// Start.
func (a *App) Subscriber(config bus.SubscriberConfig) (*bus.Subscriber, error) {
	r := a.running.Load()
	if r == nil {
		return nil, ErrNotStarted
	}
	if config.Listener == nil {
		config.Listener = r.listener
	}
	if config.Pool == nil {
		config.Pool = r.pool
	}
	if config.Logger == nil {
		config.Logger = a.options.logger
	}
	setDefault(&config.Schema, a.options.schema)
	setDefault(&config.Channels, a.options.channels)
	if config.MeterProvider == nil {
		config.MeterProvider = a.options.meter
	}
	setDefault(&config.FallbackInterval, a.options.fallbackInterval)
	return bus.NewSubscriber(config)
}
