// Package workflow runs durable functions on PostgreSQL: ordinary Go code whose steps are recorded, so that it goes on
// where it was after a crash, a deploy or a month of waiting, and wakes within milliseconds of what it waits for.
//
// A workflow is defined with [Define] and its steps with [DefineActivity]. It sleeps with [Sleep], waits for messages with
// [Receive], and sends them with [SendTo] and [Publish]. An [Engine] executes the runs of the workflows it knows; any number
// of processes may run one on the same database.
//
// # How it goes on
//
// The database holds the truth: one row a run, one row a step. A run belongs to one worker at a time, which proves with
// every write that it still does. While a run waits, its goroutine is kept in memory if there is room; otherwise the
// workflow function is executed again from the top when it wakes, with its recorded steps answered from history. So the
// function must be deterministic, and its deferred functions, which also run when a goroutine is dropped from memory, must
// have no side effects.
//
// # How it is woken
//
// By notification, and in the same process without even that. A notification is only a hint: whatever one would have
// announced is also found by looking, at the latest after the fallback interval.
package workflow
