package store

import (
	"cmp"
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
)

// Deliver is a message on its way.
type Deliver struct {
	Fence           // the sending run; the zero Fence: sent from outside
	Position int32  // of the command in the sender's history; 0: sent from outside
	Target   string // the receiving run; empty: published
	Channel  string
	Payload  []byte
	Metadata []byte
	Key      string // not sent if something was sent under it; empty: sent
	// KeepMicros is how long Key is kept.
	KeepMicros int64
}

// Delivered is what became of a message.
type Delivered struct {
	Receivers int    // 0: its target does not exist or has ended
	Status    string // of a target that has ended; empty: it does not exist, or there are receivers
	Held      bool   // nothing yet: another transaction is sending under its key
	Later     bool   // nothing yet: those before it in the statement and itself have more receivers than one makes messages for
	Wide      bool   // it has by itself, too: it is for DeliverFirst
}

// Sent is a message in a mailbox.
type Sent struct {
	ID       int64
	Channel  string
	Receiver string // the run; empty: for whoever competes first
	Direct   bool   // sent to Receiver alone
}

// DeliverMessages puts messages into mailboxes. done is called for every operation whose sender, if it is a run, is still
// owned; sent for every message.
func (s *Store) DeliverMessages(b *pgx.Batch, rows []Deliver, done func(ord int, result Delivered), sent func(Sent)) {
	statement, arguments := s.delivering(rows, false)
	b.Queue(statement, arguments...).Query(func(found pgx.Rows) error { return scanDelivered(found, done, sent) })
}

// DeliverMessageTx does the same for one message in a caller's transaction, however many receivers it has. It waits for others that send
// under its key.
func (s *Store) DeliverMessageTx(ctx context.Context, tx pgx.Tx, row Deliver, sent func(Sent)) (Delivered, error) {
	if row.Key != "" {
		if _, err := tx.Exec(ctx, s.queries.Get("LockSendKey"), row.Key); err != nil {
			return Delivered{}, refusal.Public(err)
		}
	}
	var done Delivered
	rest, err := s.DeliverFirst(ctx, tx, row, func(result Delivered) { done = result }, sent)
	for err == nil && rest != nil {
		rest, err = s.DeliverMore(ctx, tx, *rest, sent)
	}
	return done, err
}

// delivering returns the statement that delivers rows, with its arguments. first: a single row, to as many as one statement reaches.
func (s *Store) delivering(rows []Deliver, first bool) (statement string, arguments []any) {
	if r := rows[0]; len(rows) == 1 && r.Target != "" && r.Key == "" {
		return s.queries.Get("DeliverDirect"), []any{orNull(r.ID), r.Token, orNull(r.Position), r.Target, r.Channel, text(r.Payload), text(r.Metadata), r.Worker}
	}
	return s.queries.Get("DeliverMessages"), []any{
		column(rows, func(r Deliver) *string { return orNull(r.ID) }),
		column(rows, func(r Deliver) int64 { return r.Token }),
		column(rows, func(r Deliver) *int32 { return orNull(r.Position) }),
		column(rows, func(r Deliver) *string { return orNull(r.Target) }),
		column(rows, func(r Deliver) string { return r.Channel }),
		column(rows, func(r Deliver) *string { return text(r.Payload) }),
		column(rows, func(r Deliver) *string { return text(r.Metadata) }),
		column(rows, func(r Deliver) *string { return orNull(r.Key) }),
		column(rows, func(r Deliver) int64 { return r.KeepMicros }),
		workerOf(rows), maxWeight, first,
	}
}

func scanDelivered(rows pgx.Rows, done func(ord int, result Delivered), sent func(Sent)) error {
	defer rows.Close()
	living := map[string]string{} // the run of each line that receives what is sent to the line
	for rows.Next() {
		var what string
		var ord, number *int64
		var channel, mode, receiver *string
		if err := rows.Scan(&what, &ord, &number, &channel, &mode, &receiver); err != nil {
			return err
		}
		switch what {
		case "line":
			living[*channel] = *receiver
			continue
		case "done":
			done(int(*ord)-1, Delivered{Receivers: int(*number), Status: orZero(mode)})
			continue
		case "held":
			done(int(*ord)-1, Delivered{Held: true})
			continue
		case "later":
			done(int(*ord)-1, Delivered{Later: true, Wide: *number > maxWeight})
			continue
		}
		message := Sent{ID: *number, Channel: *channel, Direct: *mode == "direct"}
		if message.Receiver = orZero(receiver); message.Direct {
			message.Receiver = cmp.Or(living[message.Receiver], message.Receiver)
		}
		sent(message)
	}
	return rows.Err()
}

// Subscribe is a run that subscribes to a channel, or, with no mode, unsubscribes.
type Subscribe struct {
	Fence
	Position int32
	Channel  string
	Mode     string
}

// SubscribeRuns records and carries out subscriptions; done is called for each run still owned, with the mode in which the
// channel is in use if that is another.
func (s *Store) SubscribeRuns(b *pgx.Batch, rows []Subscribe, done func(ord int, taken string)) {
	b.Queue(s.queries.Get("LockChannels"), column(rows, func(r Subscribe) string { return r.Channel }))
	b.Queue(s.queries.Get("SubscribeRuns"),
		column(rows, func(r Subscribe) string { return r.ID }),
		column(rows, func(r Subscribe) int64 { return r.Token }),
		column(rows, func(r Subscribe) int32 { return r.Position }),
		column(rows, func(r Subscribe) string { return r.Channel }),
		column(rows, func(r Subscribe) *string { return orNull(r.Mode) }),
		workerOf(rows),
	).Query(func(found pgx.Rows) error {
		for found.Next() {
			var ord int
			var taken *string
			if err := found.Scan(&ord, &taken); err != nil {
				return err
			}
			if taken == nil {
				taken = new(string)
			}
			done(ord-1, *taken)
		}
		return found.Err()
	})
}

// DiscardSentKeys removes up to limit keys that have expired. It reports in more whether there may be others.
func (s *Store) DiscardSentKeys(b *pgx.Batch, limit int, removed *int, more *bool) {
	b.Queue(s.queries.Get("DiscardSentKeys"), limit).QueryRow(func(row pgx.Row) error {
		err := row.Scan(removed)
		*more = *removed == limit
		return err
	})
}
