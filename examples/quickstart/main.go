package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"time"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/workflow"
)

var charge = workflow.DefineActivity("charge_card", func(_ context.Context, cents int) (string, error) {
	return fmt.Sprintf("receipt for %d cents", cents), nil // recorded once, whatever crashes afterwards
})

var order = workflow.Define("order", func(ctx *workflow.Context, cents int) (string, error) {
	_, err := workflow.Receive[string](ctx, "approvals", workflow.WithTimeout(24*time.Hour)) // woken in milliseconds
	if err != nil {
		return "", err
	}
	return charge.Execute(ctx, cents)
})

func main() {
	ctx := context.Background()
	app := romancy.NewApp(romancy.WithDatabase(os.Getenv("DATABASE_URL")), romancy.WithAutoMigrate(), romancy.WithWorkflows(order))
	if err := app.Start(ctx); err != nil {
		log.Fatal(err)
	}
	defer func() { fmt.Println("shut down:", app.Shutdown(ctx)) }()
	run, err := order.Start(ctx, app.Engine(), 4200)
	if err != nil {
		log.Panic(err)
	}
	if err := app.Engine().SendTo(ctx, run.ID(), "approvals", "granted"); err != nil {
		log.Panic(err)
	}
	fmt.Println(run.Result(ctx)) // receipt for 4200 cents <nil>
}
