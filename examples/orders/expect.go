package main

import "github.com/romancy-go/romancy/workflow"

// step is a row of a run's history.
type step struct{ kind, name string }

// expectation is what must come out, computed from the file alone.
type expectation struct {
	runs, shipped, compensated, approvals int
	chargedCents, refundedCents           int64
	// stock at the end by product: nobody gets the units of the refused orders.
	stock map[int]int
	// refusedUnits are those.
	refusedUnits int
	lines        int
	// events by id.
	events map[string]expectedEvent
	// history by run.
	history  map[string][]step
	statuses map[string]workflow.Status
}

type expectedEvent struct {
	topic, customer string
	order           int
}

func expect(orders []Order, products []Product) expectation {
	e := expectation{
		runs: len(orders), stock: map[int]int{}, events: map[string]expectedEvent{}, history: map[string][]step{},
		statuses: map[string]workflow.Status{},
	}
	for _, product := range products {
		e.stock[product.ID] = product.UnitsInStock
	}
	for _, order := range orders {
		e.add(order)
	}
	return e
}

func (e *expectation) add(order Order) {
	e.lines += len(order.Lines)
	e.chargedCents += order.Cents()
	e.event(order, topicPlaced)
	history := []step{{"activity", reserveName}, {"activity", chargeName}}
	if order.NeedsApproval() {
		e.approvals++
		// The deadline of the wait, then the message.
		history = append(history, step{"timer", "receive:" + approvals}, step{"receive", approvals})
	}
	history = append(history, step{"side_effect", "now"}, step{"timer", "sleep_until"}, step{"activity", shipName})
	status := workflow.StatusCompleted
	if order.Refused() {
		status = workflow.StatusFailed
		e.compensated++
		e.refundedCents += order.Cents()
		for _, line := range order.Lines {
			e.stock[line.ProductID] += line.Quantity
		}
		e.refusedUnits += order.Units()
		e.event(order, topicCompensated)
		history = append(history, step{"failing", ""}, step{"compensation", chargeName}, step{"compensation", reserveName})
	} else {
		e.shipped++
		e.event(order, topicShipped)
	}
	e.history[order.RunID()] = history
	e.statuses[order.RunID()] = status
}

func (e *expectation) event(order Order, topic string) {
	e.events[eventID(order, topic)] = expectedEvent{topic: topic, customer: order.CustomerID, order: order.ID}
}
