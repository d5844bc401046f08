package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/outbox"
)

const (
	bookingsAfter = 6
	payers        = 4 // the first ones
	firstSeat     = 11
	announcement  = "doors open at seven"

	// Each booking has SeatBooked, InvoiceSent, and TicketIssued or SeatReleased; the invoice changes no seat.
	eventsAfter   = 3 * bookingsAfter
	seatNewsAfter = 2 * bookingsAfter
)

// after is what became of the application with Romancy.
type after struct {
	counts    map[string]int
	wait      time.Duration
	outcomes  map[string]int // of runs
	statuses  map[string]int // of bookings
	taken     []int          // by the seat plan
	handlers  map[string]uint64
	listening bus.State
	outbox    outbox.Stats
}

func playAfter(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) (result after, err error) {
	a, err := newApp(ctx, pool, logger)
	if err != nil {
		return result, err
	}
	defer func() { err = errors.Join(err, a.close()) }()
	background, err := startBackground(ctx, pool, a.publisher, logger)
	if err != nil {
		return result, err
	}
	seats := &seatPlan{pool: pool}
	world := &customers{app: a, seats: seats, invoices: map[string]InvoiceSent{}}

	err = addRomancy(a, background, seats, logger)
	if err == nil {
		err = a.addEvents(append(world.handlers(), a.confirm())...)
	}
	if err == nil {
		err = a.whileRunning(ctx, func(ctx context.Context) error {
			if err := background.listening(ctx); err != nil {
				return err
			}
			commands, err := background.listener.Subscribe(0, bus.TopicChannel(commandTopic("BookSeat")))
			if err != nil {
				return err
			}
			defer commands.Close()
			if err := errors.Join(world.play(ctx), notified(ctx, commands, bookingsAfter)); err != nil {
				return err
			}
			result, err = observe(ctx, a, background, seats)
			result.wait = world.wait
			return err
		})
	}
	if err = errors.Join(err, background.stop(ctx)); err != nil {
		return result, err
	}
	// The relay has settled now what it has published.
	result.outbox, err = background.relay.Stats(ctx)
	return result, err
}

// notified returns when n notifications have come. Catch-ups, which the listener makes itself, do not count.
func notified(ctx context.Context, subscription *bus.Subscription, n int) error {
	for got := 0; got < n; {
		notification, err := subscription.Next(ctx)
		if err != nil {
			return fmt.Errorf("%d of %d commands were announced: %w", got, n, err)
		}
		if notification.PID != 0 {
			got++
		}
	}
	return nil
}

// addRomancy adds all steps to the application.
func addRomancy(a *app, background *background, seats *seatPlan, logger *slog.Logger) error {
	if err := addReactions(a.router, a.pool, background.listener, a.tally.note); err != nil { // step 1
		return err
	}
	if err := addOwnChannels(a.router, a.pool, background.listener, seats, a.tally.note); err != nil { // step 2
		return err
	}
	publisher, subscriber, err := wokenCommands(a.pool, background.listener, a.logger) // step 5
	if err != nil {
		return err
	}
	err = a.addCommands(publisher, subscriber, func(ctx context.Context, command *BookSeat) error {
		return bookSeatTx(ctx, a.pool, command) // step 3
	})
	if err != nil {
		return errors.Join(err, subscriber.Close())
	}
	for topic, handler := range map[string]message.NoPublishHandlerFunc{ // step 4
		"SeatBooked":      startBookings(background.engine, a.tally.note),
		"PaymentReceived": feedPayments(background.engine, logger, a.tally.note),
	} {
		events, err := a.broker.subscriber("workflow_" + topic)
		if err != nil {
			return err
		}
		a.router.AddConsumerHandler("workflow_"+topic, eventTopic(topic), events, handler)
	}
	return nil
}

func (r after) tell(out io.Writer) {
	fmt.Fprintf(out, "  %d seats booked, %d confirmed: the broker refused one event here, too, and the relay repeated it\n", bookingsAfter, r.counts[confirmed])
	fmt.Fprintf(out, "  a command waited %s for its handler (median), because watermill-sql is woken\n", r.wait.Round(100*time.Microsecond))
	fmt.Fprintf(out, "  %d runs waited for a payment: %d got one and sent a ticket, %d gave the seat back\n", r.counts[started], r.outcomes["paid"], r.outcomes["released"])
	for _, channel := range bus.ChannelsFor("romancy").All() {
		fmt.Fprintf(out, "  %-28s %d heard of\n", channel, r.counts[channel])
	}
	fmt.Fprintf(out, "  %-28s %d notifications, seats taken now: %v\n", seatsChannel, r.counts[seatNews], r.taken)
	fmt.Fprintf(out, "  %-28s %q\n", announcementsChannel, announcement)
}
