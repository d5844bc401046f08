package main

import (
	"context"
	"time"

	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
)

// BookSeat is the application's command.
type BookSeat struct {
	BookingID string        `json:"booking_id"`
	Seat      int           `json:"seat"`
	Customer  string        `json:"customer"`
	PayWithin time.Duration `json:"pay_within"`
}

// SeatBooked is the application's event.
type SeatBooked struct {
	BookingID string        `json:"booking_id"`
	Seat      int           `json:"seat"`
	Customer  string        `json:"customer"`
	PayWithin time.Duration `json:"pay_within"`
}

func (c *BookSeat) booked() SeatBooked {
	return SeatBooked{BookingID: c.BookingID, Seat: c.Seat, Customer: c.Customer, PayWithin: c.PayWithin}
}

// insertBooking reports whether the booking is new: a command that comes again finds its booking, and one for a seat that
// is taken finds another's.
func insertBooking(ctx context.Context, tx pgx.Tx, command *BookSeat) (bool, error) {
	tag, err := tx.Exec(ctx, `insert into bookings (id, seat, customer) values ($1, $2, $3) on conflict do nothing`,
		command.BookingID, command.Seat, command.Customer)
	return tag.RowsAffected() == 1, err
}

// marshaler names commands and events after their types.
var marshaler = cqrs.JSONMarshaler{GenerateName: cqrs.StructName}

func commandTopic(name string) string { return "command_" + name }
func eventTopic(name string) string   { return topicPrefix + name }

// newEventBus returns the application's event bus over any publisher.
func newEventBus(publisher message.Publisher) (*cqrs.EventBus, error) {
	return cqrs.NewEventBusWithConfig(publisher, cqrs.EventBusConfig{
		Marshaler: marshaler,
		GeneratePublishTopic: func(params cqrs.GenerateEventPublishTopicParams) (string, error) {
			return eventTopic(params.EventName), nil
		},
	})
}
