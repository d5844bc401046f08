// Package bus carries Romancy's four events over PostgreSQL LISTEN/NOTIFY: the channels' names and payloads, the one
// connection that listens, the one connection that notifies, and both as a Watermill subscriber and publisher.
//
// A notification is a hint, never the truth: PostgreSQL keeps none for a listener that is away. So everything here is
// built to lose one without harm. A [Listener] tells each [Subscription] when something may have been missed, and a
// [Subscriber] of the four channels then reads from the schema what the lost notifications would have said.
//
// # From commit to handler
//
// A [Notifier] sends what was committed, at once while it is quiet and gathered into one statement every few
// milliseconds while it is busy, because PostgreSQL lets only one notifying transaction of the whole cluster commit at a
// time. A [Listener] receives it on a connection of its own and puts it in the bounded queue of each subscription. A
// [Subscriber] turns it into a Watermill message.
//
// # What is guaranteed
//
// On the four channels a [Subscriber] delivers at least once; on any other channel it delivers at most once, as
// PostgreSQL does. A [Publisher] publishes to any channel.
package bus
