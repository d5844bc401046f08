package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
)

// maxWeight is how many messages one statement makes, at most, where one of n bytes counts as 1 + n/8192 (DeliverMessages has the same
// formula). It is some tens of MB, and takes well under a second.
const maxWeight = 2000

// reach is how many subscribers one statement delivers a message to.
func (d Deliver) reach() int { return max(maxWeight/(1+len(d.Payload)/8192), 1) }

// Rest is the subscribers to whom a message has not been delivered yet.
type Rest struct {
	message int64  // one that brings the same
	after   string // the last run that has it
	reach   int
}

// DeliverFirst delivers one message as DeliverMessages does, to as many receivers as one statement reaches. If there may be more, the same
// transaction has to go on with DeliverMore. done has no receivers if the sender is a run that is not owned any more.
func (s *Store) DeliverFirst(ctx context.Context, tx Querier, row Deliver, done func(Delivered), sent func(Sent)) (*Rest, error) {
	rest := Rest{reach: row.reach()}
	statement, arguments := s.delivering([]Deliver{row}, true)
	found, err := tx.Query(ctx, statement, arguments...)
	if err != nil {
		return nil, refusal.Public(err)
	}
	number, err := rest.counting(sent, func(sent func(Sent)) error {
		return scanDelivered(found, func(_ int, result Delivered) { done(result) }, sent)
	})
	return rest.unless(number < rest.reach, err)
}

// DeliverMore delivers to the next of them, and returns those that are left.
func (s *Store) DeliverMore(ctx context.Context, tx Querier, rest Rest, sent func(Sent)) (*Rest, error) {
	found, err := tx.Query(ctx, s.queries.Get("DeliverToMore"), rest.message, rest.after, rest.reach)
	if err != nil {
		return nil, refusal.Public(err)
	}
	number, err := rest.counting(sent, func(sent func(Sent)) error {
		var message Sent
		_, err := pgx.ForEachRow(found, []any{&message.ID, &message.Channel, &message.Receiver}, func() error { sent(message); return nil })
		return err
	})
	return rest.unless(number < rest.reach, err)
}

// counting notes what scan reports as sent to subscribers, and how many they are.
func (r *Rest) counting(sent func(Sent), scan func(func(Sent)) error) (number int, err error) {
	err = scan(func(message Sent) {
		if message.Receiver != "" && !message.Direct {
			number++
			r.message, r.after = message.ID, max(r.after, message.Receiver)
		}
		sent(message)
	})
	return number, err
}

func (r *Rest) unless(over bool, err error) (*Rest, error) {
	if over || err != nil {
		return nil, refusal.Public(err)
	}
	return r, nil
}
