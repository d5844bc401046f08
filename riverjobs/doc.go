// Package riverjobs runs the library's safety nets as River jobs: one job kind for each sweep, visible in River's own
// tools, enqueued by River's leader and worked by any worker of the cluster.
//
// A sweep looks for what a lost notification would have said. While the notification listener is well, sweeps are rare
// (every fallback interval); while it is not, they are the only way work is found, and run at their own short intervals.
// River's periodic jobs tick every second on the leader, but a tick whose sweep is not due returns nil, which writes
// nothing: a healthy, idle cluster leaves no rows behind.
//
// The jobs live either in a River client of this package's own, on the application's pool with River's tables in our
// schema, or as guests in the client the application already has ([Config.Client]).
//
// River takes commands that are notified to it at their word, and whoever may connect to the database can notify. A client of this
// package's own hears hints only: it heeds a pause of its queue when it starts, and neither cancellations nor requests to resign.
// As guests the jobs depend on what the application's client hears: a warning says when nobody works on them.
//
// Nothing here is needed for correctness: River's leader can be absent for twenty seconds, and a host can clear its
// periodic jobs. Every worker keeps slow sweeps of its own, and a warning says when no leader ticks.
package riverjobs
