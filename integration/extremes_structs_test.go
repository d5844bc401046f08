//nolint:forcetypeassert // a panic is a failure of the test
package integration_test

import (
	"context"
	"errors"
	"reflect"
	"slices"

	"github.com/jackc/pgx/v5"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/riverjobs"
	"github.com/romancy-go/romancy/workflow"
)

// extremeStruct tries the fields of a struct that users fill in.
type extremeStruct struct {
	name   string
	sample func(w *extremeWorld) any // a valid one
	// use takes one with a field at an extreme as far as its mistakes are found; nil: they are found when it is
	// exercised.
	use func(w *extremeWorld, given any) error
	// exercise does with an accepted one what it is for; nil: use has.
	exercise func(w *extremeWorld, given any) error
	// elsewhere are the fields of which an accepted value leads to another database or schema.
	elsewhere []string
	// secret are the fields that no error shows.
	secret     []string
	documented []error
	words      map[string]string // what an error calls a field, if not by its name
}

func (s extremeStruct) fields() (fields []reflect.StructField) {
	of := reflect.TypeOf(s.sample(&extremeWorld{}))
	for field := range of.Fields() {
		if field.IsExported() && !field.Anonymous && isKind(field.Type) {
			fields = append(fields, field)
		}
	}
	return fields
}

// isKind reports whether extremes are tried of a type: what givenNames finds in the source.
func isKind(of reflect.Type) bool {
	switch of.Kind() {
	case reflect.Slice:
		return isKind(of.Elem())
	case reflect.Map:
		return isKind(of.Key()) || isKind(of.Elem())
	case reflect.Interface:
		return of.PkgPath() != ""
	case reflect.Struct:
		return of.String() == "time.Time"
	case reflect.Bool, reflect.Func:
		return false
	default:
		return true
	}
}

// withField returns a copy of given with a field set.
func withField(given any, field string, value reflect.Value) any {
	changed := reflect.New(reflect.TypeOf(given)).Elem()
	changed.Set(reflect.ValueOf(given))
	changed.FieldByName(field).Set(value)
	return changed.Interface()
}

// tryStruct tries each extreme of each field alone, and then exercises those that were accepted, many together.
func (w *extremeWorld) tryStruct(s extremeStruct) {
	w.t.Helper()
	accepted := map[string][]reflect.Value{}
	rounds := 0
	for _, field := range s.fields() {
		word := field.Name
		if other := s.words[field.Name]; other != "" {
			word = other
		}
		for _, value := range extremesOf(field.Type) {
			given := withField(s.sample(w), field.Name, value)
			shown := value.Interface()
			if slices.Contains(s.secret, field.Name) {
				shown = nil
			}
			if w.judge(s.name+"."+field.Name, word, shown, func() error { return unshown(s.use(w, given), shown) }, s.documented...) {
				accepted[field.Name] = append(accepted[field.Name], value)
			}
		}
		if !slices.Contains(s.elsewhere, field.Name) && field.Name != "Logger" {
			rounds = max(rounds, len(accepted[field.Name]))
		}
	}
	if s.exercise == nil {
		return
	}
	for round := range rounds {
		given := w.together(s, accepted, round)
		if err, _ := attempt(func() error { return s.exercise(w, given) }); err != nil {
			w.t.Errorf("%s is accepted and breaks later: %v\nwith %+v", s.name, err, given)
		}
	}
}

// together returns a struct with all fields at extremes that are accepted, as far as they do not exclude each other.
func (w *extremeWorld) together(s extremeStruct, accepted map[string][]reflect.Value, round int) any {
	all := s.sample(w)
	chosen := map[string]reflect.Value{}
	for name, values := range accepted {
		if name != "Logger" && !slices.Contains(s.elsewhere, name) { // what is logged of the others is looked at
			chosen[name] = values[round%len(values)]
			all = withField(all, name, chosen[name])
		}
	}
	if s.use(w, all) == nil {
		return all
	}
	given := s.sample(w)
	for name, value := range chosen {
		if next := withField(given, name, value); s.use(w, next) == nil {
			given = next
		}
	}
	return given
}

