package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"sync"
	"sync/atomic"
	"time"
)

// poolConnections is the size of either system's pool. It is DBOS's default.
const poolConnections = 20

const (
	// channel is what messages are sent on.
	channel = "go"
	// foreverSleep is longer than any measurement.
	foreverSleep = 30 * 24 * time.Hour
)

// system is what is measured, in its worker process. Both systems offer the same workflows, written as each would have
// them: five steps that add one, a receiver of so many messages, a sleeper.
type system interface {
	// fiveSteps executes one run and returns when its result is there.
	fiveSteps(ctx context.Context) error
	// startReceiver starts a run that receives so many messages and tells observed when each has arrived.
	startReceiver(ctx context.Context, messages int) (id string, err error)
	// send sends a message to a run; it is durable when send returns.
	send(ctx context.Context, to string, message int) error
	// startSleeper starts a run that sleeps and then tells observed how late it went on.
	startSleeper(ctx context.Context, sleep time.Duration) error
	stop(ctx context.Context) error
}

// systems are made by these.
var systems = map[string]func(ctx context.Context, as assignment) (system, error){
	systemRomancy: newRomancy,
	systemDBOS:    newDBOS,
	systemStorm:   newStorm,
}

const (
	systemRomancy = "romancy"
	systemDBOS    = "dbos"
)

// observed is what the workflows of this process tell of themselves.
var observed = observations{arrivals: make(chan time.Time, 100_000), lateness: make(chan time.Duration, 100_000)}

type observations struct {
	points   atomic.Int64       // durable points passed by runs of five steps
	arrivals chan time.Time     // messages received, in their order
	lateness chan time.Duration // of sleeps, from the line before to the line after, without what was slept
}

// worker serves the orders of the process that started this one.
type worker struct {
	as     assignment
	system system
	orders map[string]func(ctx context.Context, with json.RawMessage) (any, error)
}

// serveWorker is the main function of a worker process.
func serveWorker(description string) error {
	// The terminal's interrupt reaches the whole group; whoever started us decides what it means.
	signal.Ignore(os.Interrupt)
	answers := json.NewEncoder(os.Stdout)
	os.Stdout = os.Stderr // nothing but answers goes there
	ctx := context.Background()
	w := &worker{}
	if err := json.Unmarshal([]byte(description), &w.as); err != nil {
		return fmt.Errorf("%s: %w", workerVariable, err)
	}
	orders := readOrders(os.Stdin)
	open, known := systems[w.as.System]
	if !known {
		return fmt.Errorf("%s: there is no system %q", workerVariable, w.as.System)
	}
	var err error
	w.system, err = open(ctx, w.as)
	w.orders = w.table()
	for given := range orders {
		got := answer{}
		if err != nil { // every answer says that it did not start
			got.Failure = err.Error()
		} else if value, failure := w.serve(ctx, given); failure != nil {
			got.Failure = failure.Error()
		} else if got.Value, failure = json.Marshal(value); failure != nil {
			got.Failure = failure.Error()
		}
		if err := answers.Encode(got); err != nil {
			return err
		}
		if given.Do == "stop" {
			return nil
		}
	}
	return nil
}

// readOrders exits the process when input ends: whoever started it is gone, or done with it.
func readOrders(input io.Reader) <-chan order {
	orders := make(chan order)
	go func() {
		lines := json.NewDecoder(input)
		for {
			var given order
			if err := lines.Decode(&given); err != nil {
				os.Exit(1)
			}
			orders <- given
		}
	}()
	return orders
}

func (w *worker) serve(ctx context.Context, given order) (any, error) {
	do, known := w.orders[given.Do]
	if !known {
		return nil, fmt.Errorf("%s does not take this order", w.as.System)
	}
	return do(ctx, given.With)
}

// taking makes an order of a function that takes its parameters as a value.
func taking[With any](do func(ctx context.Context, with With) (any, error)) func(context.Context, json.RawMessage) (any, error) {
	return func(ctx context.Context, text json.RawMessage) (any, error) {
		var with With
		if text != nil {
			if err := json.Unmarshal(text, &with); err != nil {
				return nil, err
			}
		}
		return do(ctx, with)
	}
}

// nothing is what an order without parameters takes.
type nothing struct{}

func (w *worker) table() map[string]func(context.Context, json.RawMessage) (any, error) {
	table := map[string]func(context.Context, json.RawMessage) (any, error){
		"ready":    taking(func(context.Context, nothing) (any, error) { return nothing{}, nil }),
		"stop":     taking(func(ctx context.Context, _ nothing) (any, error) { return nothing{}, w.system.stop(ctx) }),
		"load":     taking(w.load),
		"receiver": taking(func(ctx context.Context, messages int) (any, error) { return w.system.startReceiver(ctx, messages) }),
		"arrivals": taking(w.arrivals),
		"send":     taking(w.send),
		"sleepers": taking(w.sleepers),
		"timers":   taking(w.timers),
	}
	switch ours := w.system.(type) {
	case *romancySystem:
		ours.addOrders(table)
	case *stormSystem:
		ours.addStormOrders(table)
	}
	return table
}

// each calls do for the numbers below count, some of them at a time, and returns the first error.
func each(count, atOnce int, do func(i int) error) error {
	numbers := make(chan int)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var errs []error
	for range min(count, atOnce) {
		wg.Go(func() {
			for i := range numbers {
				if err := do(i); err != nil {
					mu.Lock()
					errs = append(errs, err)
					mu.Unlock()
				}
			}
		})
	}
	for i := range count {
		numbers <- i
	}
	close(numbers)
	wg.Wait()
	if len(errs) > 0 {
		return fmt.Errorf("%d of %d failed, the first: %w", len(errs), count, errs[0])
	}
	return nil
}

// take receives count values from a channel, each within a limit.
func take[T any](from <-chan T, count int, limit time.Duration) ([]T, error) {
	values := make([]T, 0, count)
	for len(values) < count {
		select {
		case value := <-from:
			values = append(values, value)
		case <-time.After(limit):
			return nil, fmt.Errorf("%d of %d came, then none for %s", len(values), count, limit)
		}
	}
	if len(from) > 0 {
		return nil, errors.New("more came than were asked for: something ran twice")
	}
	return values, nil
}
