package outbox

import (
	"context"
	"log/slog"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// settleTimeout bounds one try to settle.
	settleTimeout = 5 * time.Second
	// poolPatience is how long a settlement waits for a connection of the pool, before it goes on one of the relay's own.
	poolPatience = 250 * time.Millisecond
)

// settle writes down what became of the batch. It tries again, whatever the database says, for as long as the slot is
// certainly ours, because what was published and is not settled will be published again: until the database says that the
// slot is another relay's. An end of the lease by the clock is no reason, as long as nobody has taken the slot.
func (cl *claim) settle(ctx context.Context, query string, args []any) {
	// Detached: what was published must not be forgotten because somebody stopped waiting.
	ctx = context.WithoutCancel(ctx)
	r := cl.consumer.relay
	defer r.keeper.letGo(cl.batch)
	what := "settle a batch, as " + cl.consumer.owner
	defer r.troubles.worked(ctx, what)
	for try, plain := 1, false; ; try++ {
		last := r.hard.Err() != nil
		settled, err := cl.trySettle(ctx, try, query, args)
		switch {
		case err == nil && settled:
			return
		case err == nil:
			cl.lost(ctx, args)
			return
		case last:
			r.unsettled.Add(int64(len(deliveredIDs(args))))
			r.config.Logger.WarnContext(ctx, "outbox relay shuts down without having settled a batch: its events will be published again",
				slog.Int("slot", int(cl.batch.slot)), slog.Int("events", len(deliveredIDs(args))), slog.Any("error", err))
			return
		case refusal.Of(err) == refusal.Value && !plain:
			plain = true
			plainErrors(args)
		}
		r.troubles.failed(ctx, what, err, slog.Int("slot", int(cl.batch.slot)), slog.Int("published", len(deliveredIDs(args))))
		select {
		case <-time.After(backoff(try, errorBackoffFirst, errorBackoffMost)):
		case <-r.hard.Done():
		}
	}
}

// trySettle is one try: on the pool or on the relay's own connection, in turns, so that neither can be in the way for long.
func (cl *claim) trySettle(ctx context.Context, try int, query string, args []any) (settled bool, err error) {
	r := cl.consumer.relay
	limit := settleTimeout
	if r.hard.Err() != nil {
		limit = cutShortPatience / 2
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w := r.guarded(func(queue *pgx.Batch) {
		settled = false
		cl.sent++
		queue.Queue(query, args...).Query(func(rows pgx.Rows) error {
			settled = rows.Next()
			return nil
		})
	})
	// While it waits for an event's lock it keeps that of the slot, and no renewal passes.
	w.locks = min(lockPatience, r.config.Lease/(2*renewals))
	if try%2 == 1 {
		err = r.onPool(ctx, poolPatience, w)
		if err == nil || refusal.Said(err) {
			return settled, err
		}
	}
	// The first of the two may have been carried out, and its answer lost: see lost.
	if ownErr := r.settling.transact(ctx, w); ownErr == nil || err == nil || refusal.Said(ownErr) {
		err = ownErr
	}
	return settled, err
}

// lost is what follows when the slot was not ours. If it was asked before, that may have been carried out, and its answer lost:
// then the events are gone.
func (cl *claim) lost(ctx context.Context, args []any) {
	r := cl.consumer.relay
	published := deliveredIDs(args)
	left := len(published)
	if cl.sent > 1 {
		left = r.countLeft(ctx, published)
		if left == 0 {
			return
		}
	}
	r.lost.Add(1)
	r.unsettled.Add(int64(left))
	r.config.Logger.WarnContext(ctx, "outbox relay lost its lease of a slot: what it published of its batch will be published again",
		slog.Int("slot", int(cl.batch.slot)), slog.Int("events", left), slog.Duration("lease", r.config.Lease))
}

// countLeft returns how many of the events are still there; all, if the database does not say.
func (r *Relay) countLeft(ctx context.Context, ids []int64) int {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	left := len(ids)
	err := r.settling.transact(ctx, r.guarded(func(queue *pgx.Batch) {
		queue.Queue(r.queries.Get("CountEvents"), ids).QueryRow(func(row pgx.Row) error { return row.Scan(&left) })
	}))
	if err != nil {
		return len(ids)
	}
	return left
}

// The places of some arguments of Settle.
const (
	argDelivered    = 3
	argFailedErrors = 6
	argDeadErrors   = 8
)

func deliveredIDs(args []any) []int64 {
	ids, _ := args[argDelivered].([]int64)
	return ids
}

// plainErrors replaces the errors' texts by such as every encoding of a database can store.
func plainErrors(args []any) {
	for _, place := range []int{argFailedErrors, argDeadErrors} {
		texts, _ := args[place].([]string)
		for i, text := range texts {
			texts[i] = strconv.QuoteToASCII(text)
		}
	}
}
