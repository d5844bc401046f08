// Package outbox publishes events that were written in a database transaction.
//
// A [Writer] puts an [Event] into a table in the caller's own transaction: it exists if and only if the rest of the
// transaction does. A [Relay] then hands it to any Watermill publisher (NATS, Kafka, RabbitMQ, ...) and removes it once
// the publisher has returned without an error.
//
// # What is guaranteed
//
//   - At least once. When a relay dies, or cannot reach the database for longer than its lease, between publishing and
//     removing, another one publishes at most its batches in work again, with the same IDs, so that consumers can tell.
//   - In order per key. The events of one key are published in the order in which they were written, by however many
//     relays, also after failures: one that failed is waited for. Events of one key that were written by transactions
//     running at the same time have no order; lock the row that the key stands for if they must have one.
//   - One failing event delays nothing but its own key, and is set aside as a dead letter after
//     [RelayConfig.MaxAttempts]. A publisher that never returns delays at most PublishTimeout what shares its batch.
//
// The order does not include an event published again after the time limit of its first try or after a lost lease: the
// first copy may arrive late, between its successors. The ID tells.
//
// # How the relay works
//
// The relay is a subscriber of watermill-sql with adapters of its own. The keys are spread over a fixed number of slots. A
// consumer takes the lease of a slot, takes a batch of its events, publishes different keys concurrently and the events
// of one key one after the other, then settles the batch and gives the slot back. Each of these steps is one short
// transaction: no connection is held while the publisher works. As long as the relay lives it keeps the leases of what it
// has taken, on a connection of its own, and a settlement that the database refuses is tried again until it is carried out:
// a full disk, a lock or a pool that is used up delays events and repeats none. It is woken by the notification that the writer sent, by
// the end of a backoff, and by a slow poll in case a notification was lost.
package outbox
