package romancy

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/secret"
	"github.com/romancy-go/romancy/internal/sqlfile"
	"github.com/romancy-go/romancy/workflow"
)

// check returns the options with their defaults, and all mistakes. An option with a mistake has its default too, so that
// the parts can be made from the others and report what only they can find.
func check(o options) (options, error) {
	var errs []error
	mistake := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }

	errs = append(errs, o.checkDatabase()...)
	errs = append(errs, o.checkListening()...)

	setDefault(&o.schema, DefaultSchema)
	if err := sqlfile.CheckSchema(o.schema); err != nil {
		mistake("WithSchema: %w", err)
		o.schema = DefaultSchema
	}
	names := bus.ChannelsFor(o.schema)
	setDefault(&o.channels.WorkflowResumable, names.WorkflowResumable)
	setDefault(&o.channels.TimerExpired, names.TimerExpired)
	setDefault(&o.channels.ChannelMessage, names.ChannelMessage)
	setDefault(&o.channels.OutboxPending, names.OutboxPending)
	if err := o.channels.Validate(); err != nil {
		mistake("WithChannels: %w", err)
		o.channels = names
	}

	o.workflowsGiven = len(o.workflows) > 0
	var err error
	if o.workflows, err = distinct(o.workflows); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, checkDurations(&o)...)
	errs = append(errs, checkNumbers(&o)...)

	if o.outboxGiven && bounds.Nothing(o.publisher) {
		o.publisher = nil
		mistake("WithOutboxPublisher(nil): give the Watermill publisher to relay to, or leave it out")
	}
	if o.loggerGiven && o.logger == nil {
		mistake("WithLogger(nil): give a logger, or leave it out for slog.Default()")
	}
	if o.logger == nil {
		o.logger = slog.Default()
	}
	if o.meterGiven && bounds.Nothing(o.meter) {
		o.meter = nil
		mistake("WithMeterProvider(nil): give a meter provider, or leave it out for otel.GetMeterProvider()")
	}
	if o.tracerGiven && bounds.Nothing(o.tracer) {
		o.tracer = nil
		mistake("WithTracerProvider(nil): give a tracer provider, or leave it out for otel.GetTracerProvider()")
	}
	switch {
	case !o.riverGiven:
	case o.river == nil || o.workers == nil:
		mistake("WithRiver with a nil client or nil workers: give your river.Client and the river.Workers it was made with, or leave it out for a client of the App's own")
	case !o.sweeps():
		mistake("WithRiver without anything to sweep: give WithWorkflows to execute or WithOutboxPublisher as well, or leave it out")
	}
	return o, errors.Join(errs...)
}

func (o *options) checkDatabase() (errs []error) {
	switch given := len(o.urls) + len(o.pools); {
	case given == 0:
		return []error{errors.New("no database: give WithDatabase(url) or WithPool(pool)")}
	case given > 1:
		errs = append(errs, fmt.Errorf("%d databases (WithDatabase %d times, WithPool %d times): give exactly one", given, len(o.urls), len(o.pools)))
	}
	for _, url := range o.urls {
		if url.Reveal() == "" {
			errs = append(errs, errors.New(`WithDatabase(""): give a URL like postgres://user:password@localhost:5432/dbname`))
		} else if _, err := secret.Parse(url.Reveal()); err != nil {
			errs = append(errs, fmt.Errorf("WithDatabase: %w: give a URL like postgres://user:password@localhost:5432/dbname", err))
		}
	}
	for i, pool := range o.pools {
		switch flaw := dial.Unusable(pool); {
		case pool == nil:
			errs = append(errs, errors.New("WithPool(nil): give the application's *pgxpool.Pool"))
		case flaw != "":
			errs = append(errs, fmt.Errorf("WithPool: the pool %s: give the application's *pgxpool.Pool", flaw))
			o.pools[i] = nil
		}
	}
	return errs
}

// checkListening drops what has a mistake.
func (o *options) checkListening() (errs []error) {
	mistake := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	for _, url := range o.listenURLs {
		if url.Reveal() == "" {
			mistake(`WithListenURL(""): give a URL like postgres://user:password@localhost:5432/dbname, or leave it out to listen to the pool's database`)
		} else if _, err := secret.Parse(url.Reveal()); err != nil {
			mistake("WithListenURL: %w: give a URL like postgres://user:password@localhost:5432/dbname", err)
		}
	}
	for _, listener := range o.listeners {
		if listener == nil {
			mistake("WithListener(nil): give the application's *bus.Listener, or leave it out for one of the App's own")
		}
	}
	if given := len(o.listenURLs) + len(o.listeners); given > 1 {
		mistake("%d ways to listen (WithListenURL %d times, WithListener %d times): give at most one", given, len(o.listenURLs), len(o.listeners))
	} else if given > 0 && !o.listens() {
		mistake("WithListenNotify(false) together with WithListenURL or WithListener: nothing would be listened to; leave one out")
	}
	if len(o.listeners) > 0 && o.reconnectDelay != 0 {
		mistake("WithNotifyReconnectDelay(%s) has no effect on the listener of WithListener: set ReconnectDelay of its bus.ListenerConfig", o.reconnectDelay)
	}
	if len(errs) > 0 {
		o.listenURLs, o.listeners = nil, nil
	}
	return errs
}

