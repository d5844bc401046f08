package workflow

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/pace"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/lease"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Config configures an Engine. Only Pool is required. Numbers are 1 to 1,000,000, those of a batch 1 to 10,000,
// durations 1 ms to 8760 h (a year), except where they say otherwise; 0 means the default.
type Config struct {
	// Pool is the application's; transactional activities and callers' transactions run on it. The engine never closes it,
	// and makes connections of its own beside it, from its configuration: one for everything that it writes (a second under
	// load, and a third while runs are started with ids of the caller's), and one for this worker's lease.
	Pool *pgxpool.Pool
	// Schema is where the tables are. Default "romancy".
	Schema string
	// Workflows are those that this process knows: the ones it may start, and, unless ClientOnly, executes.
	Workflows []Definition
	// ClientOnly: start and signal runs, execute none.
	ClientOnly bool
	// Listener brings notifications; started and closed by its owner. nil: the engine looks for itself, every second.
	Listener *bus.Listener
	// Notifier sends notifications; started and closed by its owner. nil: nobody is notified.
	Notifier *bus.Notifier
	// Channels are the names of the four channels. Default: made from Schema.
	Channels bus.Channels
	// Label is shown in the workers table, for people: up to 255 bytes of UTF-8. Default: host name and process id.
	Label string
	// Lease is how long this worker owns its runs without a sign of life: after a crash they continue elsewhere when it
	// has run out. Renewed three times as often, on a connection that is used for nothing else. A worker that cannot renew it cancels
	// the contexts of its steps before it runs out, and comes back under another id. Default 15 s; 1 s to 24 h.
	Lease time.Duration
	// MaxConcurrentRuns bounds the runs executing here at one time, parked ones not counted; others wait in the database, or
	// parked. The workflows share it: who has fewest goes first, and the last slots are kept for workflows that have none.
	// See WithMaxConcurrentRuns for a limit of one workflow. A run taken from this worker counts until the step it is in has returned.
	// Default 1000.
	MaxConcurrentRuns int
	// MaxConcurrentActivities bounds the activities whose bodies execute here at one time; others wait in memory. See
	// WithMaxConcurrentActivities and WithMaxConcurrent for limits of one workflow and one activity. Default 1000.
	MaxConcurrentActivities int
	// MaxDeaths is how many workers in a row may die with a run, having recorded nothing: then it is stuck, so that a run that
	// kills its worker does not kill them all. Only deaths count: a worker that lost its lease because it was slow, frozen or cut off
	// from the database is counted until it is back and says that it lived; then the count is taken back, and a run that was stuck
	// for it is ready again. One that shut down never counts. Engine.Retry begins counting anew. The setting of the worker that finds the dead one decides. Default 5.
	MaxDeaths int
	// MaxInterruptions is how often the database may refuse what a step has done in its transaction, for a reason that is not the
	// step's fault (a lock, a full disk, a lost connection), and have it executed again: after that the run is stuck, with the
	// database's words. What a step without a transaction has done is never thrown away while its worker lives, so it is not executed
	// again. Engine.Retry begins counting anew. Default 20, about five minutes of refusals.
	MaxInterruptions int
	// CacheSize bounds the parked runs kept in memory; those beyond it are resumed by replaying their history. Of these, and of
	// runs that begin later, only deadlines within two FallbackIntervals are kept. Default 10000.
	CacheSize int
	// MaxWorkflowsPerBatch bounds the ready runs claimed by one statement. Default 100.
	MaxWorkflowsPerBatch int
	// MaxTimersPerBatch bounds the due timers handled by one statement. Default 100.
	MaxTimersPerBatch int
	// MaxMessagesPerBatch bounds the waiting messages looked at by one statement. Default 100.
	MaxMessagesPerBatch int
	// FallbackInterval is how often this process looks for what a lost notification would have said. Default 30 s. While the
	// listener is not healthy it looks for ready runs every second.
	FallbackInterval time.Duration
	// Retention is how long ended runs are kept, with their history: at least 1 µs. Default 0: permanently. Whoever
	// calls SweepRetention removes them: riverjobs does, once a minute or so. A run that continued as new is kept,
	// without its history, for as long as the run that it continued as.
	Retention time.Duration
	// SendKeyRetention is how long the keys of WithSendKey are kept at least: 1 µs or more. Default 24 h.
	// SweepRetention removes them later.
	SendKeyRetention time.Duration
	// EventRetention is how long an event is kept that names no time of its own: 1 µs or more. Default 24 h.
	// SweepRetention removes it later.
	EventRetention time.Duration
	// HideErrorTexts leaves the texts of errors that activities, compensations and workflows return, and the stacks of their panics, out
	// of the log and of spans, which then have their types only (see [Error.ErrorType]). History keeps them, up to 16 KiB each. Default
	// false: the log and spans have up to 1 KiB of each.
	HideErrorTexts bool
	// Logger. Default slog.Default(). Every line names the worker, and the run and its workflow if it is about one.
	Logger *slog.Logger
	// MeterProvider makes the metrics romancy.workflow.*. Default otel.GetMeterProvider().
	MeterProvider metric.MeterProvider
	// TracerProvider makes the spans of runs, each run in one trace. Default otel.GetTracerProvider().
	TracerProvider trace.TracerProvider
}

