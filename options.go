package romancy

import (
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"go.opentelemetry.io/otel/metric"
	"go.opentelemetry.io/otel/trace"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/secret"
	"github.com/romancy-go/romancy/workflow"
)

// Defaults of the options, where zero means the default.
const (
	DefaultSchema                 = schema.Default
	DefaultLease                  = 15 * time.Second
	DefaultNotifyFallbackInterval = 30 * time.Second
	DefaultNotifyReconnectDelay   = 60 * time.Second
	DefaultMaxPerBatch            = 100
	DefaultMaxConcurrent          = 1000
	DefaultMaxDeaths              = 5
	DefaultMaxInterruptions       = 20
	DefaultEventRetention         = 24 * time.Hour
	DefaultSendKeyRetention       = 24 * time.Hour
)

// Option configures an App. An option given twice counts the last time, except where it says otherwise.
type Option interface{ apply(o *options) }

type optionFunc func(o *options)

func (f optionFunc) apply(o *options) { f(o) }

type options struct {
	urls      []secret.Text
	pools     []*pgxpool.Pool
	schema    string
	channels  bus.Channels
	workflows []workflow.Definition
	client    bool // ClientOnly
	lease     time.Duration
	migrate   bool
	nonEmpty  bool

	listenNotify     *bool
	fallbackInterval time.Duration
	reconnectDelay   time.Duration
	maxWorkflows     int
	maxTimers        int
	maxMessages      int
	maxRuns          int
	maxActivities    int
	maxDeaths        int
	maxInterruptions int
	retention        time.Duration
	eventRetention   time.Duration
	sendKeyRetention time.Duration
	listenURLs       []secret.Text
	listeners        []*bus.Listener

	workflowsGiven bool // with or without mistakes

	outboxGiven bool
	publisher   message.Publisher
	riverGiven  bool
	river       *river.Client[pgx.Tx]
	workers     *river.Workers
	loggerGiven bool
	logger      *slog.Logger
	meterGiven  bool
	meter       metric.MeterProvider
	tracerGiven bool
	tracer      trace.TracerProvider
	hideErrors  bool
}

// WithDatabase names the database by its URL or keyword/value string, as pgx takes it (pool_max_conns and the like
// included). A special character of its user name or password must be percent-encoded, an @ as %40: a URL with another @ than the one
// before the host is refused, and no error shows any of it. The App makes a pool for it and closes it at Shutdown. Give this or WithPool, once.
func WithDatabase(url string) Option {
	return optionFunc(func(o *options) { o.urls = append(o.urls, secret.New(url)) })
}

// WithPool makes the App work on the application's pool, which it never closes. A few connections are made beside it from
// its configuration: one that listens, one that notifies, and the engine's. Give this or WithDatabase, once.
func WithPool(pool *pgxpool.Pool) Option {
	return optionFunc(func(o *options) { o.pools = append(o.pools, pool) })
}

type schemaOption string

func (s schemaOption) apply(o *options)          { o.schema = string(s) }
func (s schemaOption) applyMigrate(m *migration) { m.schema = string(s) }

// SharedOption is an Option and a MigrateOption.
type SharedOption interface {
	Option
	MigrateOption
}

type loggerOption struct{ logger *slog.Logger }

func (l loggerOption) apply(o *options)          { o.loggerGiven, o.logger = true, l.logger }
func (l loggerOption) applyMigrate(m *migration) { m.logger = l.logger }

// WithSchema names the schema of the library's tables, from which the names of the notification channels follow. Two
// schemas in one database never wake each other. Default: "romancy".
func WithSchema(name string) SharedOption { return schemaOption(name) }

// WithChannels overrides names of notification channels; those left empty are made from the schema. All processes on a
// schema must agree on them.
func WithChannels(channels bus.Channels) Option {
	return optionFunc(func(o *options) { o.channels = channels })
}

// WithWorkflows registers the workflows that this process executes and can start. Given several times, they add up.
func WithWorkflows(definitions ...workflow.Definition) Option {
	return optionFunc(func(o *options) { o.workflows = append(o.workflows, definitions...) })
}

// WithClientOnly makes this process start and signal runs of its workflows, but execute none: for a web server beside
// worker processes.
func WithClientOnly() Option {
	return optionFunc(func(o *options) { o.client = true })
}

