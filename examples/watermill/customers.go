package main

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/bus"
)

// How long a seat is kept for a customer who has not paid.
const (
	payLater  = 24 * time.Hour
	payAtOnce = time.Second
)

// payWithin tells it by the customer, numbered from 0: those who pay could take their time.
func payWithin(customer int) time.Duration {
	if customer < payers {
		return payLater
	}
	return payAtOnce
}

// book plays n customers who book a seat each, one after the other, and returns the median of how long their commands were
// under way to the handler.
func (a *app) book(ctx context.Context, name string, n, firstSeat int) (time.Duration, error) {
	var waits []time.Duration
	for i := range n {
		command := &BookSeat{
			BookingID: fmt.Sprintf("%s-%d", name, i+1), Seat: firstSeat + i, Customer: fmt.Sprintf("customer %d", i+1), PayWithin: payWithin(i),
		}
		sent := time.Now()
		if err := a.commands.Send(ctx, command); err != nil {
			return 0, err
		}
		at, err := a.tally.awaitID(ctx, received, command.BookingID)
		if err != nil {
			return 0, err
		}
		waits = append(waits, at.Sub(sent))
		if _, err := a.tally.awaitID(ctx, handled, command.BookingID); err != nil {
			return 0, err
		}
	}
	slices.Sort(waits)
	return waits[len(waits)/2], nil
}

// customers play the world outside: who pays, and what they are sent.
type customers struct {
	app   *app
	seats *seatPlan
	wait  time.Duration // of a command for its handler, the median

	mu       sync.Mutex
	invoices map[string]InvoiceSent // by booking
}

// play books, pays, and waits until everything that has to happen has happened.
func (c *customers) play(ctx context.Context) error {
	tally := c.app.tally
	if _, err := c.seats.taken(ctx); err != nil { // the plan is known from now on, and has to notice what changes
		return err
	}
	if err := announce(c.app.pool, announcement); err != nil {
		return err
	}
	var err error
	if c.wait, err = c.app.book(ctx, "after", bookingsAfter, firstSeat); err != nil {
		return err
	}
	if err := tally.await(ctx, started, bookingsAfter); err != nil {
		return err
	}
	if err := tally.await(ctx, invoiced, bookingsAfter); err != nil {
		return err
	}
	if err := c.repeatFirst(); err != nil {
		return err
	}
	channels := bus.ChannelsFor("romancy")
	for _, expected := range []struct {
		what string
		n    int
	}{
		{ticketed, payers},
		{freed, bookingsAfter - payers},
		{confirmed, bookingsAfter},
		{existing, 1},
		{announced, 1},
		{seatNews, seatNewsAfter},
		{channels.WorkflowResumable, bookingsAfter},
		{channels.TimerExpired, bookingsAfter - payers}, // a payment that is faster than its run makes a timer needless
		{channels.ChannelMessage, payers},
		{channels.OutboxPending, eventsAfter},
	} {
		if err := tally.await(ctx, expected.what, expected.n); err != nil {
			return err
		}
	}
	return nil
}

// repeatFirst delivers the first booking's event once more, as brokers do.
func (c *customers) repeatFirst() error {
	c.mu.Lock()
	first := c.invoices["after-1"]
	c.mu.Unlock()
	event := SeatBooked{BookingID: first.BookingID, Seat: firstSeat, Customer: first.Customer, PayWithin: payWithin(0)}
	again, err := marshaler.Marshal(event)
	if err != nil {
		return err
	}
	again.UUID = first.Reference[strings.LastIndex(first.Reference, ":")+1:] // the reference is the run's id, which ends in it
	return c.app.publisher.Publish(eventTopic("SeatBooked"), again)
}

// handlers are the customers' reactions to what they are sent.
func (c *customers) handlers() []cqrs.EventHandler {
	note := c.app.tally.note
	return []cqrs.EventHandler{
		cqrs.NewEventHandler("customers_invoice", c.pay),
		cqrs.NewEventHandler("customers_ticket", func(_ context.Context, event *TicketIssued) error {
			note(ticketed, event.BookingID)
			return nil
		}),
		cqrs.NewEventHandler("customers_release", func(_ context.Context, event *SeatReleased) error {
			note(freed, event.BookingID)
			return nil
		}),
	}
}

// pay has the payment provider tell of the payment: twice, to be on the safe side.
func (c *customers) pay(_ context.Context, invoice *InvoiceSent) error {
	c.mu.Lock()
	c.invoices[invoice.BookingID] = *invoice
	c.mu.Unlock()
	var customer int
	if _, err := fmt.Sscanf(invoice.Customer, "customer %d", &customer); err != nil {
		return fmt.Errorf("invoice to %q: %w", invoice.Customer, err)
	}
	if customer <= payers {
		payload, err := json.Marshal(PaymentReceived{Reference: invoice.Reference, Cents: 4200})
		if err != nil {
			return err
		}
		for range 2 {
			if err := c.app.publisher.Publish(eventTopic("PaymentReceived"), message.NewMessage(watermill.NewUUID(), payload)); err != nil {
				return err
			}
		}
	}
	c.app.tally.note(invoiced, invoice.BookingID)
	return nil
}
