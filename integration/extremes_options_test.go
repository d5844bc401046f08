//nolint:forcetypeassert // a panic is a failure of the test
package integration_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"sync/atomic"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/riverjobs"
	"github.com/romancy-go/romancy/workflow"
)

// extremeOption is an option of an App.
type extremeOption struct {
	name   string // as in the table
	option any    // a function of one value
	alone  bool   // it cannot be given together with others, or leads to another database or schema
	secret bool   // no error shows the value
}

var extremeOptions = []extremeOption{
	{name: "romancy.WithDatabase(url)", option: romancy.WithDatabase, alone: true, secret: true},
	{name: "romancy.WithEventRetention(age)", option: romancy.WithEventRetention},
	{name: "romancy.WithLease(lease)", option: romancy.WithLease},
	{name: "romancy.WithListenNotify(enabled)", option: romancy.WithListenNotify},
	{name: "romancy.WithListenURL(url)", option: romancy.WithListenURL, alone: true, secret: true},
	{name: "romancy.WithListener(listener)", option: romancy.WithListener, alone: true},
	{name: "romancy.WithLogger(logger)", option: romancy.WithLogger, alone: true},
	{name: "romancy.WithMaxConcurrentActivities(n)", option: romancy.WithMaxConcurrentActivities},
	{name: "romancy.WithMaxConcurrentRuns(n)", option: romancy.WithMaxConcurrentRuns},
	{name: "romancy.WithMaxDeaths(n)", option: romancy.WithMaxDeaths},
	{name: "romancy.WithMaxInterruptions(n)", option: romancy.WithMaxInterruptions},
	{name: "romancy.WithMaxMessagesPerBatch(n)", option: romancy.WithMaxMessagesPerBatch},
	{name: "romancy.WithMaxTimersPerBatch(n)", option: romancy.WithMaxTimersPerBatch},
	{name: "romancy.WithMaxWorkflowsPerBatch(n)", option: romancy.WithMaxWorkflowsPerBatch},
	{name: "romancy.WithMeterProvider(provider)", option: romancy.WithMeterProvider},
	{name: "romancy.WithNotifyFallbackInterval(interval)", option: romancy.WithNotifyFallbackInterval},
	{name: "romancy.WithNotifyReconnectDelay(delay)", option: romancy.WithNotifyReconnectDelay},
	{name: "romancy.WithOutboxPublisher(publisher)", option: romancy.WithOutboxPublisher},
	{name: "romancy.WithPool(pool)", option: romancy.WithPool, alone: true},
	{name: "romancy.WithRetention(age)", option: romancy.WithRetention},
	{name: "romancy.WithSchema(name)", option: romancy.WithSchema, alone: true},
	{name: "romancy.WithSendKeyRetention(age)", option: romancy.WithSendKeyRetention},
	{name: "romancy.WithTracerProvider(provider)", option: romancy.WithTracerProvider},
}

// word is what an error calls the option.
func (o extremeOption) word() string {
	word, _, _ := strings.Cut(strings.TrimPrefix(o.name, "romancy."), "(")
	return word
}

func (o extremeOption) values() []reflect.Value { return extremesOf(reflect.TypeOf(o.option).In(0)) }

func (o extremeOption) with(value reflect.Value) romancy.Option {
	return reflect.ValueOf(o.option).Call([]reflect.Value{value})[0].Interface().(romancy.Option)
}

// errAccepted is the end of a context that an App is started with to hear of its mistakes alone.
var errAccepted = errors.New("no mistake")

// mistakes returns what an App says of its options, errAccepted if nothing.
func mistakes(options ...romancy.Option) error {
	ctx, end := context.WithCancelCause(context.Background())
	end(errAccepted)
	return romancy.NewApp(options...).Start(ctx)
}

// tryOptions gives Apps all options at their extremes: what is wrong they say of each, all at once, and with what is
// not they work.
func (w *extremeWorld) tryOptions() {
	w.t.Helper()
	rounds := 0
	for _, tried := range extremeOptions {
		if !tried.alone {
			rounds = max(rounds, len(tried.values()))
			continue
		}
		base := w.options
		if word := tried.word(); word == "WithPool" || word == "WithDatabase" {
			base = func(tried ...romancy.Option) []romancy.Option {
				return append(tried, romancy.WithWorkflows(w.probe), romancy.WithLogger(w.logger))
			}
		}
		for _, value := range tried.values() {
			shown := value.Interface()
			if tried.secret {
				shown = nil
			}
			w.judge(tried.name, tried.word(), shown, func() error { return unshown(mistakes(base(tried.with(value))...), shown) }, errAccepted)
		}
	}
	for round := range rounds {
		given := map[string]reflect.Value{}
		all := w.options()
		for _, tried := range extremeOptions {
			if !tried.alone {
				given[tried.name] = tried.values()[round%len(tried.values())]
				all = append(all, tried.with(given[tried.name]))
			}
		}
		said, broken := attempt(func() error { return mistakes(all...) })
		if broken {
			w.t.Errorf("options at their extremes, round %d: %v", round, said)
			continue
		}
		w.useAccepted(round, given, said)
	}
}

