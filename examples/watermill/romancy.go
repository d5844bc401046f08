package main

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"strconv"

	"github.com/ThreeDotsLabs/watermill"
	watersql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

// Everything that Romancy adds to the application is in this file and in flow.go. What runs in the background is in
// background.go.

// Channels of the application's own. Notifications need no table, and nobody has to create a channel.
const (
	seatsChannel         = "boxoffice_seats"
	announcementsChannel = "boxoffice_announcements"
)

// Step 1: router handlers that react to the four channels, by way of one LISTEN connection beside the application's pool.
func addReactions(router *message.Router, pool *pgxpool.Pool, listener *bus.Listener, seen func(what, id string)) error {
	subscriber, err := bus.NewSubscriber(bus.SubscriberConfig{Pool: pool, Listener: listener})
	if err != nil {
		return err
	}
	channels := bus.ChannelsFor("romancy")
	router.AddConsumerHandler("on_resumable", channels.WorkflowResumable, subscriber, on(func(run bus.WorkflowResumable) {
		seen(channels.WorkflowResumable, run.InstanceID)
	}))
	router.AddConsumerHandler("on_timer", channels.TimerExpired, subscriber, on(func(timer bus.TimerRegistered) {
		seen(channels.TimerExpired, timer.InstanceID)
	}))
	router.AddConsumerHandler("on_message", channels.ChannelMessage, subscriber, on(func(sent bus.ChannelMessage) {
		seen(channels.ChannelMessage, sent.TargetInstanceID)
	}))
	router.AddConsumerHandler("on_outbox", channels.OutboxPending, subscriber, on(func(event bus.OutboxPending) {
		seen(channels.OutboxPending, event.EventID)
	}))
	return nil
}

// on makes a typed function a router handler. A payload of another kind, which only a mistaken topic can bring here, is an
// error for the router's middleware.
func on[T bus.Payload](react func(T)) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		payload, err := bus.Decode[T](msg)
		if err != nil {
			return err
		}
		react(payload)
		return nil
	}
}

// Step 2, hearing: channels of the application's own, at most once. What must not be lost has to be in a table as well,
// as the seats are.
func addOwnChannels(router *message.Router, pool *pgxpool.Pool, listener *bus.Listener, seats *seatPlan, seen func(what, id string)) error {
	subscriber, err := bus.NewSubscriber(bus.SubscriberConfig{Pool: pool, Listener: listener})
	if err != nil {
		return err
	}
	router.AddConsumerHandler("on_seat", seatsChannel, subscriber, func(msg *message.Message) error {
		seats.invalidate()
		seen(seatNews, msg.UUID)
		return nil
	})
	router.AddConsumerHandler("on_announcement", announcementsChannel, subscriber, func(msg *message.Message) error {
		seen(announced, string(msg.Payload))
		return nil
	})
	return nil
}

// Step 2, telling: every process of the application hears it, without a broker.
func announce(pool *pgxpool.Pool, text string) error {
	publisher, err := bus.NewPublisher(pool, bus.PublisherConfig{})
	if err != nil {
		return err
	}
	err = publisher.Publish(announcementsChannel, message.NewMessage(watermill.NewUUID(), message.Payload(text)))
	return errors.Join(err, publisher.Close())
}

// Step 3: the booking, its event and its notification are committed together, or none of them.
func bookSeatTx(ctx context.Context, pool *pgxpool.Pool, command *BookSeat) error {
	return pgx.BeginFunc(ctx, pool, func(tx pgx.Tx) error {
		isNew, err := insertBooking(ctx, tx, command)
		if err != nil || !isNew {
			return err
		}
		if err := publishTx(ctx, tx, command.booked()); err != nil {
			return err
		}
		return seatChanged(ctx, tx, command.Seat)
	})
}

// publishTx is the application's event bus with the outbox in the place of its broker.
func publishTx(ctx context.Context, tx pgx.Tx, event any) error {
	events, err := newEventBus(outbox.Tx(tx))
	if err != nil {
		return err
	}
	return events.Publish(ctx, event)
}

// seatChanged is step 2 in a transaction: nobody hears of it unless that commits.
func seatChanged(ctx context.Context, tx pgx.Tx, seat int) error {
	news := message.NewMessageWithContext(ctx, watermill.NewUUID(), message.Payload(strconv.Itoa(seat)))
	return bus.TxPublisher(tx).Publish(seatsChannel, news)
}

// Step 4, starting: a run for each event. The run's id is made from the message's topic and UUID, so an event that comes twice finds its
// run, and whoever publishes one cannot choose the id of another run.
func startBookings(engine *workflow.Engine, seen func(what, id string)) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		var event SeatBooked
		if err := json.Unmarshal(msg.Payload, &event); err != nil {
			return err
		}
		run, err := booking.Start(msg.Context(), engine, event, workflow.WithID(workflow.MessageRunID(booking, msg)))
		if err != nil {
			return err
		}
		if run.Existing() {
			seen(existing, run.ID())
		} else {
			seen(started, run.ID())
		}
		return nil
	}
}

// Step 4, feeding: a payment is sent to the run that its reference names.
func feedPayments(engine *workflow.Engine, logger *slog.Logger, seen func(what, id string)) message.NoPublishHandlerFunc {
	return func(msg *message.Message) error {
		var payment PaymentReceived
		if err := json.Unmarshal(msg.Payload, &payment); err != nil {
			return err
		}
		err := engine.SendTo(msg.Context(), payment.Reference, payments, payment)
		if errors.Is(err, workflow.ErrUndeliverable) { // the run has ended: this came late, or again
			logger.Warn("payment without a booking that waits for it", "reference", payment.Reference)
			return nil
		}
		if err == nil {
			seen(paidRuns, payment.Reference)
		}
		return err
	}
}

// Step 5: the application's watermill-sql, woken instead of polling.
func wokenCommands(pool *pgxpool.Pool, listener *bus.Listener, logger watermill.LoggerAdapter) (message.Publisher, message.Subscriber, error) {
	db := watersql.BeginnerFromPgx(pool)
	publisher, err := watersql.NewPublisher(db, watersql.PublisherConfig{
		SchemaAdapter:        bus.NotifyingSchema(watersql.DefaultPostgreSQLSchema{}),
		AutoInitializeSchema: true,
	}, logger)
	if err != nil {
		return nil, nil, err
	}
	subscriber, err := bus.NewWokenSubscriber(db, watersql.SubscriberConfig{
		SchemaAdapter:    watersql.DefaultPostgreSQLSchema{},
		OffsetsAdapter:   watersql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, bus.WokenConfig{Listener: listener})
	return publisher, subscriber, err
}