func (c Config) withDefaults() Config {
	c.Schema = cmp.Or(c.Schema, schema.Default)
	c.Channels = cmp.Or(c.Channels, bus.ChannelsFor(c.Schema))
	if c.Label == "" {
		host, _ := os.Hostname() // an empty host name is only a poorer label
		c.Label = fmt.Sprintf("%s/%d", strings.ToValidUTF8(host, "?"), os.Getpid())
	}
	c.Lease = cmp.Or(c.Lease, 15*time.Second)
	c.MaxConcurrentRuns = cmp.Or(c.MaxConcurrentRuns, 1000)
	c.MaxConcurrentActivities = cmp.Or(c.MaxConcurrentActivities, 1000)
	c.MaxDeaths = cmp.Or(c.MaxDeaths, 5)
	c.MaxInterruptions = cmp.Or(c.MaxInterruptions, 20)
	c.CacheSize = cmp.Or(c.CacheSize, 10_000)
	c.MaxWorkflowsPerBatch = cmp.Or(c.MaxWorkflowsPerBatch, 100)
	c.MaxTimersPerBatch = cmp.Or(c.MaxTimersPerBatch, 100)
	c.MaxMessagesPerBatch = cmp.Or(c.MaxMessagesPerBatch, 100)
	c.FallbackInterval = cmp.Or(c.FallbackInterval, 30*time.Second)
	c.EventRetention = cmp.Or(c.EventRetention, 24*time.Hour)
	c.SendKeyRetention = cmp.Or(c.SendKeyRetention, 24*time.Hour)
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	c.Logger = refusal.Logger(c.Logger)
	if c.TracerProvider == nil {
		c.TracerProvider = otel.GetTracerProvider()
	}
	return c
}

// orDefault is the other remedy for a field of which zero means the default.
const orDefault = ", or 0 for the default"

func (c Config) validate() error {
	var errs []error
	if flaw := dial.Unusable(c.Pool); flaw != "" {
		errs = append(errs, fmt.Errorf("workflow.Config.Pool %s: pass the application's *pgxpool.Pool", flaw))
	}
	if err := sqlfile.CheckSchema(c.Schema); err != nil {
		errs = append(errs, fmt.Errorf("workflow.Config.Schema: %w", err))
	} else if err := c.Channels.Validate(); err != nil {
		errs = append(errs, fmt.Errorf("workflow.Config.Channels: %w", err))
	}
	errs = append(errs,
		checkText("workflow.Config.Label", c.Label, MaxIDLength),
		bounds.Number("workflow.Config.Lease", c.Lease, time.Second, bounds.LongestLease, orDefault),
		bounds.Count("workflow.Config.MaxConcurrentRuns", c.MaxConcurrentRuns),
		bounds.Count("workflow.Config.MaxConcurrentActivities", c.MaxConcurrentActivities),
		bounds.Count("workflow.Config.MaxDeaths", c.MaxDeaths),
		bounds.Count("workflow.Config.MaxInterruptions", c.MaxInterruptions),
		bounds.Count("workflow.Config.CacheSize", c.CacheSize),
		bounds.Batch("workflow.Config.MaxWorkflowsPerBatch", c.MaxWorkflowsPerBatch),
		bounds.Batch("workflow.Config.MaxTimersPerBatch", c.MaxTimersPerBatch),
		bounds.Batch("workflow.Config.MaxMessagesPerBatch", c.MaxMessagesPerBatch),
		bounds.Interval("workflow.Config.FallbackInterval", c.FallbackInterval),
		bounds.Age("workflow.Config.EventRetention", c.EventRetention, time.Microsecond, "for the default"),
		bounds.Age("workflow.Config.SendKeyRetention", c.SendKeyRetention, time.Microsecond, "for the default"),
		bounds.Age("workflow.Config.Retention", c.Retention, time.Microsecond, "to keep ended runs permanently"))
	if c.MeterProvider != nil && bounds.Nothing(c.MeterProvider) {
		errs = append(errs, fmt.Errorf("workflow.Config.MeterProvider is a nil %T: give a meter provider, or leave it out", c.MeterProvider))
	}
	if bounds.Nothing(c.TracerProvider) {
		errs = append(errs, fmt.Errorf("workflow.Config.TracerProvider is a nil %T: give a tracer provider, or leave it out", c.TracerProvider))
	}
	return errors.Join(append(errs, validateWorkflows(c.Workflows))...)
}