// WithLease sets how long this process owns its runs without a sign of life: after a crash they continue elsewhere when it
// has run out. Default: 15 s; 1 s to 24 h.
func WithLease(lease time.Duration) Option {
	return optionFunc(func(o *options) { o.lease = lease })
}

// WithOutboxPublisher relays the events of the outbox to publisher, which stays the application's: it is not closed.
// Without it events can be written here and are relayed by the processes that have one.
func WithOutboxPublisher(publisher message.Publisher) Option {
	return optionFunc(func(o *options) { o.outboxGiven, o.publisher = true, publisher })
}

// WithRiver makes the sweeps jobs of the application's own River client, instead of a client that the App makes. workers is
// the bundle the client was made with. NewApp adds to it, so it must come before client.Start, and a bundle takes one App
// only; App.Start may come before or after client.Start. The client is never started nor stopped by the App.
//
// River says at INFO, once a second for each of the five kinds of sweep, that a periodic job had nothing to insert: give
// the client a logger that leaves that out. As long as the client runs after Shutdown, it hands sweeps to other processes.
func WithRiver(client *river.Client[pgx.Tx], workers *river.Workers) Option {
	return optionFunc(func(o *options) { o.riverGiven, o.river, o.workers = true, client, workers })
}

// WithListenNotify enables or disables LISTEN/NOTIFY. Disabled, nothing is listened to nor notified, and everything is
// found by polling. Default: nil, which means enabled, because the database is PostgreSQL.
func WithListenNotify(enabled *bool) Option {
	return optionFunc(func(o *options) { o.listenNotify = enabled })
}

// WithNotifyFallbackInterval sets how often sweeps look for lost notifications while none seem to be lost. Default: 30
// s. While the listening connection is down they run at the polling intervals (1 s, 5 s for channel timeouts). 1 ms to
// 8760 h (a year).
func WithNotifyFallbackInterval(interval time.Duration) Option {
	return optionFunc(func(o *options) { o.fallbackInterval = interval })
}

// WithNotifyReconnectDelay sets the longest delay between two attempts to connect again after the listening connection was
// lost. The first attempt comes at once, the next after about 100 ms, doubling. Default: 60 s; 1 ms to 8760 h (a year).
func WithNotifyReconnectDelay(delay time.Duration) Option {
	return optionFunc(func(o *options) { o.reconnectDelay = delay })
}

// WithListenURL names the database to listen to, as a URL or keyword/value string, where the pool cannot do it because it
// goes through a pooler such as PgBouncer in transaction mode. It must be the same database, reached around the pooler.
func WithListenURL(url string) Option {
	return optionFunc(func(o *options) { o.listenURLs = append(o.listenURLs, secret.New(url)) })
}

// WithListener makes the App listen with the application's listener, which the application starts and closes, instead of
// one of its own. It has to listen to the App's database, and should run before Start and until after Shutdown: while it
// does not, everything is found by polling. Options that configure a listener cannot be given with it.
func WithListener(listener *bus.Listener) Option {
	return optionFunc(func(o *options) { o.listeners = append(o.listeners, listener) })
}

// WithMaxWorkflowsPerBatch bounds the runs that one statement claims. Default: 100; at most 10,000.
func WithMaxWorkflowsPerBatch(n int) Option {
	return optionFunc(func(o *options) { o.maxWorkflows = n })
}

// WithMaxTimersPerBatch bounds the due timers that one statement handles. Default: 100; at most 10,000.
func WithMaxTimersPerBatch(n int) Option {
	return optionFunc(func(o *options) { o.maxTimers = n })
}

// WithMaxMessagesPerBatch bounds the waiting messages that one statement looks at. Default: 100; at most 10,000.
func WithMaxMessagesPerBatch(n int) Option {
	return optionFunc(func(o *options) { o.maxMessages = n })
}

// WithMaxConcurrentRuns bounds the runs that execute in this process at one time, parked ones not counted. Others wait
// in the database, or parked; the workflows share the room among them. Default: 1000; at most 1,000,000. A workflow
// can have a limit of its own: workflow.WithMaxConcurrentRuns.
func WithMaxConcurrentRuns(n int) Option {
	return optionFunc(func(o *options) { o.maxRuns = n })
}

