package romancy_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/workflow"
)

type Order struct {
	ID    string
	Cents int64
}

type Receipt struct{ Charged int64 }

var charge = workflow.DefineActivity("charge_card", func(_ context.Context, o Order) (Receipt, error) {
	return Receipt{Charged: o.Cents}, nil
})

var orderFlow = workflow.Define("order", func(ctx *workflow.Context, o Order) (Receipt, error) {
	receipt, err := charge.Execute(ctx, o) // recorded: after a crash it is not charged again
	if err != nil {
		return Receipt{}, err
	}
	return receipt, workflow.Sleep(ctx, time.Hour) // durable: no process needs to live that long
})

func Example() {
	ctx := context.Background()
	app := romancy.NewApp(
		romancy.WithDatabase("postgres://user:password@localhost:5432/dbname"),
		romancy.WithAutoMigrate(),
		romancy.WithWorkflows(orderFlow),
	)
	if err := app.Start(ctx); err != nil {
		log.Print(err)
		return
	}
	defer func() {
		if err := app.Shutdown(ctx); err != nil {
			log.Print(err)
		}
	}()

	run, err := orderFlow.Start(ctx, app.Engine(), Order{ID: "order-10248", Cents: 44000}, workflow.WithID("order-10248"))
	if err != nil {
		log.Print(err)
		return
	}
	receipt, err := run.Result(ctx) // waits, woken by a notification
	fmt.Println(receipt, err)
}

func ExampleWithListenNotify() {
	app := romancy.NewApp(
		romancy.WithDatabase("postgres://user:password@localhost:5432/dbname"),
		// On; nil would leave it to the App, which turns it on too.
		romancy.WithListenNotify(romancy.BoolPtr(true)),
		// How often to look for what a lost notification would have said.
		romancy.WithNotifyFallbackInterval(30*time.Second),
		// The longest wait between two attempts to reconnect.
		romancy.WithNotifyReconnectDelay(60*time.Second),
	)
	fmt.Println(app.Status().State)
	// Output: new
}

func ExampleWithListenNotify_disabled() {
	falseVal := false
	app := romancy.NewApp(
		romancy.WithDatabase("postgres://..."),
		romancy.WithListenNotify(&falseVal), // Only look, every second or so.
	)
	fmt.Println(app.Status().State)
	// Output: new
}

func ExampleWithMaxWorkflowsPerBatch() {
	app := romancy.NewApp(
		romancy.WithDatabase("postgres://..."),
		romancy.WithMaxWorkflowsPerBatch(100),
		romancy.WithMaxTimersPerBatch(100),
		romancy.WithMaxMessagesPerBatch(100),
	)
	fmt.Println(app.Status().State)
	// Output: new
}