func validateWorkflows(definitions []Definition) error {
	var errs []error
	names := map[string]bool{}
	for i, definition := range definitions {
		if bounds.Nothing(definition) {
			errs = append(errs, fmt.Errorf("workflow.Config.Workflows[%d] is nil: give what Define returns", i))
			continue
		}
		if err := definition.validate(); err != nil {
			errs = append(errs, fmt.Errorf("workflow.Config.Workflows[%d]: %w", i, err))
		}
		if names[definition.Name()] {
			errs = append(errs, fmt.Errorf("workflow.Config.Workflows[%d]: two workflows are named %.40q: rename one", i, definition.Name()))
		}
		names[definition.Name()] = true
	}
	return errors.Join(errs...)
}

type engineState int

const (
	stateNew engineState = iota
	stateStarted
	stateDraining
	stateClosed
)

// Engine starts runs, executes them and brings them what they wait for. All methods are safe for concurrent use; those
// that need the database return ErrNotStarted before Start and ErrClosed after Shutdown.
type Engine struct {
	config      Config
	logger      *slog.Logger
	metrics     *engineMetrics
	tracer      trace.Tracer
	unobserve   func() // ends the observation of metrics
	unheed      func() // ends the observation of the listener
	store       *store.Store
	reports     *reports
	strange     said         // inputs that are not the recorded ones, see checkRecordedInput
	trouble     func() error // why there is no connection to the database now; nil: nothing is known of that
	definitions map[string]Definition
	names       []string // of the workflows executed here
	endedOn     string   // the channel on which the end of runs is told
	cancelledOn string   // the channel on which the workers of cancelled runs are told
	leftOn      string   // the channel on which workers that shut down say so
	laterOn     string   // the channel on which whoever starts runs for later and does not wait for their moments says so

	committer  *commit.Committer // for what belongs to runs of this worker
	side       *commit.Committer // for starts with a caller's id, which another transaction may hold
	lease      *lease.Keeper
	lingering  *lingering
	durability durability
	reading    *outage.Reporter // of what runs have to know from the database
	beginning  *outage.Reporter // of transactions of activities
	watch      *watch
	admission  *admission
	intake     intake

	stop       context.CancelFunc // ends the loops
	loops      sync.WaitGroup
	runs       sync.WaitGroup // the runs' goroutines
	draining   atomic.Bool
	goroutines atomic.Int64 // of runs, those whose runs were taken from them included

	claims       signal // there may be ready runs
	timers       signal // the earliest deadline has changed
	takeovers    signal // a worker may have died
	laters       signal // a run that begins soon may have been started elsewhere
	orphans      signal // the database may say that we own runs which are not here
	held         *tally // runs in memory here that may be cancelled, or somebody else's
	published    *tally // channels on which something was published
	mailRuns     *tally // runs not in memory here that have mail
	mailChannels *tally // channels whose subscribers may have mail
	cold         *tally // runs not in memory here that are due
	matching     *tally // events that runs in memory here may wait for, by their row's id
	matchingOn   *tally // and the channels of their types
	coldEvents   *tally // events that other runs may wait for
	looking      *looking
	trust        trust // in hints
	rousing      *rousing
	letting      letting
	wakes        *outage.Reporter

	// Where looks begin.
	ready               *readyMarks
	readySize, coldSize claimSize
	priorities          priorities
	sleeping, receiving deadlineMark
	owners              pace.Pace
	glances             glances
	mail                mailMarks
	events              eventMarks
	retained            retainedMark
	clock               *dueClock
	unexecuted          unexecuted

	mu    sync.Mutex // guards state and cache
	state engineState
	cache cache
}

