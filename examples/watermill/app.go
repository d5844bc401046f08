package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	watersql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/ThreeDotsLabs/watermill/components/cqrs"
	"github.com/ThreeDotsLabs/watermill/components/metrics"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/message/router/middleware"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/prometheus/client_golang/prometheus"
)

// app is the application that exists: commands by way of watermill-sql, events by way of NATS, a router with middleware
// and Prometheus metrics. It knows nothing of Romancy.
type app struct {
	pool      *pgxpool.Pool
	broker    *broker
	publisher message.Publisher // to the broker
	router    *message.Router
	registry  *prometheus.Registry
	commands  *cqrs.CommandBus
	logger    watermill.LoggerAdapter
	tally     *tally
}

// newApp makes the application up to the point where its commands and handlers are added.
func newApp(ctx context.Context, pool *pgxpool.Pool, logger *slog.Logger) (*app, error) {
	a := &app{pool: pool, registry: prometheus.NewRegistry(), logger: watermill.NewSlogLogger(logger), tally: newTally()}
	var err error
	if a.broker, err = startBroker(ctx, a.logger); err != nil {
		return nil, err
	}
	publisher, err := a.broker.publisher()
	if err != nil {
		return nil, errors.Join(err, a.broker.stop())
	}
	a.publisher = &stumbling{Publisher: publisher} // brokers do
	if err := a.addRouter(); err != nil {
		return nil, errors.Join(err, a.close())
	}
	return a, nil
}

func (a *app) addRouter() error {
	router, err := message.NewRouter(message.RouterConfig{CloseTimeout: stopLimit}, a.logger)
	if err != nil {
		return err
	}
	a.router = router
	metrics.NewPrometheusMetricsBuilder(a.registry, "boxoffice", "").AddPrometheusRouterMetrics(router)
	poison, err := middleware.PoisonQueue(a.publisher, eventTopic("poison"))
	if err != nil {
		return err
	}
	retry := middleware.Retry{MaxRetries: 3, InitialInterval: 50 * time.Millisecond, Logger: a.logger}
	router.AddMiddleware(middleware.CorrelationID, poison, retry.Middleware, middleware.Recoverer)
	return nil
}

// addCommands adds the command bus and its handler.
func (a *app) addCommands(publisher message.Publisher, subscriber message.Subscriber, bookSeat func(context.Context, *BookSeat) error) error {
	var err error
	a.commands, err = cqrs.NewCommandBusWithConfig(publisher, cqrs.CommandBusConfig{
		Marshaler: marshaler,
		GeneratePublishTopic: func(params cqrs.CommandBusGeneratePublishTopicParams) (string, error) {
			return commandTopic(params.CommandName), nil
		},
	})
	if err != nil {
		return err
	}
	processor, err := cqrs.NewCommandProcessorWithConfig(a.router, cqrs.CommandProcessorConfig{
		Marshaler: marshaler,
		GenerateSubscribeTopic: func(params cqrs.CommandProcessorGenerateSubscribeTopicParams) (string, error) {
			return commandTopic(params.CommandName), nil
		},
		SubscriberConstructor: func(cqrs.CommandProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return subscriber, nil
		},
	})
	if err != nil {
		return err
	}
	return processor.AddHandlers(cqrs.NewCommandHandler("book_seat", func(ctx context.Context, command *BookSeat) error {
		a.tally.note(received, command.BookingID)
		if err := bookSeat(ctx, command); err != nil {
			return err
		}
		a.tally.note(handled, command.BookingID)
		return nil
	}))
}

// polledCommands is watermill-sql as the application had it.
func (a *app) polledCommands() (message.Publisher, message.Subscriber, error) {
	db := watersql.BeginnerFromPgx(a.pool)
	publisher, err := watersql.NewPublisher(db, watersql.PublisherConfig{
		SchemaAdapter:        watersql.DefaultPostgreSQLSchema{},
		AutoInitializeSchema: true,
	}, a.logger)
	if err != nil {
		return nil, nil, err
	}
	subscriber, err := watersql.NewSubscriber(db, watersql.SubscriberConfig{
		SchemaAdapter:    watersql.DefaultPostgreSQLSchema{},
		OffsetsAdapter:   watersql.DefaultPostgreSQLOffsetsAdapter{},
		InitializeSchema: true,
	}, a.logger)
	return publisher, subscriber, err
}

