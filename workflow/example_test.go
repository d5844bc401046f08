package workflow_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"time"

	"github.com/romancy-go/romancy/workflow"
)

type Trip struct {
	Traveller string
	Nights    int
}

type Booking struct {
	Reference string
	Cents     int64
}

var (
	errSoldOut = workflow.NewError("sold_out", "nothing left")

	bookHotel = workflow.DefineActivity("book_hotel", func(_ context.Context, t Trip) (Booking, error) {
		return Booking{Reference: "H-1", Cents: int64(t.Nights) * 9000}, nil
	}, workflow.WithRetry(workflow.RetryPolicy{MaxElapsed: time.Hour, NonRetryable: []error{errSoldOut}}), workflow.WithTimeout(10*time.Second)).
		WithCompensation(func(_ context.Context, _ Trip, b Booking) error {
			log.Print("cancelling ", b.Reference) // undone if the trip fails later, or is cancelled
			return nil
		})

	bookFlight = workflow.DefineActivity("book_flight", func(context.Context, Trip) (Booking, error) {
		return Booking{Reference: "F-1", Cents: 25000}, nil
	})
)

// Both bookings are made at the same time. Whichever worker goes on after a crash executes only what was not recorded.
var trip = workflow.Define("trip", func(ctx *workflow.Context, t Trip) (int64, error) {
	hotel, flight := bookHotel.Go(ctx, t), bookFlight.Go(ctx, t)
	if err := workflow.All(ctx, hotel, flight); err != nil {
		return 0, err // what was booked is undone
	}
	room, _ := hotel.Get(ctx) // there already: All has waited
	seat, _ := flight.Get(ctx)
	return room.Cents + seat.Cents, nil
})

type Quote struct{ Cents int64 }

var askSupplier = workflow.DefineActivity("ask_supplier", func(ctx context.Context, _ string) (Quote, error) {
	<-ctx.Done() // ends when another case is chosen
	return Quote{}, ctx.Err()
})

// The first answer wins. The choice is recorded, so every execution of the run makes the same.
var purchase = workflow.Define("purchase", func(ctx *workflow.Context, what string) (best Quote, err error) {
	err = workflow.Select(ctx,
		workflow.OnResult(askSupplier.Go(ctx, what), func(q Quote, err error) error { best = q; return err }),
		workflow.OnMessage("offers", func(m workflow.Message[Quote]) error { best = m.Body; return nil }),
		workflow.OnTimer(24*time.Hour, func() error { return errors.New("nobody offers anything") }),
	)
	return best, err
})

type Meter struct{ Readings, Sum int }

// A workflow that goes on for ever begins anew from time to time, so that its history stays short.
var metering = workflow.Define("metering", func(ctx *workflow.Context, total Meter) (Meter, error) {
	for range 1000 {
		batch, err := workflow.ReceiveMany[int](ctx, "readings", 100)
		if err != nil {
			return total, err
		}
		for _, reading := range batch {
			total.Readings, total.Sum = total.Readings+1, total.Sum+reading.Body
		}
	}
	return total, workflow.ContinueAsNew(ctx, total)
})

// Cancel ends a run from outside, after undoing what it has done if asked to.
func ExampleEngine_Cancel() {
	ctx := context.Background()
	var engine *workflow.Engine // romancy.App.Engine, or workflow.NewEngine
	run, err := trip.Start(ctx, engine, Trip{Traveller: "Anne", Nights: 3})
	if err != nil {
		log.Print(err)
		return
	}
	if err := engine.Cancel(ctx, run.ID(), "the customer has changed her mind", workflow.Compensate()); err != nil {
		log.Print(err)
	}
	_, err = run.Result(ctx) // waits until all is undone
	fmt.Println(errors.Is(err, workflow.ErrCancelled))
}

func ExampleSelect() {
	fmt.Println(purchase.Name())
	// Output: purchase
}

func ExampleContinueAsNew() {
	fmt.Println(metering.Name())
	// Output: metering
}