// listenURL returns what WithListenURL says, or "".
func (o *options) listenURL() string {
	if len(o.listenURLs) == 0 {
		return ""
	}
	return o.listenURLs[0].Reveal()
}

// ownsListener reports whether the App makes its listener.
func (o *options) ownsListener() bool { return len(o.listeners) == 0 }

// distinct returns the definitions that can be told apart, and what is wrong with the others.
func distinct(definitions []workflow.Definition) ([]workflow.Definition, error) {
	var errs []error
	var kept []workflow.Definition
	names := map[string]bool{}
	for i, definition := range definitions {
		switch {
		case bounds.Nothing(definition):
			errs = append(errs, fmt.Errorf("WithWorkflows: workflow %d of %d is nil: give what workflow.Define returns", i+1, len(definitions)))
		case names[definition.Name()]:
			errs = append(errs, fmt.Errorf("WithWorkflows: two workflows are named %.40q: rename one, or register it once", definition.Name()))
		default:
			names[definition.Name()] = true
			kept = append(kept, definition)
		}
	}
	return kept, errors.Join(errs...)
}

func setDefault[T comparable](value *T, fallback T) {
	var zero T
	if *value == zero {
		*value = fallback
	}
}

// checkDurations puts defaults in the place of durations that were left out, and of those that cannot be used, which it reports.
func checkDurations(o *options) (mistakes []error) {
	for _, duration := range []struct {
		option      string
		value       *time.Duration
		least, most time.Duration
		fallback    time.Duration
		instead     string
	}{
		{"WithLease", &o.lease, time.Second, bounds.LongestLease, DefaultLease, ""},
		{"WithRetention", &o.retention, bounds.Shortest, math.MaxInt64, 0, "to keep ended runs permanently"},
		{"WithNotifyFallbackInterval", &o.fallbackInterval, bounds.Shortest, bounds.Longest, DefaultNotifyFallbackInterval, ""},
		{"WithNotifyReconnectDelay", &o.reconnectDelay, bounds.Shortest, bounds.Longest, DefaultNotifyReconnectDelay, ""},
		{"WithEventRetention", &o.eventRetention, bounds.Shortest, math.MaxInt64, DefaultEventRetention, ""},
		{"WithSendKeyRetention", &o.sendKeyRetention, bounds.Shortest, math.MaxInt64, DefaultSendKeyRetention, ""},
	} {
		d := *duration.value
		if d != 0 && (d < duration.least || d > duration.most) {
			instead := cmp.Or(duration.instead, "for "+duration.fallback.String())
			mistakes = append(mistakes, fmt.Errorf("%s(%s): give %s to %s, or 0 %s", duration.option, d, duration.least, duration.most, instead))
			*duration.value = 0
		}
		setDefault(duration.value, duration.fallback)
	}
	return mistakes
}

// checkNumbers does the same with numbers.
func checkNumbers(o *options) (mistakes []error) {
	for _, size := range []struct {
		option         string
		value          *int
		most, fallback int
	}{
		{"WithMaxWorkflowsPerBatch", &o.maxWorkflows, bounds.MostPerBatch, DefaultMaxPerBatch},
		{"WithMaxTimersPerBatch", &o.maxTimers, bounds.MostPerBatch, DefaultMaxPerBatch},
		{"WithMaxMessagesPerBatch", &o.maxMessages, bounds.MostPerBatch, DefaultMaxPerBatch},
		{"WithMaxConcurrentRuns", &o.maxRuns, bounds.Most, DefaultMaxConcurrent},
		{"WithMaxConcurrentActivities", &o.maxActivities, bounds.Most, DefaultMaxConcurrent},
		{"WithMaxDeaths", &o.maxDeaths, bounds.Most, DefaultMaxDeaths},
		{"WithMaxInterruptions", &o.maxInterruptions, bounds.Most, DefaultMaxInterruptions},
	} {
		if n := *size.value; n < 0 || n > size.most {
			mistakes = append(mistakes, fmt.Errorf("%s(%d): give 1 to %d, or 0 for %d", size.option, n, size.most, size.fallback))
			*size.value = 0
		}
		setDefault(size.value, size.fallback)
	}
	return mistakes
}
