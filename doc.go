// Package romancy gives an application on PostgreSQL durable workflows that wake within milliseconds of what they wait
// for, a transactional outbox, and the events of both as ordinary Watermill messages.
//
// An [App] wires the parts together on one pgx pool:
//
//   - package workflow: durable functions, their activities, timers and messages, and the engine that runs them;
//   - package outbox: events written in the caller's transaction, relayed to any Watermill publisher;
//   - package bus: the four PostgreSQL notification channels, as a listener, a notifier and a Watermill subscriber;
//   - package riverjobs: the safety nets for lost notifications, as jobs in River.
//
// Each of them can also be used alone: an application that has a Watermill router, a River client or a pool of its own
// hands them in and stays their owner.
//
// # In short
//
//	app := romancy.NewApp(
//		romancy.WithDatabase("postgres://localhost/shop"),
//		romancy.WithAutoMigrate(),
//		romancy.WithWorkflows(orderFlow),
//	)
//	if err := app.Start(ctx); err != nil {
//		return err
//	}
//	defer app.Shutdown(ctx)
//	run, err := orderFlow.Start(ctx, app.Engine(), order)
//
// NewApp never fails: whatever is wrong with the options is reported by Start, all of it at once.
//
// # Notifications and polling
//
// PostgreSQL's LISTEN/NOTIFY makes things happen at once; polling makes sure that they happen. While the listening
// connection is healthy, sweeps for lost notifications run every fallback interval (30 seconds); while it is not, every
// second. Both are jobs in River, see package riverjobs, and in addition every worker has slow sweeps of its own.
package romancy
