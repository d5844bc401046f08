package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

const bookingsBefore = 2

// before is what became of the application as it was.
type before struct {
	booked, confirmed, poisoned int

	wait time.Duration // of a command for its handler, the median
}

func playBefore(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) (result before, err error) {
	a, err := newApp(ctx, pool, logger)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, a.close()) }()

	publisher, subscriber, err := a.polledCommands()
	if err != nil {
		return result, err
	}
	if err := a.addCommands(publisher, subscriber, a.bookSeat); err != nil {
		return result, errors.Join(err, subscriber.Close())
	}
	if err := a.addEvents(a.confirm()); err != nil {
		return result, err
	}
	err = a.whileRunning(ctx, func(ctx context.Context) error {
		if result.wait, err = a.book(ctx, "before", bookingsBefore, 1); err != nil {
			return err
		}
		// The first event is lost; the second tells when the handler has seen all there are.
		return a.tally.await(ctx, confirmed, bookingsBefore-1)
	})
	if err != nil {
		return result, err
	}
	result.confirmed, result.poisoned = a.tally.count(confirmed), a.tally.count(poisoned)
	err = pool.QueryRow(ctx, `select count(*) from bookings where id like 'before-%'`).Scan(&result.booked)
	return result, err
}

func (r before) tell(out io.Writer) {
	fmt.Fprintf(out, "  %d seats booked, %d confirmed: the broker refused one event after the commit, and it is lost\n", r.booked, r.confirmed)
	fmt.Fprintf(out, "  a command waited %s for its handler (median), because watermill-sql polls\n", r.wait.Round(time.Millisecond))
}

func (r before) check(c *check) {
	c.same("before: seats booked", r.booked, bookingsBefore)
	c.same("before: confirmations, one lost", r.confirmed, bookingsBefore-1)
	c.same("before: poison queue", r.poisoned, 0)
}
