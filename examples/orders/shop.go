package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

// Topics of the events, which are NATS subjects.
const (
	topicPlaced      = "order.placed"
	topicShipped     = "order.shipped"
	topicCompensated = "order.compensated"
)

// OrderEvent is the payload of all events.
type OrderEvent struct {
	OrderID    int    `json:"order_id"`
	RunID      string `json:"run_id"`
	CustomerID string `json:"customer_id"`
	// Number counts the customer's events, from 1, in the order in which they happened.
	Number        int  `json:"number"`
	NeedsApproval bool `json:"needs_approval,omitempty"`
}

// eventID is the same for a given order and topic, so that the checks can tell which are missing.
func eventID(order Order, topic string) string { return fmt.Sprintf("%s/%s", order.RunID(), topic) }

// shop is the part of the order process that lives in the application's own tables.
type shop struct {
	worker string
	outbox func() *outbox.Writer
}

// Shipment is an order that is packed.
type Shipment struct {
	Order Order     `json:"order"`
	Due   time.Time `json:"due"`
}

var (
	errOutOfStock = workflow.NewError("out_of_stock", "not enough units in stock")
	errRefused    = workflow.NewError("carrier_refused", "the carrier refuses the order")
)

// reserve takes the order's units out of the stock and tells the world, in the transaction that also records the step.
func (s *shop) reserve(ctx context.Context, order Order) (int, error) {
	tx := workflow.Tx(ctx)
	if err := moveStock(ctx, tx, order, -1); err != nil {
		return 0, err
	}
	if _, err := tx.Exec(ctx, `insert into shop.reservations (order_id, worker) values ($1, $2)`, order.ID, s.worker); err != nil {
		return 0, fmt.Errorf("note the reservation: %w", err)
	}
	return order.Units(), s.emit(ctx, tx, order, topicPlaced)
}

// restock is the compensation of reserve.
func (s *shop) restock(ctx context.Context, order Order, _ int) error {
	tx := workflow.Tx(ctx)
	if err := moveStock(ctx, tx, order, +1); err != nil {
		return err
	}
	return s.emit(ctx, tx, order, topicCompensated)
}

// ship hands the order to the carrier, who says no for good to some.
func (s *shop) ship(ctx context.Context, shipment Shipment) (string, error) {
	tx := workflow.Tx(ctx)
	order := shipment.Order
	if order.Refused() {
		return "", workflow.Terminal(errRefused)
	}
	const query = `insert into shop.shipments (order_id, worker, packed_due) values ($1, $2, $3)`
	if _, err := tx.Exec(ctx, query, order.ID, s.worker, shipment.Due); err != nil {
		return "", fmt.Errorf("note the shipment: %w", err)
	}
	return fmt.Sprintf("NW-%d", order.ID), s.emit(ctx, tx, order, topicShipped)
}

// moveStock takes the order's units from the stock (sign -1) or puts them back, all lines in one round trip.
func moveStock(ctx context.Context, tx pgx.Tx, order Order, sign int) error {
	batch := &pgx.Batch{}
	for _, line := range order.byProduct() {
		units := sign * line.Quantity
		batch.Queue(`update shop.products set stock = stock + $2 where product_id = $1 and stock + $2 >= 0`, line.ProductID, units).
			Exec(func(done pgconn.CommandTag) error {
				if done.RowsAffected() == 0 {
					return workflow.Terminal(fmt.Errorf("product %d: %w", line.ProductID, errOutOfStock))
				}
				return nil
			})
		batch.Queue(`insert into shop.stock_moves (order_id, product_id, units) values ($1, $2, $3)`, order.ID, line.ProductID, units)
	}
	if err := tx.SendBatch(ctx, batch).Close(); err != nil {
		return fmt.Errorf("move the stock of order %d: %w", order.ID, err)
	}
	return nil
}

// emit writes an event to the outbox. Its key is the customer: the events of one customer reach NATS in their order.
func (s *shop) emit(ctx context.Context, tx pgx.Tx, order Order, topic string) error {
	event := OrderEvent{OrderID: order.ID, RunID: order.RunID(), CustomerID: order.CustomerID, NeedsApproval: order.NeedsApproval()}
	const query = `update shop.customers set events = events + 1 where customer_id = $1 returning events`
	if err := tx.QueryRow(ctx, query, order.CustomerID).Scan(&event.Number); err != nil {
		return fmt.Errorf("number the event: %w", err)
	}
	payload, err := json.Marshal(event)
	if err != nil {
		return fmt.Errorf("encode the event: %w", err)
	}
	return s.outbox().Add(ctx, tx, outbox.Event{ID: eventID(order, topic), Topic: topic, Key: order.CustomerID, Payload: payload})
}