// useAccepted judges what an App has said of each of its options, and has one work with those that it has not spoken
// of.
func (w *extremeWorld) useAccepted(round int, given map[string]reflect.Value, said error) {
	w.t.Helper()
	options := w.options()
	for _, tried := range extremeOptions {
		value, ok := given[tried.name]
		if !ok {
			continue
		}
		var about []error
		for line := range strings.Lines(said.Error()) {
			if strings.Contains(line, tried.word()+"(") {
				about = append(about, errors.New(strings.TrimSpace(line)))
			}
		}
		if w.judge(tried.name, tried.word(), value.Interface(), func() error { return errors.Join(about...) }) {
			options = append(options, tried.with(value))
		}
	}
	if err, _ := attempt(func() error { return w.useApp(options) }); err != nil {
		w.t.Errorf("options at their extremes, round %d, are accepted and break later: %v", round, err)
	}
}

// unshown lets judge pass an error about what is never shown.
func unshown(err error, shown any) error {
	if err != nil && shown == nil && !errors.Is(err, errAccepted) {
		return fmt.Errorf("%w (the value is not shown: nil)", err)
	}
	return err
}

// useApp starts an App, has it do a little of everything and shuts it down.
func (w *extremeWorld) useApp(options []romancy.Option) error {
	app := romancy.NewApp(options...)
	if err := app.Start(w.ctx); err != nil {
		return err
	}
	return errors.Join(w.useEngine(app.Engine()), app.Shutdown(w.ctx))
}

// useEngine has a run do a little of everything.
func (w *extremeWorld) useEngine(engine *workflow.Engine) error {
	var failed error
	err := w.runOn(engine, func(ctx *workflow.Context) {
		id := ctx.InstanceID()
		for range 2 {
			failed = errors.Join(failed, engine.SendTo(w.ctx, id, "extremes", 1, workflow.WithSendKey("key")))
		}
		if _, err := workflow.Receive[int](ctx, "extremes"); err != nil {
			failed = errors.Join(failed, err)
		}
		failed = errors.Join(failed, workflow.SendEvent(ctx, workflow.OutgoingEvent{Type: "extreme"}), workflow.Sleep(ctx, time.Millisecond))
		if _, err := workflow.WaitEvent[any](ctx, "extreme", workflow.WithTimeout(0)); err != nil && !errors.Is(err, workflow.ErrTimeout) {
			failed = errors.Join(failed, err) // it may have expired
		}
		_, err := harmless.Execute(ctx, 0)
		failed = errors.Join(failed, err)
	})
	if errors.Is(err, workflow.ErrNotFound) {
		err = nil // it was kept for a millisecond only
	}
	for _, sweep := range []func(context.Context) (int, error){
		engine.SweepResume, engine.SweepTimers, engine.SweepChannelTimeouts, engine.SweepRetention,
	} {
		_, sweepErr := sweep(w.ctx)
		err = errors.Join(err, sweepErr)
	}
	return errors.Join(err, failed)
}

var harmless = workflow.DefineActivity("harmless", func(context.Context, int) (int, error) { return 1, nil })

func exerciseEngine(w *extremeWorld, given any) error {
	engine, err := workflow.NewEngine(given.(workflow.Config))
	if err != nil {
		return err
	}
	if err := engine.Start(w.ctx); err != nil {
		return err
	}
	return errors.Join(w.useEngine(engine), engine.Shutdown(w.ctx))
}

// seenPublisher says when it was called.
type seenPublisher struct{ calls atomic.Int64 }

func (p *seenPublisher) Publish(_ string, messages ...*message.Message) error {
	p.calls.Add(int64(len(messages)))
	return nil
}

func (*seenPublisher) Close() error { return nil }

func exerciseRelay(w *extremeWorld, given any) error {
	config := given.(outbox.RelayConfig)
	seen := &seenPublisher{}
	config.Publisher = seen
	relay, err := outbox.NewRelay(config)
	if err != nil {
		return err
	}
	if err := pgx.BeginFunc(w.ctx, w.pool, func(tx pgx.Tx) error { return outbox.Add(w.ctx, tx, outbox.Event{Topic: "extremes"}) }); err != nil {
		return err
	}
	err = relay.Start(w.ctx)
	for began := time.Now(); err == nil && seen.calls.Load() == 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > extremePatience/2 {
			err = errors.New("the event is not published")
		}
	}
	_, retainErr := relay.Retain(w.ctx)
	_, sweepErr := relay.Sweep(w.ctx)
	return errors.Join(err, retainErr, sweepErr, relay.Shutdown(w.ctx))
}

func newSweep() riverjobs.Sweep {
	return riverjobs.Sweep{Kind: riverjobs.KindResume, Run: func(context.Context) (int, error) { return 0, nil }}
}

func exerciseJobs(w *extremeWorld, config riverjobs.Config) error {
	jobs, err := riverjobs.New(config)
	if err != nil {
		return err
	}
	err = jobs.Start(w.ctx)
	for _, at := range extremeTimes {
		jobs.LowerDeadline(at)
	}
	jobs.Recheck()
	return errors.Join(err, jobs.Stop(w.ctx))
}

func (w *extremeWorld) notifier() *bus.Notifier {
	notifier, err := bus.NewNotifier(bus.NotifierConfig{Pool: w.pool, Logger: w.logger})
	if err != nil {
		w.t.Fatal(err)
	}
	return notifier
}

func (w *extremeWorld) relay() *outbox.Relay {
	relay, err := outbox.NewRelay(outbox.RelayConfig{Pool: w.pool, Publisher: &seenPublisher{}, Logger: w.logger})
	if err != nil {
		w.t.Fatal(err)
	}
	return relay
}

var wokenTables = watermillsql.SubscriberConfig{
	SchemaAdapter: watermillsql.DefaultPostgreSQLSchema{}, OffsetsAdapter: watermillsql.DefaultPostgreSQLOffsetsAdapter{}, ConsumerGroup: "extremes",
}
