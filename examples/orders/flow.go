package main

import (
	"context"
	"time"

	"github.com/romancy-go/romancy/workflow"
)

// Names that are stored in history, and so may not change while runs are under way.
const (
	flowName       = "order"
	reserveName    = "reserve_stock"
	chargeName     = "charge_card"
	shipName       = "ship"
	approvals      = "approvals" // the channel
	approvalPeriod = 24 * time.Hour
	packingTime    = 300 * time.Millisecond
)

// Approval is the message that an order from 5,000.00 on waits for.
type Approval struct {
	By string `json:"by"`
}

// Outcome is the output of an order's run.
type Outcome struct {
	ChargedCents int64  `json:"charged_cents"`
	ApprovedBy   string `json:"approved_by,omitempty"`
	Tracking     string `json:"tracking"`
}

// newOrderFlow defines the workflow. A process that only starts runs needs neither shop nor provider.
func newOrderFlow(s *shop, p *provider) *workflow.Workflow[Order, Outcome] {
	reserve := workflow.DefineActivity(reserveName, s.reserve, workflow.WithTransaction(),
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5})).
		WithCompensation(s.restock)

	charge := workflow.DefineActivity(chargeName, func(ctx context.Context, order Order) (int64, error) {
		info := workflow.ActivityInfo(ctx)
		return p.charge(ctx, info.IdempotencyKey, order, info.Attempt)
	}, workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 10, InitialInterval: 100 * time.Millisecond, Multiplier: 2}),
		workflow.WithTimeout(5*time.Second)).
		WithCompensation(func(ctx context.Context, order Order, _ int64) error {
			return p.refund(ctx, workflow.ActivityInfo(ctx).IdempotencyKey, order)
		})

	ship := workflow.DefineActivity(shipName, s.ship, workflow.WithTransaction(),
		workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 5}))

	return workflow.Define(flowName, func(ctx *workflow.Context, order Order) (Outcome, error) {
		if _, err := reserve.Execute(ctx, order); err != nil {
			return Outcome{}, err
		}
		charged, err := charge.Execute(ctx, order)
		if err != nil {
			return Outcome{}, err
		}
		outcome := Outcome{ChargedCents: charged}

		if order.NeedsApproval() {
			approval, err := workflow.Receive[Approval](ctx, approvals, workflow.WithTimeout(approvalPeriod))
			if err != nil {
				return Outcome{}, err
			}
			outcome.ApprovedBy = approval.Body.By
		}

		// For the demo, the time is recorded: right after the wake-up, and when the sleep should end.
		now, err := workflow.Now(ctx)
		if err != nil {
			return Outcome{}, err
		}
		packed := now.Add(packingTime)
		if err := workflow.SleepUntil(ctx, packed); err != nil {
			return Outcome{}, err
		}
		outcome.Tracking, err = ship.Execute(ctx, Shipment{Order: order, Due: packed})
		return outcome, err
	})
}