// bookSeat is the handler as the application had it: a commit, then the event. In between it can be lost.
func (a *app) bookSeat(ctx context.Context, command *BookSeat) error {
	isNew := false
	err := pgx.BeginFunc(ctx, a.pool, func(tx pgx.Tx) (err error) {
		isNew, err = insertBooking(ctx, tx, command)
		return err
	})
	if err != nil || !isNew {
		return err
	}
	events, err := newEventBus(a.publisher)
	if err != nil {
		return err
	}
	return events.Publish(ctx, command.booked())
}

// addEvents adds the application's event handlers.
func (a *app) addEvents(handlers ...cqrs.EventHandler) error {
	processor, err := cqrs.NewEventProcessorWithConfig(a.router, cqrs.EventProcessorConfig{
		Marshaler: marshaler,
		GenerateSubscribeTopic: func(params cqrs.EventProcessorGenerateSubscribeTopicParams) (string, error) {
			return eventTopic(params.EventName), nil
		},
		SubscriberConstructor: func(params cqrs.EventProcessorSubscriberConstructorParams) (message.Subscriber, error) {
			return a.broker.subscriber(params.HandlerName)
		},
	})
	if err != nil {
		return err
	}
	return errors.Join(processor.AddHandlers(handlers...), a.addPoison())
}

// confirm writes the customer a letter.
func (a *app) confirm() cqrs.EventHandler {
	return cqrs.NewEventHandler("confirm", func(_ context.Context, event *SeatBooked) error {
		a.tally.note(confirmed, event.BookingID)
		return nil
	})
}

// addPoison adds what looks after the messages that no attempt could handle.
func (a *app) addPoison() error {
	subscriber, err := a.broker.subscriber("poison")
	if err != nil {
		return err
	}
	a.router.AddConsumerHandler("poison", eventTopic("poison"), subscriber, func(msg *message.Message) error {
		a.logger.Error("A message cannot be handled", errors.New(msg.Metadata.Get(middleware.ReasonForPoisonedKey)), watermill.LogFields{"uuid": msg.UUID})
		a.tally.note(poisoned, msg.UUID)
		return nil
	})
	return nil
}

// whileRunning runs the router for as long as work takes, which begins when all handlers have subscribed. Ending the
// router closes its subscribers.
func (a *app) whileRunning(ctx context.Context, work func(ctx context.Context) error) error {
	ended := make(chan error, 1)
	go func() { ended <- a.router.Run(ctx) }()
	select {
	case <-a.router.Running():
	case err := <-ended:
		return errors.Join(err, context.Cause(ctx))
	}
	workErr := work(ctx)
	closeErr := a.router.Close()
	return errors.Join(workErr, closeErr, <-ended)
}

func (a *app) close() error {
	return errors.Join(a.publisher.Close(), a.broker.stop())
}

// handlersSeen returns how many messages each handler has handled without an error, as the metrics tell.
func (a *app) handlersSeen() (map[string]uint64, error) {
	families, err := a.registry.Gather()
	if err != nil {
		return nil, fmt.Errorf("metrics: %w", err)
	}
	seen := map[string]uint64{}
	for _, family := range families {
		if family.GetName() != "boxoffice_handler_execution_time_seconds" {
			continue
		}
		for _, metric := range family.GetMetric() {
			labels := map[string]string{}
			for _, label := range metric.GetLabel() {
				labels[label.GetName()] = label.GetValue()
			}
			if labels["success"] == "true" {
				seen[labels["handler_name"]] += metric.GetHistogram().GetSampleCount()
			}
		}
	}
	return seen, nil
}