// extremeStructs are the structs that users fill in.
var extremeStructs = []extremeStruct{
	{
		name: "workflow.Config",
		sample: func(w *extremeWorld) any {
			return workflow.Config{Pool: w.pool, Workflows: w.definitions(), Logger: w.logger}
		},
		use: func(_ *extremeWorld, given any) error {
			_, err := workflow.NewEngine(given.(workflow.Config))
			return err
		},
		exercise:  exerciseEngine,
		elsewhere: []string{"Schema", "Workflows"},
	},
	{
		name:   "bus.ListenerConfig",
		sample: func(w *extremeWorld) any { return bus.ListenerConfig{Pool: w.pool, Logger: w.logger} },
		use: func(_ *extremeWorld, given any) error {
			_, err := bus.NewListener(given.(bus.ListenerConfig))
			return err
		},
		exercise: func(w *extremeWorld, given any) error {
			listener, err := bus.NewListener(given.(bus.ListenerConfig))
			if err != nil {
				return err
			}
			err = listener.Start(w.ctx)
			subscription, subscribeErr := listener.Subscribe(0, "extremes")
			if subscribeErr == nil {
				_, subscribeErr = subscription.Next(w.ctx) // the catch-up of the first connection
			}
			return errors.Join(err, subscribeErr, listener.Close(w.ctx))
		},
		elsewhere: []string{"ListenURL"},
		secret:    []string{"ListenURL"},
	},
	{
		name:   "bus.NotifierConfig",
		sample: func(w *extremeWorld) any { return bus.NotifierConfig{Pool: w.pool, Logger: w.logger} },
		use: func(_ *extremeWorld, given any) error {
			_, err := bus.NewNotifier(given.(bus.NotifierConfig))
			return err
		},
		exercise: func(w *extremeWorld, given any) error {
			notifier, err := bus.NewNotifier(given.(bus.NotifierConfig))
			if err != nil {
				return err
			}
			err = notifier.Start(w.ctx)
			for range 10 {
				notifier.Notify("extremes", "one")
			}
			return errors.Join(err, pgx.BeginFunc(w.ctx, w.pool, func(tx pgx.Tx) error { return notifier.NotifyTx(w.ctx, tx, "extremes", "two") }), notifier.Close(w.ctx))
		},
		words: map[string]string{"Mode": "Mode"},
	},
	{
		name: "bus.SubscriberConfig",
		sample: func(w *extremeWorld) any {
			return bus.SubscriberConfig{Pool: w.pool, Listener: w.listener(), Logger: w.logger}
		},
		use: func(_ *extremeWorld, given any) error {
			_, err := bus.NewSubscriber(given.(bus.SubscriberConfig))
			return err
		},
		exercise: func(w *extremeWorld, given any) error {
			subscriber, err := bus.NewSubscriber(given.(bus.SubscriberConfig))
			if err != nil {
				return err
			}
			_, err = subscriber.Subscribe(w.ctx, w.app.Channels().WorkflowResumable)
			return errors.Join(err, subscriber.Close())
		},
		elsewhere: []string{"Schema"},
	},
	{
		name:   "bus.PublisherConfig",
		sample: func(*extremeWorld) any { return bus.PublisherConfig{} },
		use: func(w *extremeWorld, given any) error {
			publisher, err := bus.NewPublisher(w.pool, given.(bus.PublisherConfig))
			if err == nil {
				err = errors.Join(publisher.Publish("extremes", message.NewMessage("1", []byte("one"))), publisher.Close())
			}
			return err
		},
		documented: []error{context.DeadlineExceeded}, // a millisecond may not do
	},
	{
		name:   "bus.WakeConfig",
		sample: func(*extremeWorld) any { return bus.WakeConfig{} },
		use: func(w *extremeWorld, given any) error {
			waker, err := bus.WakeOn(w.listener(), "extremes", given.(bus.WakeConfig))
			if err == nil {
				waker.HandleError(nil, false, nil)
				waker.HandleError(nil, false, errors.New("once"))
				waker.Close()
			}
			return err
		},
	},
	{
		name:   "bus.WokenConfig",
		sample: func(w *extremeWorld) any { return bus.WokenConfig{Listener: w.listener(), Logger: w.logger} },
		use: func(w *extremeWorld, given any) error {
			subscriber, err := bus.NewWokenSubscriber(watermillsql.BeginnerFromPgx(w.pool), wokenTables, given.(bus.WokenConfig))
			if err == nil {
				err = subscriber.Close()
			}
			return err
		},
	},
	{
		name:   "bus.Channels",
		sample: func(*extremeWorld) any { return bus.ChannelsFor("romancy") },
		use:    func(_ *extremeWorld, given any) error { return given.(bus.Channels).Validate() },
		words:  map[string]string{"WorkflowResumable": "channel", "TimerExpired": "channel", "ChannelMessage": "channel", "OutboxPending": "channel"},
	},
	{
		name:   "bus.Message",
		sample: func(*extremeWorld) any { return bus.Message{Channel: "extremes"} },
		use: func(w *extremeWorld, given any) error {
			return w.inTx(func(tx pgx.Tx) error { return w.notifier().NotifyTxMany(w.ctx, tx, []bus.Message{given.(bus.Message)}) })
		},
	},
	{
		name: "outbox.RelayConfig",
		sample: func(w *extremeWorld) any {
			return outbox.RelayConfig{Pool: w.pool, Publisher: &seenPublisher{}, Listener: w.listener(), Logger: w.logger}
		},
		use: func(_ *extremeWorld, given any) error {
			_, err := outbox.NewRelay(given.(outbox.RelayConfig))
			return err
		},
		exercise:  exerciseRelay,
		elsewhere: []string{"Schema"},
	},
	{
		name:   "outbox.WriterConfig",
		sample: func(*extremeWorld) any { return outbox.WriterConfig{} },
		use: func(_ *extremeWorld, given any) error {
			_, err := outbox.NewWriter(given.(outbox.WriterConfig))
			return err
		},
		exercise: func(w *extremeWorld, given any) error {
			writer, err := outbox.NewWriter(given.(outbox.WriterConfig))
			if err != nil {
				return err
			}
			return w.inTx(func(tx pgx.Tx) error { return writer.Add(w.ctx, tx, outbox.Event{Topic: "extremes"}) })
		},
		elsewhere: []string{"Schema"},
	},
	{
		name:   "outbox.Event",
		sample: func(*extremeWorld) any { return outbox.Event{Topic: "extremes"} },
		use: func(w *extremeWorld, given any) error {
			return w.inTx(func(tx pgx.Tx) error { return outbox.Add(w.ctx, tx, given.(outbox.Event)) })
		},
	},
	{
		name:   "outbox.DeadLetter",
		sample: func(*extremeWorld) any { return outbox.DeadLetter{} },
		use: func(w *extremeWorld, given any) error {
			letter := given.(outbox.DeadLetter)
			_, err := w.relay().DeadLetters(w.ctx, 1, &letter)
			return err
		},
	},
	{
		name: "riverjobs.Config",
		sample: func(w *extremeWorld) any {
			return riverjobs.Config{Pool: w.pool, Sweeps: []riverjobs.Sweep{newSweep()}, Logger: w.logger}
		},
		use:       func(_ *extremeWorld, given any) error { _, err := riverjobs.New(given.(riverjobs.Config)); return err },
		exercise:  func(w *extremeWorld, given any) error { return exerciseJobs(w, given.(riverjobs.Config)) },
		elsewhere: []string{"Schema"},
	},
	{
		name:   "riverjobs.Sweep",
		sample: func(*extremeWorld) any { return newSweep() },
		use: func(w *extremeWorld, given any) error {
			_, err := riverjobs.New(riverjobs.Config{Pool: w.pool, Sweeps: []riverjobs.Sweep{given.(riverjobs.Sweep)}, Logger: w.logger})
			return err
		},
		exercise: func(w *extremeWorld, given any) error {
			return exerciseJobs(w, riverjobs.Config{Pool: w.pool, Sweeps: []riverjobs.Sweep{given.(riverjobs.Sweep)}, Logger: w.logger})
		},
	},
	{
		name:   "workflow.RetryPolicy",
		sample: func(*extremeWorld) any { return workflow.RetryPolicy{} },
		use: func(w *extremeWorld, given any) (err error) {
			retried := workflow.DefineActivity("retried", func(context.Context, int) (int, error) { return 1, nil }, workflow.WithRetry(given.(workflow.RetryPolicy)))
			w.inRun(func(ctx *workflow.Context) { _, err = retried.Execute(ctx, 0) })
			return err
		},
	},
	{
		name:   "workflow.OutgoingEvent",
		sample: func(*extremeWorld) any { return workflow.OutgoingEvent{Type: "extreme", Source: "test"} },
		use: func(w *extremeWorld, given any) error {
			return w.app.Engine().SendEvent(w.ctx, given.(workflow.OutgoingEvent))
		},
		words: map[string]string{"Type": "event type", "Source": "event source", "ID": "event id", "Attributes": "attribute"},
	},
	{
		name:   "workflow.Filter",
		sample: func(*extremeWorld) any { return workflow.Filter{} },
		use: func(w *extremeWorld, given any) error {
			_, err := w.app.Engine().List(w.ctx, given.(workflow.Filter))
			return err
		},
	},
	{
		name:   "romancy.MigrationState",
		sample: func(*extremeWorld) any { return romancy.MigrationState{} },
		use: func(_ *extremeWorld, given any) error {
			_, err := romancy.MigrationSQL(given.(romancy.MigrationState))
			return err
		},
	},
}

func (w *extremeWorld) definitions() []workflow.Definition {
	if w.probe == nil {
		return nil
	}
	return []workflow.Definition{w.probe}
}

func (w *extremeWorld) listener() *bus.Listener {
	if w.app == nil {
		return nil
	}
	return w.app.Listener()
}

// inTx calls do in a transaction that is rolled back.
func (w *extremeWorld) inTx(do func(tx pgx.Tx) error) error {
	tx, err := w.pool.Begin(w.ctx)
	if err != nil {
		return err
	}
	defer tx.Rollback(w.ctx)
	return do(tx)
}
