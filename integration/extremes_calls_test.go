package integration_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"time"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/riverjobs"
	"github.com/romancy-go/romancy/workflow"
)

var (
	extremeTxs  = []pgx.Tx{nil, (*pgxpool.Tx)(nil)}
	extremeRaws = [][]byte{nil, {}, []byte(mebibyte), []byte("\xff\xfe"), []byte("{\"a\x00")}
)

// free is for what no error is expected to describe: whatever is said, nothing may panic or hang.
func free(do func()) func() error { return func() error { do(); return nil } }

// extremeCalls are the functions and methods that are called from outside of runs.
var extremeCalls = []extremeRow{
	{[]string{"romancy.Migrate(pool)", "romancy.Migrate(opts)", "romancy.PlanMigration(pool)", "romancy.PlanMigration(opts)", "romancy.MigrationSQL(opts)"}, func(w *extremeWorld) {
		tryEach(w, "romancy.Migrate", "pool", extremePools, func(pool *pgxpool.Pool) error { return romancy.Migrate(w.ctx, pool, nil) })
		tryEach(w, "romancy.PlanMigration", "pool", extremePools, func(pool *pgxpool.Pool) error {
			_, err := romancy.PlanMigration(w.ctx, pool, nil)
			return err
		})
		w.judge("romancy.MigrationSQL", "opts", nil, func() error { _, err := romancy.MigrationSQL(romancy.MigrationState{}, nil); return err })
		w.judge("romancy.Migrate", "opts", nil, func() error { return romancy.Migrate(w.ctx, w.pool, nil, romancy.WithLogger(nil)) })
	}},
	{[]string{"romancy.NewApp(opts)", "romancy.WithWorkflows(definitions)", "romancy.WithRiver(client)", "romancy.WithRiver(workers)"}, func(w *extremeWorld) {
		w.judge("romancy.NewApp", "opts", nil, func() error { return mistakes(w.options(nil)...) }, errAccepted)
		tryEach(w, "romancy.WithWorkflows", "WithWorkflows", []workflow.Definition{nil, (*workflow.Workflow[int, int])(nil)}, func(definition workflow.Definition) error {
			return mistakes(w.options(romancy.WithWorkflows(definition))...)
		}, errAccepted)
		workers := river.NewWorkers()
		client, err := river.NewClient(riverpgxv5.New(w.pool), &river.Config{Workers: workers, Queues: map[string]river.QueueConfig{"extremes": {MaxWorkers: 1}}, Logger: w.logger})
		if err != nil {
			w.t.Fatal(err)
		}
		tryEach(w, "romancy.WithRiver", "WithRiver", []*river.Workers{nil, workers}, func(workers *river.Workers) error {
			return mistakes(w.options(romancy.WithRiver(nil, workers))...)
		})
		w.judge("romancy.WithRiver", "WithRiver", nil, func() error { return mistakes(w.options(romancy.WithRiver(client, nil))...) })
	}},
	{[]string{"bus.ChannelMessage.UnmarshalJSON(text)", "bus.Channels.Event(name)", "bus.Channels.Name(event)", "bus.ChannelsFor(schema)", "bus.TopicChannel(topic)", "bus.ListenerConfig.Format(f)"}, func(w *extremeWorld) {
		tryEach(w, "bus.ChannelMessage.UnmarshalJSON", "", extremeRaws, func(text []byte) error {
			return free(func() { _ = new(bus.ChannelMessage).UnmarshalJSON(text) })()
		})
		tryEach(w, "bus.Channels", "", extremeTexts, func(text string) error {
			channels := bus.ChannelsFor(text)
			_, ours := channels.Event(text)
			if name := channels.Name(bus.Event(text)); ours || name != "" {
				return fmt.Errorf("%.40q is one of %q", text, name)
			}
			if channel := bus.TopicChannel(text); len(channel) > bus.MaxChannelName {
				return fmt.Errorf("the channel has %d bytes", len(channel))
			}
			return nil
		})
		w.judge("bus.ListenerConfig.Format", "", nil, func() error {
			_, err := fmt.Fprintf(io.Discard, "%v %+v %#v %s %d", bus.ListenerConfig{}, bus.ListenerConfig{}, bus.ListenerConfig{}, bus.ListenerConfig{}, bus.ListenerConfig{})
			return err
		})
	}},
	{[]string{"bus.Decode(msg)"}, func(w *extremeWorld) {
		w.judge("bus.Decode", "message", nil, func() error { _, err := bus.Decode[bus.OutboxPending](nil); return err })
	}},
	{[]string{"bus.Listener.Subscribe(buffer)", "bus.Listener.Subscribe(channels)"}, func(w *extremeWorld) {
		subscribe := func(buffer int, channel string) error {
			subscription, err := w.listener().Subscribe(buffer, channel)
			if err == nil {
				subscription.Close()
			}
			return err
		}
		tryEach(w, "bus.Listener.Subscribe", "buffer", extremeInts, func(buffer int) error { return subscribe(buffer, "extremes") })
		tryEach(w, "bus.Listener.Subscribe", "channel", extremeTexts, func(channel string) error { return subscribe(0, channel) })
	}},
	{[]string{"bus.NewPublisher(pool)", "bus.Publisher.Publish(topic)", "bus.Publisher.Publish(messages)", "bus.TxPublisher(tx)"}, func(w *extremeWorld) {
		tryEach(w, "bus.NewPublisher", "pool", extremePools, func(pool *pgxpool.Pool) error { _, err := bus.NewPublisher(pool, bus.PublisherConfig{}); return err })
		publisher, err := bus.NewPublisher(w.pool, bus.PublisherConfig{})
		if err != nil {
			w.t.Fatal(err)
		}
		tryEach(w, "bus.Publisher.Publish", "channel", extremeTexts, func(topic string) error { return publisher.Publish(topic, message.NewMessage("1", nil)) })
		w.judge("bus.Publisher.Publish", "message", nil, func() error { return publisher.Publish("extremes", message.NewMessage("1", nil), nil) })
		tryEach(w, "bus.TxPublisher", "transaction", extremeTxs, func(tx pgx.Tx) error { return bus.TxPublisher(tx).Publish("extremes", message.NewMessage("1", nil)) })
	}},
	{[]string{
		"bus.Notifier.Notify(channel)", "bus.Notifier.Notify(payload)", "bus.Notifier.NotifyTx(channel)", "bus.Notifier.NotifyTx(payload)", "bus.Notifier.NotifyTx(tx)",
		"bus.Notifier.NotifyTxID(tx)", "bus.Notifier.NotifyTxID(xid)", "bus.Notifier.NotifyTxMany(tx)",
	}, func(w *extremeWorld) {
		notifier, err := bus.NewNotifier(bus.NotifierConfig{Pool: w.pool, Logger: w.logger, Mode: bus.ModeCoalesced})
		if err != nil {
			w.t.Fatal(err)
		}
		if err := notifier.Start(w.ctx); err != nil {
			w.t.Fatal(err)
		}
		for _, text := range extremeTexts {
			w.judge("bus.Notifier.Notify", "", text, free(func() { notifier.Notify(text, ""); notifier.Notify("extremes", text) }))
			w.judge("bus.Notifier.NotifyTx", "channel", text, func() error {
				return w.inTx(func(tx pgx.Tx) error { return notifier.NotifyTx(w.ctx, tx, text, "") })
			})
			w.judge("bus.Notifier.NotifyTx", "payload", text, func() error {
				return w.inTx(func(tx pgx.Tx) error { return notifier.NotifyTx(w.ctx, tx, "extremes", text) })
			})
			w.judge("bus.Notifier.NotifyTxID", "transaction id", text, func() error {
				return w.inTx(func(tx pgx.Tx) error {
					return notifier.NotifyTxID(w.ctx, tx, text, []bus.Message{{Channel: "extremes"}})
				})
			})
		}
		tryEach(w, "bus.Notifier.NotifyTx", "transaction", extremeTxs, func(tx pgx.Tx) error { return notifier.NotifyTx(w.ctx, tx, "extremes", "") })
		tryEach(w, "bus.Notifier.NotifyTxMany", "transaction", extremeTxs, func(tx pgx.Tx) error { return notifier.NotifyTxMany(w.ctx, tx, []bus.Message{{Channel: "extremes"}}) })
		tryEach(w, "bus.Notifier.NotifyTxID", "transaction", extremeTxs, func(tx pgx.Tx) error {
			return notifier.NotifyTxID(w.ctx, tx, "1", []bus.Message{{Channel: "extremes"}})
		})
		w.judge("bus.Notifier.Close", "", nil, func() error { return notifier.Close(w.ctx) })
	}},
	{[]string{"bus.NotifyingPublisher(publisher)", "bus.NotifyingPublisher(notifier)", "bus.NotifyingSchema(adapter)", "bus.NotifyingSchemaOn(adapter)"}, func(w *extremeWorld) {
		tryEach(w, "bus.NotifyingPublisher", "publisher", []message.Publisher{nil, (*crashPublisher)(nil)}, func(publisher message.Publisher) error {
			_, err := bus.NotifyingPublisher(publisher, w.notifier(), nil)
			return err
		})
		w.judge("bus.NotifyingPublisher", "notifier", nil, func() error { _, err := bus.NotifyingPublisher(&seenPublisher{}, nil, nil); return err })
		tryEach(w, "bus.NotifyingSchema", "", []watermillsql.SchemaAdapter{nil, (*watermillsql.DefaultPostgreSQLSchema)(nil)}, func(adapter watermillsql.SchemaAdapter) error {
			if bus.NotifyingSchema(adapter) != nil || bus.NotifyingSchemaOn(adapter, nil) != nil {
				return errors.New("it is an adapter")
			}
			return nil
		})
	}},
	{[]string{"bus.Subscriber.Subscribe(topic)", "bus.Subscriber.SubscribeInitialize(topic)", "bus.WakeOn(listener)", "bus.WakeOn(channel)", "bus.Waker.HandleError(logger)"}, func(w *extremeWorld) {
		subscriber, err := w.app.Subscriber(bus.SubscriberConfig{})
		if err != nil {
			w.t.Fatal(err)
		}
		tryEach(w, "bus.Subscriber.Subscribe", "channel", extremeTexts, func(topic string) error { _, err := subscriber.Subscribe(w.ctx, topic); return err })
		tryEach(w, "bus.Subscriber.SubscribeInitialize", "channel", extremeTexts, subscriber.SubscribeInitialize)
		w.judge("bus.Subscriber.Close", "", nil, subscriber.Close)
		tryEach(w, "bus.WakeOn", "channel", extremeTexts, func(channel string) error {
			waker, err := bus.WakeOn(w.listener(), channel, bus.WakeConfig{})
			if err == nil {
				waker.Close()
				waker.HandleError(nil, true, nil)
			}
			return err
		})
		w.judge("bus.WakeOn", "listener", nil, func() error { _, err := bus.WakeOn(nil, "extremes", bus.WakeConfig{}); return err })
	}},
	{[]string{"bus.NewWokenSubscriber(db)", "bus.NewWokenSubscriber(config)", "bus.WokenSubscriber.Subscribe(topic)", "bus.WokenSubscriber.SubscribeInitialize(topic)"}, func(w *extremeWorld) {
		w.judge("bus.NewWokenSubscriber", "db", nil, func() error {
			_, err := bus.NewWokenSubscriber(nil, wokenTables, bus.WokenConfig{Listener: w.listener()})
			return err
		})
		w.judge("bus.NewWokenSubscriber", "", nil, free(func() { // what a config may be is watermill-sql's affair
			_, _ = bus.NewWokenSubscriber(watermillsql.BeginnerFromPgx(w.pool), watermillsql.SubscriberConfig{}, bus.WokenConfig{Listener: w.listener()})
		}))
		subscriber, err := bus.NewWokenSubscriber(watermillsql.BeginnerFromPgx(w.pool), wokenTables, bus.WokenConfig{Listener: w.listener(), Logger: w.logger})
		if err != nil {
			w.t.Fatal(err)
		}
		tryEach(w, "bus.WokenSubscriber", "", extremeTexts, func(topic string) error { // what a topic may be is watermill-sql's affair
			return free(func() { _ = subscriber.SubscribeInitialize(topic); _, _ = subscriber.Subscribe(w.ctx, topic) })()
		})
		w.judge("bus.WokenSubscriber.Close", "", nil, subscriber.Close)
	}},
	{[]string{"outbox.Add(tx)", "outbox.Tx(tx)", "outbox.Writer.Add(tx)", "outbox.Writer.Tx(tx)"}, func(w *extremeWorld) {
		event := outbox.Event{Topic: "extremes"}
		tryEach(w, "outbox.Add", "tx", extremeTxs, func(tx pgx.Tx) error { return outbox.Add(w.ctx, tx, event) })
		tryEach(w, "outbox.Tx", "tx", extremeTxs, func(tx pgx.Tx) error { return outbox.Tx(tx).Publish("extremes", message.NewMessage("1", nil)) })
		tryEach(w, "outbox.Writer.Add", "tx", extremeTxs, func(tx pgx.Tx) error { return w.app.Outbox().Add(w.ctx, tx, event) })
		tryEach(w, "outbox.Writer.Tx", "tx", extremeTxs, func(tx pgx.Tx) error { return w.app.Outbox().Tx(tx).Publish("extremes", message.NewMessage("1", nil)) })
		w.judge("outbox.Tx", "message", nil, func() error { return w.inTx(func(tx pgx.Tx) error { return outbox.Tx(tx).Publish("extremes", nil) }) })
	}},
	{[]string{"outbox.Relay.DeadLetters(limit)", "outbox.Relay.DeadLetters(after)", "outbox.Relay.DiscardDeadLetters(ids)", "outbox.Relay.Requeue(ids)"}, func(w *extremeWorld) {
		relay := w.relay()
		tryEach(w, "outbox.Relay.DeadLetters", "limit", extremeInts, func(limit int) error { _, err := relay.DeadLetters(w.ctx, limit, nil); return err })
		tryEach(w, "outbox.Relay.DiscardDeadLetters", "ID", extremeTexts, func(id string) error { _, err := relay.DiscardDeadLetters(w.ctx, id); return err })
		tryEach(w, "outbox.Relay.Requeue", "ID", extremeTexts, func(id string) error { _, err := relay.Requeue(w.ctx, id); return err })
	}},
	{[]string{"riverjobs.Migrate(pool)", "riverjobs.Migrate(schemaName)", "riverjobs.Jobs.LowerDeadline(at)"}, func(w *extremeWorld) {
		tryEach(w, "riverjobs.Migrate", "pool", extremePools, func(pool *pgxpool.Pool) error { return riverjobs.Migrate(w.ctx, pool, "romancy") })
		tryEach(w, "riverjobs.Migrate", "schema", extremeTexts, func(name string) error { return riverjobs.Migrate(w.ctx, w.pool, name) })
		due := newSweep()
		due.NextDue = func(context.Context) (time.Time, bool, error) { return time.Unix(1<<60, 0), true, nil }
		w.judge("riverjobs.Jobs.LowerDeadline", "", nil, func() error {
			return exerciseJobs(w, riverjobs.Config{Pool: w.pool, Sweeps: []riverjobs.Sweep{due}, Logger: w.logger, Healthy: func() bool { return true }})
		})
	}},
	{[]string{
		"workflow.Engine.Cancel(id)", "workflow.Engine.Cancel(reason)", "workflow.Engine.Erase(id)", "workflow.Engine.Get(id)", "workflow.Engine.History(id)",
		"workflow.Engine.Retry(id)", "workflow.Workflow.Run(id)", "workflow.Workflow.Run(e)",
	}, func(w *extremeWorld) {
		engine := w.app.Engine()
		for _, id := range extremeTexts {
			for method, call := range map[string]func() error{
				"Cancel":  func() error { return engine.Cancel(w.ctx, id, "") },
				"Erase":   func() error { return engine.Erase(w.ctx, id) },
				"Get":     func() error { _, err := engine.Get(w.ctx, id); return err },
				"History": func() error { _, err := engine.History(w.ctx, id); return err },
				"Retry":   func() error { return engine.Retry(w.ctx, id) },
				"Result":  func() error { _, err := w.probe.Run(engine, id).Result(w.ctx); return err },
			} {
				if err, broken := attempt(call); broken || !errors.Is(err, workflow.ErrNotFound) {
					w.t.Errorf("%s of a run with the id %.40q: got %.300v, want ErrNotFound", method, id, err)
				}
			}
			w.judge("workflow.Engine.Cancel", "reason", id, func() error { return engine.Cancel(w.ctx, "nobody", id) }, workflow.ErrNotFound)
		}
		w.judge("workflow.Workflow.Run", "", nil, func() error { _, err := w.probe.Run(nil, "id").Result(w.ctx); return err }, workflow.ErrNotStarted)
	}},
	{[]string{
		"workflow.Engine.Publish(channel)", "workflow.Engine.PublishTx(channel)", "workflow.Engine.PublishTx(tx)", "workflow.Engine.SendEventTx(tx)", "workflow.Engine.SendHandler(channel)",
		"workflow.Engine.SendTo(channel)", "workflow.Engine.SendTo(instanceID)", "workflow.Engine.SendToTx(channel)", "workflow.Engine.SendToTx(instanceID)",
		"workflow.Engine.SendToTx(tx)", "workflow.Engine.StartHandler(definition)", "workflow.MessageRunID(definition)", "workflow.MessageRunID(msg)",
		"workflow.TargetFromMetadata(msg)", "workflow.WithSendKey(key)", "workflow.WithMetadata(metadata)",
	}, trySending},
	{[]string{
		"workflow.Workflow.Start(e)", "workflow.Workflow.StartMany(e)", "workflow.Workflow.StartTx(e)", "workflow.Workflow.StartTx(tx)", "workflow.WithDelay(d)",
		"workflow.WithID(id)", "workflow.WithPriority(n)", "workflow.WithStartAt(t)",
	}, tryStarting},
	{[]string{"workflow.Define(name)", "workflow.WithMaxConcurrentActivities(n)", "workflow.WithMaxConcurrentRuns(n)"}, func(w *extremeWorld) {
		define := func(name string, option workflow.DefineOption) error {
			flow := workflow.Define(name, func(*workflow.Context, int) (int, error) { return 0, nil }, option)
			_, err := workflow.NewEngine(workflow.Config{Pool: w.pool, Workflows: []workflow.Definition{flow}})
			return err
		}
		tryEach(w, "workflow.Define", "name", extremeTexts, func(name string) error { return define(name, nil) })
		tryEach(w, "workflow.WithMaxConcurrentActivities", "WithMaxConcurrentActivities", extremeInts, func(n int) error { return define("w", workflow.WithMaxConcurrentActivities(n)) })
		tryEach(w, "workflow.WithMaxConcurrentRuns", "WithMaxConcurrentRuns", extremeInts, func(n int) error { return define("w", workflow.WithMaxConcurrentRuns(n)) })
	}},
}