// WithMaxConcurrentActivities bounds the activities that execute in this process at one time; others wait in memory.
// Default: 1000; at most 1,000,000. A workflow and an activity can have limits of their own:
// workflow.WithMaxConcurrentActivities and workflow.WithMaxConcurrent.
func WithMaxConcurrentActivities(n int) Option {
	return optionFunc(func(o *options) { o.maxActivities = n })
}

// WithMaxDeaths sets how many workers in a row may die with a run, having recorded nothing, before it is stuck.
// Default: 5; at most 1,000,000. See workflow.Config.MaxDeaths for what counts.
func WithMaxDeaths(n int) Option {
	return optionFunc(func(o *options) { o.maxDeaths = n })
}

// WithMaxInterruptions sets how often the database may refuse the transaction of a step, for a reason that is not the
// step's fault, and have it executed again, before its run is stuck. Default: 20; at most 1,000,000. See
// workflow.Config.MaxInterruptions for what counts.
func WithMaxInterruptions(n int) Option {
	return optionFunc(func(o *options) { o.maxInterruptions = n })
}

// WithRetention sets how long runs that have ended are kept, with their history: 1 ms or more. Default: 0,
// permanently. They are removed in small batches by the periodic job romancy_retention. A run that continued as new is
// kept, without its history, for as long as the run that it continued as.
func WithRetention(age time.Duration) Option {
	return optionFunc(func(o *options) { o.retention = age })
}

// WithEventRetention sets how long an event is kept that names no time of its own (workflow.OutgoingEvent.Retention), for runs that
// have yet to wait for it: 1 ms or more. Default: 24 h.
func WithEventRetention(age time.Duration) Option {
	return optionFunc(func(o *options) { o.eventRetention = age })
}

// WithSendKeyRetention sets how long a message that is sent again under its key (workflow.WithSendKey) is known to have been
// sent: 1 ms or more. Default: 24 h.
func WithSendKeyRetention(age time.Duration) Option {
	return optionFunc(func(o *options) { o.sendKeyRetention = age })
}

// WithLogger sets where everything reports. Default: slog.Default().
func WithLogger(logger *slog.Logger) SharedOption { return loggerOption{logger} }

// WithMeterProvider sets where the App's metrics (romancy.*) are made. Default: otel.GetMeterProvider(). A listener given
// by WithListener has its own.
func WithMeterProvider(provider metric.MeterProvider) Option {
	return optionFunc(func(o *options) { o.meterGiven, o.meter = true, provider })
}

// WithTracerProvider sets where the spans of runs are made: each run is one trace, whichever workers execute it, and continues
// that of its starter. Default: otel.GetTracerProvider().
func WithTracerProvider(provider trace.TracerProvider) Option {
	return optionFunc(func(o *options) { o.tracerGiven, o.tracer = true, provider })
}

// WithoutErrorTexts leaves the texts of errors that code of the application returns (activities, compensations, workflows, the outbox's
// publisher), and the stacks of its panics, out of the log and of spans, which then have their types only. History and dead letters keep
// them. Without it the log and spans have the first 1 KiB of each.
func WithoutErrorTexts() Option {
	return optionFunc(func(o *options) { o.hideErrors = true })
}

// WithAutoMigrate makes Start run Migrate first. Without it, Start returns an error for a schema that is not at the version
// of this build, or at a newer one that this build can live with, which suits deployments whose services may not change tables.
func WithAutoMigrate() Option {
	return optionFunc(func(o *options) { o.migrate = true })
}

type nonEmptyOption struct{}

func (nonEmptyOption) apply(o *options)          { o.nonEmpty = true }
func (nonEmptyOption) applyMigrate(m *migration) { m.nonEmpty = true }

// WithNonEmptySchema lets the first migration make its tables in a schema that holds other objects already, of the application or
// of River. Default: that is an error, because somebody who could make that schema, or something in it, may have put it there for
// this library to find and use. It concerns Migrate, PlanMigration and MigrationSQL, and an App with WithAutoMigrate.
func WithNonEmptySchema() SharedOption { return nonEmptyOption{} }

// BoolPtr returns a pointer to value, for WithListenNotify.
func BoolPtr(value bool) *bool {
	pointed := value
	return &pointed
}

func (o *options) listens() bool  { return o.listenNotify == nil || *o.listenNotify }
func (o *options) executes() bool { return o.workflowsGiven && !o.client }
func (o *options) relays() bool   { return o.outboxGiven }
func (o *options) sweeps() bool   { return o.executes() || o.relays() }