// NewEngine returns an engine that Start sets to work. It returns all mistakes in config at once.
func NewEngine(config Config) (*Engine, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("workflow engine: %w", err)
	}
	statements, err := store.New(config.Schema)
	if err != nil {
		return nil, fmt.Errorf("workflow engine: %w", err)
	}
	metrics, err := newEngineMetrics(config.MeterProvider)
	if err != nil {
		return nil, fmt.Errorf("workflow engine: %w", err)
	}
	e := &Engine{
		config: config, store: statements, metrics: metrics, tracer: newCarefulTracer(config.TracerProvider.Tracer(scope), config.Logger), unobserve: func() {}, unheed: func() {},
		definitions: map[string]Definition{},
		endedOn:     schema.EndedChannel(config.Schema), cancelledOn: schema.CancelledChannel(config.Schema), leftOn: schema.LeftChannel(config.Schema), laterOn: schema.LaterChannel(config.Schema),
		claims: newSignal(), timers: newSignal(), takeovers: newSignal(), laters: newSignal(), orphans: newSignal(), held: newTally(),
		published: newTally(), mailRuns: newTally(), mailChannels: newTally(), cold: newTally(),
		admission: newAdmission(config), intake: make(intake, maxIntake),
		lingering: newLingering(),
		matching:  newTally(), matchingOn: newTally(), looking: newLooking(), coldEvents: newTally(), clock: newDueClock(time.Now()),
	}
	e.rousing = newRousing()
	e.logger = slog.New(workerHandler{config.Logger.Handler(), func() int64 { return e.lease.ID() }})
	e.reports = newReports(e.logger)
	e.reading = outage.New(e.logger, "the database does not say what a run has to know, it is asked again", "the database answers runs again")
	e.beginning = outage.New(e.logger, "no transaction can be begun for activities, it is tried again", "transactions can be begun for activities again")
	for _, definition := range config.Workflows {
		e.definitions[definition.Name()] = definition
		if !config.ClientOnly {
			e.names = append(e.names, definition.Name())
		}
	}
	e.wakes = outage.New(e.logger, "parked runs could not be woken, will be tried again", "parked runs are woken again")
	connect := func(ctx context.Context) (*pgx.Conn, error) {
		conn, err := dial.Beside(ctx, config.Pool, " engine", nil)
		if err != nil {
			return nil, err
		}
		config.Listener.Retry() // the end of an outage shows here first
		if err := e.noteServer(ctx, conn); err != nil {
			dial.HangUp(conn)
			return nil, err
		}
		return conn, nil
	}
	e.committer = commit.New(commit.Config{
		Store: statements, Connect: connect, Lanes: 2, Sent: e.sent, SentEvents: e.sentEvents,
		Holds:     func(worker int64) bool { return !e.lease.Lost(worker) },
		Abandoned: metrics.abandoned, Flushed: metrics.flushed(metrics.runs), Logger: e.logger,
	})
	e.side = commit.New(commit.Config{Store: statements, Connect: connect, Lazy: true, Flushed: metrics.flushed(metrics.starts), Logger: e.logger})
	e.trouble = func() error { return cmp.Or(e.committer.Trouble(), e.side.Trouble()) }
	e.lease = lease.New(lease.Config{
		Store: statements, Committer: e.committer, Label: config.Label, Workflows: e.names, Lease: config.Lease,
		Connect:   func(ctx context.Context) (*pgx.Conn, error) { return dial.Beside(ctx, config.Pool, " lease", nil) },
		Listening: config.Listener.Healthy, Answered: config.Listener.Retry,
		Clock: e.readClock, Lost: e.leaseLost, Freed: e.freed, Registered: e.claims.give, Expired: e.takeovers.give,
		Logger: e.logger,
	})
	e.watch = newWatch(e)
	e.ready = newReadyMarks(e.names, &e.priorities)
	executed := config.Workflows
	if config.ClientOnly {
		executed = nil
	}
	e.cache = newCache(newSlots(config.MaxConcurrentRuns, executed))
	return e, nil
}

// executes reports whether this process executes runs at all.
func (e *Engine) executes() bool { return len(e.names) > 0 }