func trySending(w *extremeWorld) {
	engine := w.app.Engine()
	for _, text := range extremeTexts {
		w.judge("workflow.Engine.Publish", "channel", text, func() error { return engine.Publish(w.ctx, text, 1) })
		w.judge("workflow.Engine.PublishTx", "channel", text, func() error { return w.inTx(func(tx pgx.Tx) error { return engine.PublishTx(w.ctx, tx, text, 1) }) })
		w.judge("workflow.Engine.SendTo", "channel", text, func() error { return engine.SendTo(w.ctx, "nobody", text, 1) }, workflow.ErrUndeliverable)
		w.judge("workflow.Engine.SendTo", "instance id", text, func() error { return engine.SendTo(w.ctx, text, "extremes", 1) }, workflow.ErrUndeliverable)
		w.judge("workflow.Engine.SendToTx", "channel", text, func() error {
			return w.inTx(func(tx pgx.Tx) error { return engine.SendToTx(w.ctx, tx, "nobody", text, 1) })
		}, workflow.ErrUndeliverable)
		w.judge("workflow.Engine.SendToTx", "instance id", text, func() error {
			return w.inTx(func(tx pgx.Tx) error { return engine.SendToTx(w.ctx, tx, text, "extremes", 1) })
		}, workflow.ErrUndeliverable)
		w.judge("workflow.Engine.SendHandler", "channel", text, func() error { return engine.SendHandler(text, nil)(message.NewMessage("1", []byte("1"))) })
		w.judge("workflow.WithSendKey", "send key", text, func() error { return engine.Publish(w.ctx, "extremes", 1, workflow.WithSendKey(text), nil) })
		for _, metadata := range []map[string]string{{text: "value"}, {"name": text}} {
			w.judge("workflow.WithMetadata", "metadata", metadata, func() error { return engine.Publish(w.ctx, "extremes", 1, workflow.WithMetadata(metadata)) })
		}
	}
	tryEach(w, "workflow.Engine.PublishTx", "transaction", extremeTxs, func(tx pgx.Tx) error { return engine.PublishTx(w.ctx, tx, "extremes", 1) })
	tryEach(w, "workflow.Engine.SendToTx", "transaction", extremeTxs, func(tx pgx.Tx) error { return engine.SendToTx(w.ctx, tx, "nobody", "extremes", 1) })
	tryEach(w, "workflow.Engine.SendEventTx", "transaction", extremeTxs, func(tx pgx.Tx) error {
		return engine.SendEventTx(w.ctx, tx, workflow.OutgoingEvent{Type: "extreme", Source: "test"})
	})
	tryEach(w, "workflow.Engine.StartHandler", "definition", []workflow.Definition{nil, (*workflow.Workflow[int, int])(nil)}, func(definition workflow.Definition) error {
		_ = workflow.MessageRunID(definition, nil)
		return engine.StartHandler(definition)(message.NewMessage("1", []byte("1")))
	})
	w.judge("workflow.MessageRunID", "", nil, free(func() { _ = workflow.MessageRunID(w.probe, nil) }))
	w.judge("workflow.TargetFromMetadata", "", nil, free(func() { _ = workflow.TargetFromMetadata(nil) }))
}

