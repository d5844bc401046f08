package main

import (
	"context"
	"errors"

	"github.com/romancy-go/romancy/workflow"
)

// payments is the channel on which a run waits. Names are stored with the runs and stay the same across deploys.
const payments = "payments"

// InvoiceSent is the event that asks a customer for the money. The reference is the run's id.
type InvoiceSent struct {
	BookingID string `json:"booking_id"`
	Customer  string `json:"customer"`
	Reference string `json:"reference"`
}

// PaymentReceived is the event of the payment provider.
type PaymentReceived struct {
	Reference string `json:"reference"`
	Cents     int    `json:"cents"`
}

// TicketIssued is the end of a booking that was paid.
type TicketIssued struct {
	BookingID string `json:"booking_id"`
}

// SeatReleased is the end of one that was not.
type SeatReleased struct {
	BookingID string `json:"booking_id"`
}

// booking is what the box office could not do with handlers alone: wait for a payment, for as long as it takes, and do
// something when none comes. It goes on where it was after any crash or deploy.
var booking = workflow.Define("booking", func(ctx *workflow.Context, seat SeatBooked) (string, error) {
	if _, err := invoice.Execute(ctx, seat); err != nil {
		return "", err
	}
	_, err := workflow.Receive[PaymentReceived](ctx, payments, workflow.WithTimeout(seat.PayWithin))
	switch {
	case errors.Is(err, workflow.ErrTimeout):
		return release.Execute(ctx, seat)
	case err != nil:
		return "", err
	}
	return ticket.Execute(ctx, seat)
})

// The activities: what each writes, its events, and the fact that it is done are one transaction.
var (
	invoice = workflow.DefineActivity("invoice", func(ctx context.Context, seat SeatBooked) (string, error) {
		reference := workflow.ActivityInfo(ctx).InstanceID
		return reference, publishTx(ctx, workflow.Tx(ctx), InvoiceSent{BookingID: seat.BookingID, Customer: seat.Customer, Reference: reference})
	}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{}))

	ticket = workflow.DefineActivity("ticket", func(ctx context.Context, seat SeatBooked) (string, error) {
		return settle(ctx, seat, "paid", TicketIssued{BookingID: seat.BookingID})
	}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{}))

	release = workflow.DefineActivity("release", func(ctx context.Context, seat SeatBooked) (string, error) {
		return settle(ctx, seat, "released", SeatReleased{BookingID: seat.BookingID})
	}, workflow.WithTransaction(), workflow.WithRetry(workflow.RetryPolicy{}))
)

func settle(ctx context.Context, seat SeatBooked, status string, event any) (string, error) {
	tx := workflow.Tx(ctx)
	if _, err := tx.Exec(ctx, `update bookings set status = $2 where id = $1`, seat.BookingID, status); err != nil {
		return "", err
	}
	if err := publishTx(ctx, tx, event); err != nil {
		return "", err
	}
	return status, seatChanged(ctx, tx, seat.Seat)
}
