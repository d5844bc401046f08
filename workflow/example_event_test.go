package workflow_test

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow"
)

type Payment struct{ Cents int64 }

type transferred struct{ ID, Order string }

var settle = workflow.Define("settle", func(ctx *workflow.Context, order string) (int64, error) {
	paid, err := workflow.WaitEvent[Payment](ctx, "order.paid",
		workflow.WithAttributes(map[string]string{"order": order}), workflow.WithTimeout(48*time.Hour))
	return paid.Data.Cents, err
})

// A bank's message that comes twice is one event, and whoever waits for the payment of that order gets it once.
func ExampleWaitEvent() {
	fmt.Println(settle.Name())
	// Output: settle
}

func ExampleEngine_SendEventTx() {
	_ = func(ctx context.Context, tx pgx.Tx, engine *workflow.Engine, transfer transferred, payment Payment) error {
		return engine.SendEventTx(ctx, tx, workflow.OutgoingEvent{
			Type: "order.paid", Source: "bank", ID: transfer.ID, Attributes: map[string]string{"order": transfer.Order}, Data: payment,
		})
	}
}