func tryStarting(w *extremeWorld) {
	w.mu.Lock()
	w.probes = append(w.probes, func(*workflow.Context) {})
	which := len(w.probes) - 1
	w.mu.Unlock()
	engine := w.app.Engine()
	start := func(option workflow.StartOption) error {
		run, err := w.probe.Start(w.ctx, engine, which, option, nil)
		if err != nil {
			return err
		}
		return engine.Cancel(w.ctx, run.ID(), "it was tried")
	}
	tryEach(w, "workflow.WithDelay", "WithDelay", extremeDurations, func(d time.Duration) error { return start(workflow.WithDelay(d)) }, workflow.ErrEnded)
	tryEach(w, "workflow.WithStartAt", "WithStartAt", extremeTimes, func(t time.Time) error { return start(workflow.WithStartAt(t)) }, workflow.ErrEnded)
	tryEach(w, "workflow.WithID", "id", extremeTexts, func(id string) error { return start(workflow.WithID(id)) }, workflow.ErrEnded)
	tryEach(w, "workflow.WithPriority", "WithPriority", extremeInts, func(n int) error { return start(workflow.WithPriority(n)) }, workflow.ErrEnded)
	w.judge("workflow.Workflow.Start", "", nil, func() error { _, err := w.probe.Start(w.ctx, nil, 0); return err }, workflow.ErrNotStarted)
	w.judge("workflow.Workflow.StartMany", "", nil, func() error {
		_, err := w.probe.StartMany(w.ctx, nil, []workflow.StartRequest[int]{{}})
		return err
	}, workflow.ErrNotStarted)
	w.judge("workflow.Workflow.StartTx", "", nil, func() error {
		return w.inTx(func(tx pgx.Tx) error { _, err := w.probe.StartTx(w.ctx, tx, nil, 0); return err })
	}, workflow.ErrNotStarted)
	tryEach(w, "workflow.Workflow.StartTx", "transaction", extremeTxs, func(tx pgx.Tx) error { _, err := w.probe.StartTx(w.ctx, tx, engine, which); return err })
	_, err := w.probe.Start(w.ctx, engine, which, workflow.WithDelay(math.MaxInt64)) // stays until the end, and harms nothing
	if err != nil {
		w.t.Error(err)
	}
}