// Start connects and begins to execute runs. It returns an error if the database cannot be reached, if the role lacks privileges that
// executing runs takes, all of which it names, if the engine was started before, and ErrClosed after Shutdown. Cancelling ctx afterwards stops nothing: call Shutdown.
func (e *Engine) Start(ctx context.Context) error {
	if e == nil {
		return errors.New("the engine is nil: make one with NewEngine, or start the App that you have it from")
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch e.state {
	case stateNew:
	case stateStarted:
		return errors.New("engine was started before: start it once")
	case stateDraining, stateClosed:
		return ErrClosed
	}
	if e.executes() { // what a client does not do, it need not be allowed to do
		if err := schema.CheckGrants(ctx, e.config.Pool, e.config.Schema, schema.Execute); err != nil {
			return fmt.Errorf("start the workflow engine: %w", refusal.WithRemedy(err))
		}
	}
	if err := e.committer.Open(ctx); err != nil {
		return fmt.Errorf("start the workflow engine: %w", refusal.WithRemedy(err))
	}
	if err := e.side.Open(ctx); err != nil {
		return fmt.Errorf("start the workflow engine: %w", refusal.WithRemedy(err))
	}
	if err := e.startLoops(ctx); err != nil {
		e.committer.Close(ctx)
		e.side.Close(ctx)
		e.state = stateClosed
		return fmt.Errorf("start the workflow engine: %w", refusal.WithRemedy(err))
	}
	e.state = stateStarted
	return nil
}

func (e *Engine) startLoops(ctx context.Context) error {
	var subscription *bus.Subscription
	if e.config.Listener != nil {
		channels := []string{e.endedOn}
		if e.executes() {
			channels = append(channels, e.config.Channels.WorkflowResumable, e.config.Channels.ChannelMessage, e.cancelledOn, e.leftOn, e.laterOn)
		}
		var err error
		if subscription, err = e.config.Listener.Subscribe(0, channels...); err != nil {
			return err
		}
	}
	if e.executes() {
		if err := e.lease.Register(ctx); err != nil {
			e.lease.Close()
			if subscription != nil {
				subscription.Close()
			}
			return fmt.Errorf("register this worker: %w", err)
		}
	}
	loopCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
	e.stop = stop
	e.loops.Go(func() { e.watch.loop(loopCtx) })
	e.loops.Go(func() { e.unexecutedLoop(loopCtx) })
	if subscription != nil {
		e.loops.Go(func() { e.listen(loopCtx, subscription) })
	}
	if !e.executes() {
		return nil
	}
	if unobserve, err := e.observe(); err != nil {
		e.logger.WarnContext(ctx, "the engine's metrics are not observed", "error", err)
	} else {
		e.unobserve = unobserve
	}
	e.unheed = e.config.Listener.OnChange(func(bus.State) { e.lease.ListeningChanged() })
	e.lease.ListeningChanged() // it may have changed since the registration
	e.loops.Go(func() { e.lease.Run(loopCtx) })
	e.loops.Go(func() { e.lingerLoop(loopCtx) })
	e.loops.Go(func() { e.claimLoop(loopCtx) })
	e.loops.Go(func() { e.timerLoop(loopCtx) })
	e.loops.Go(func() { e.takeoverLoop(loopCtx) })
	e.loops.Go(func() { e.laterLoop(loopCtx) })
	e.loops.Go(func() { e.publishedLoop(loopCtx) })
	e.loops.Go(func() { e.lookLoop(loopCtx) })
	e.loops.Go(func() { e.mailSweepLoop(loopCtx) })
	e.loops.Go(func() { e.coldLoop(loopCtx) })
	e.loops.Go(func() { e.matchLoop(loopCtx) })
	e.loops.Go(func() { e.eventSweepLoop(loopCtx) })
	e.loops.Go(func() { e.orphanLoop(loopCtx) })
	e.loops.Go(func() { e.heldLoop(loopCtx) })
	e.loops.Go(func() { e.rouseLoop(loopCtx) })
	e.loops.Go(func() { e.safetyNet(loopCtx) })
	e.claims.give()
	e.takeovers.give() // what was parked by workers that are gone is nobody's until somebody looks
	return nil
}

// check returns why the engine cannot serve a call now, or nil.
func (e *Engine) check() error {
	if e == nil {
		return ErrNotStarted
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch e.state {
	case stateStarted:
		return nil
	case stateNew:
		return ErrNotStarted
	default:
		return ErrClosed
	}
}
