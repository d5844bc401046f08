package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/workflow"
)

const (
	// ordersPerSecond is how fast the customers order.
	ordersPerSecond = 30
	// copiesOfOrder is how often each order is sent, because that is what brokers and impatient customers do.
	copiesOfOrder = 2
)

// starterReport counts what became of the messages.
type starterReport struct {
	Started    int `json:"started"`    // runs
	Existing   int `json:"existing"`   // messages whose run had been started by another one
	Redelivery int `json:"redelivery"` // messages that had to be handled again
}

// starter is a Watermill handler that starts one run an order.
type starter struct {
	app  *romancy.App
	flow *workflow.Workflow[Order, Outcome]

	mu     sync.Mutex
	report starterReport
	want   int
	all    chan struct{} // closed when every message has been handled
}

func runStarter(ctx context.Context, child *childProcess) (any, error) {
	orders, err := loadOrders(child.Orders)
	if err != nil {
		return nil, err
	}
	pool, err := connect(ctx, child, 8)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	s := &starter{flow: newOrderFlow(&shop{}, &provider{}), want: copiesOfOrder * len(orders), all: make(chan struct{})}
	s.app = romancy.NewApp(
		romancy.WithPool(pool), romancy.WithListenNotify(&child.Notify), romancy.WithWorkflows(s.flow), romancy.WithClientOnly(),
		romancy.WithLogger(child.logger),
	)
	if err := s.app.Start(ctx); err != nil {
		return nil, err
	}
	err = errors.Join(s.serve(ctx, child, orders), shutdown(s.app))
	return s.counts(), err
}

// serve runs the router that handles orders, and plays the customers who send them.
func (s *starter) serve(ctx context.Context, child *childProcess, orders []Order) error {
	publisher, err := newPublisher(child)
	if err != nil {
		return err
	}
	defer closeAll(child.logger, publisher)
	subscriber, err := newSubscriber(child, "starter", 4)
	if err != nil {
		return err
	}
	router, err := newRouter(child)
	if err != nil {
		closeAll(child.logger, subscriber)
		return err
	}
	router.AddConsumerHandler("start", subjectIncoming, subscriber, s.handle)
	return whileRouting(ctx, router, func(ctx context.Context) error {
		child.ready()
		if err := sendOrders(ctx, publisher, orders); err != nil {
			return err
		}
		select {
		case <-s.all:
			return nil
		case <-ctx.Done():
			return fmt.Errorf("stopped after %+v of %d messages: %w", s.counts(), s.want, ctx.Err())
		}
	})
}

// sendOrders plays the customers.
func sendOrders(ctx context.Context, publisher message.Publisher, orders []Order) error {
	pace := time.NewTicker(time.Second / ordersPerSecond)
	defer pace.Stop()
	for _, order := range orders {
		payload, err := json.Marshal(order)
		if err != nil {
			return fmt.Errorf("encode order %d: %w", order.ID, err)
		}
		for range copiesOfOrder {
			if err := publisher.Publish(subjectIncoming, message.NewMessage(watermill.NewUUID(), payload)); err != nil {
				return fmt.Errorf("send order %d: %w", order.ID, err)
			}
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// handle starts the order's run. Its id comes from the order, so a second message, or the same one delivered again after an
// error, finds the run that exists.
func (s *starter) handle(msg *message.Message) error {
	var order Order
	if err := json.Unmarshal(msg.Payload, &order); err != nil {
		return fmt.Errorf("decode order: %w", err)
	}
	run, err := s.flow.Start(msg.Context(), s.app.Engine(), order, workflow.WithID(order.RunID()))
	if err == nil && run.ID() != "order-"+strconv.Itoa(order.ID) {
		err = fmt.Errorf("order %d got run %s", order.ID, run.ID())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case err != nil:
		s.report.Redelivery++
		return err
	case run.Existing():
		s.report.Existing++
	default:
		s.report.Started++
	}
	if s.report.Existing+s.report.Started == s.want {
		close(s.all)
	}
	return nil
}

func (s *starter) counts() starterReport {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.report
}
