package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"go.opentelemetry.io/otel/sdk/metric/metricdata"

	"github.com/romancy-go/romancy/workflow"
)

type faultsMetrics = metricdata.ResourceMetrics

const (
	faultsOrders  = 6
	faultsAuditor = "auditor"
	faultsKeeper  = "keeper"
	faultsGhosts  = "0 ghost " // what the ids begin with of subscribers that have no run
	faultsPal     = "pal"
	faultsLetters = 20
)

// faultsOrder is the number of an order. What it does differently from others follows from it.
type faultsOrder int

func (o faultsOrder) id() string       { return fmt.Sprintf("order-%d", o) }
func (o faultsOrder) refused() bool    { return o%3 == 2 }
func (o faultsOrder) want() string     { return "shipped " + o.id() }
func (o faultsOrder) fails(n int) bool { return int(o)%n == 1 }

// faultsFlows are the workflows of a world, by their types.
type faultsFlows struct {
	order    *workflow.Workflow[faultsOrder, string]
	auditor  *workflow.Workflow[int, int]
	keeper   *workflow.Workflow[string, string]
	heir     *workflow.Workflow[int, int]
	flaky    *workflow.Workflow[int, string]
	patient  *workflow.Workflow[string, string]
	buyer    *workflow.Workflow[int, string]
	sleeper  *workflow.Workflow[time.Duration, string]
	stranded *workflow.Workflow[int, string]
	reader   *workflow.Workflow[int, string]
	herald   *workflow.Workflow[string, string]
	quick    *workflow.Workflow[int, int]
	moved    *workflow.Workflow[int, string]
	pal      *workflow.Workflow[int, int]
}

func (f faultsFlows) shop() []workflow.Definition {
	return []workflow.Definition{f.order, f.auditor, f.keeper, f.heir, f.flaky, f.patient, f.stranded, f.reader, f.herald, f.quick, f.moved, f.pal}
}

// annex executes what is to be dropped from memory while it waits.
func (f faultsFlows) annex() []workflow.Definition {
	return []workflow.Definition{f.buyer, f.sleeper}
}

// faultsAct makes an activity that counts its executions.
func faultsAct[In, Out any](w *faultsWorld, name string, tx bool, fn func(ctx context.Context, in In) (Out, error)) *workflow.Activity[In, Out] {
	options := []workflow.ActivityOption{workflow.WithRetry(workflow.RetryPolicy{MaxAttempts: 100, InitialInterval: 10 * time.Millisecond, MaxInterval: 50 * time.Millisecond})}
	if tx {
		options = append(options, workflow.WithTransaction())
	}
	return workflow.DefineActivity(name, func(ctx context.Context, in In) (Out, error) {
		done := w.executes(ctx, name, tx)
		defer done()
		return fn(ctx, in)
	}, options...)
}

// executes counts one execution of a body, from here until the function that it returns is called.
func (w *faultsWorld) executes(ctx context.Context, name string, tx bool) func() {
	info := workflow.ActivityInfo(ctx)
	e := faultsExecution{Key: info.IdempotencyKey, Attempt: info.Attempt, Name: name, Tx: tx}
	w.begin(e)
	return func() { w.end(e) }
}

// effect is an effect in the transaction of an activity.
func faultsEffect(ctx context.Context, what string) error {
	_, err := workflow.Tx(ctx).Exec(ctx, "insert into shop.effects (key, what) values ($1::text, $2::text)", workflow.ActivityInfo(ctx).IdempotencyKey, what)
	return err
}

// failsFirst fails the first attempt if an order is one that does.
func failsFirst(ctx context.Context, fails bool) error {
	if fails && workflow.ActivityInfo(ctx).Attempt == 1 {
		return errors.New("the first attempt fails")
	}
	return nil
}

type faultsNote struct{ Run, Key string }

func (w *faultsWorld) defineFlows() faultsFlows {
	note := faultsAct(w, "note", false, func(_ context.Context, n faultsNote) (int, error) {
		w.note(n.Run, n.Key)
		return 0, nil
	})
	heard := func(ctx *workflow.Context, key string) error {
		_, err := note.Execute(ctx, faultsNote{Run: strings.SplitN(ctx.InstanceID(), "/", 2)[0], Key: key})
		return err
	}
	return faultsFlows{
		order:   w.defineOrder(heard),
		auditor: w.defineAuditor(note),
		keeper:  workflow.Define("keeper", faultsKeep),
		heir:    w.defineHeir(),
		flaky:   w.defineFlaky(),
		patient: w.definePatient(),
		buyer:   w.defineBuyer(heard),
		sleeper: workflow.Define("sleeper", func(ctx *workflow.Context, d time.Duration) (string, error) {
			_, err := workflow.Receive[string](ctx, "silence", workflow.WithTimeout(d))
			if !errors.Is(err, workflow.ErrTimeout) {
				return "", fmt.Errorf("a message that nobody sent: %w", err)
			}
			return "awake", workflow.Sleep(ctx, 10*time.Millisecond)
		}),
		stranded: w.defineStranded(func(context.Context) (string, error) { return "rescued", nil }),
		reader: workflow.Define("reader", func(ctx *workflow.Context, n int) (string, error) {
			story, err := workflow.WaitEvent[string](ctx, "story", workflow.WithAttributes(map[string]string{"reader": fmt.Sprint(n % 4)}))
			if err != nil {
				return "", err
			}
			return story.Data, heard(ctx, story.Data)
		}),
		herald: workflow.Define("herald", func(ctx *workflow.Context, news string) (string, error) {
			return news, workflow.Publish(ctx, "news", news)
		}),
		quick: workflow.Define("quick", func(_ *workflow.Context, n int) (int, error) { return n, nil }),
		moved: w.defineMoved(heard),
		pal: workflow.Define(faultsPal, func(ctx *workflow.Context, letters int) (int, error) {
			for range letters {
				letter, err := workflow.Receive[string](ctx, "letters")
				if err != nil {
					return 0, err
				}
				if err := heard(ctx, letter.Body); err != nil {
					return 0, err
				}
			}
			return letters, nil
		}),
	}
}

func (w *faultsWorld) defineOrder(heard func(*workflow.Context, string) error) *workflow.Workflow[faultsOrder, string] {
	undo := func(name string, tx bool) func(ctx context.Context, o faultsOrder, out string) error {
		return func(ctx context.Context, o faultsOrder, _ string) error {
			defer w.executes(ctx, "undo "+name, tx)()
			if tx {
				if err := faultsEffect(ctx, "undo "+name); err != nil {
					return err
				}
			}
			return failsFirst(ctx, o.refused())
		}
	}
	reserve := faultsAct(w, "reserve", true, func(ctx context.Context, o faultsOrder) (string, error) {
		if err := faultsEffect(ctx, "reserve"); err != nil {
			return "", err
		}
		return "reserved", failsFirst(ctx, o.fails(2))
	}).WithCompensation(undo("reserve", true))
	charge := faultsAct(w, "charge", false, func(ctx context.Context, o faultsOrder) (string, error) {
		return "charged", failsFirst(ctx, o.fails(3))
	}).WithCompensation(undo("charge", false))
	pack := faultsAct(w, "pack", false, func(ctx context.Context, o faultsOrder) (string, error) {
		return "packed", failsFirst(ctx, o.fails(2))
	}).WithCompensation(undo("pack", false))
	label := faultsAct(w, "label", true, func(ctx context.Context, _ faultsOrder) (string, error) {
		return "labelled", faultsEffect(ctx, "label")
	})
	ship := faultsAct(w, "ship", false, func(_ context.Context, o faultsOrder) (string, error) {
		if o.refused() {
			return "", workflow.Terminal(workflow.NewError("refused", o.id()))
		}
		return o.want(), nil
	})
	return workflow.Define("order", func(ctx *workflow.Context, o faultsOrder) (string, error) {
		if err := workflow.Subscribe(ctx, "news", workflow.Broadcast); err != nil {
			return "", err
		}
		if err := faultsRemember(ctx); err != nil {
			return "", err
		}
		if _, err := reserve.Execute(ctx, o); err != nil {
			return "", err
		}
		if _, err := charge.Execute(ctx, o); err != nil {
			return "", err
		}
		if err := workflow.Sleep(ctx, 20*time.Millisecond); err != nil {
			return "", err
		}
		packed, labelled := pack.Go(ctx, o), label.Go(ctx, o)
		if err := workflow.Select(ctx,
			workflow.OnTimer(time.Hour, func() error { return errors.New("an hour has passed") }),
			workflow.OnMessage("hurry", func(workflow.Message[string]) error { return errors.New("a message that nobody sent") }),
			workflow.OnResult(packed, func(_ string, err error) error { return err }),
		); err != nil {
			return "", err
		}
		if err := workflow.All(ctx, packed, labelled); err != nil {
			return "", err
		}
		if err := o.correspond(ctx, heard); err != nil {
			return "", err
		}
		return ship.Execute(ctx, o)
	})
}

// faultsRemember records what may differ from one execution to the next.
func faultsRemember(ctx *workflow.Context) error {
	if _, err := workflow.SideEffect(ctx, "nonce", func() (int64, error) { return rand.Int64(), nil }); err != nil {
		return err
	}
	if _, err := workflow.Now(ctx); err != nil {
		return err
	}
	_, err := workflow.NewID(ctx)
	return err
}

// correspond receives and sends in every way.
func (o faultsOrder) correspond(ctx *workflow.Context, heard func(*workflow.Context, string) error) error {
	receive := func(channel string, options ...workflow.ReceiveOption) error {
		message, err := workflow.Receive[string](ctx, channel, options...)
		if err != nil {
			return err
		}
		return heard(ctx, message.Body)
	}
	if err := receive("approvals"); err != nil {
		return err
	}
	if err := receive("voucher", workflow.WithTimeout(30*time.Millisecond)); !errors.Is(err, workflow.ErrTimeout) {
		return fmt.Errorf("a message that nobody sent: %w", err)
	}
	several, err := workflow.ReceiveMany[string](ctx, "remarks", 2)
	if err != nil {
		return err
	}
	for _, message := range several {
		if err := heard(ctx, message.Body); err != nil {
			return err
		}
	}
	if err := workflow.Subscribe(ctx, "vans", workflow.Competing); err != nil {
		return err
	}
	if err := receive("vans"); err != nil {
		return err
	}
	if err := workflow.Unsubscribe(ctx, "vans"); err != nil {
		return err
	}
	if o%2 == 0 {
		err = workflow.Publish(ctx, "audit", o.id(), workflow.WithSendKey("report "+o.id()))
	} else {
		err = workflow.SendTo(ctx, faultsAuditor, "inbox", o.id())
	}
	if err != nil {
		return err
	}
	return receive("news", workflow.WithTimeout(time.Hour))
}

// The auditor hears of every order, by two ways, and continues as new after two.
func (w *faultsWorld) defineAuditor(note *workflow.Activity[faultsNote, int]) *workflow.Workflow[int, int] {
	return workflow.Define("auditor", func(ctx *workflow.Context, heard int) (int, error) {
		if err := workflow.Subscribe(ctx, "audit", workflow.Competing); err != nil {
			return 0, err
		}
		for range 2 {
			stop := false
			report := func(m workflow.Message[string]) error {
				heard++
				_, err := note.Execute(ctx, faultsNote{Run: faultsAuditor, Key: m.Body})
				return err
			}
			if err := workflow.Select(ctx, workflow.OnMessage("inbox", report), workflow.OnMessage("audit", report),
				workflow.OnMessage("stop", func(workflow.Message[string]) error { stop = true; return nil })); err != nil || stop {
				return heard, err
			}
		}
		return 0, workflow.ContinueAsNew(ctx, heard)
	})
}

// The keeper holds channels in their modes while nobody else is subscribed.
func faultsKeep(ctx *workflow.Context, _ string) (string, error) {
	if err := workflow.Subscribe(ctx, "vans", workflow.Competing); err != nil {
		return "", err
	}
	if err := workflow.Subscribe(ctx, "private", workflow.Direct); err != nil {
		return "", err
	}
	if err := workflow.Subscribe(ctx, "audit", workflow.Broadcast); !errors.Is(err, workflow.ErrModeConflict) {
		return "", fmt.Errorf("a channel in two modes: %w", err)
	}
	if err := workflow.SendTo(ctx, "nobody", "private", "x"); !errors.Is(err, workflow.ErrUndeliverable) {
		return "", fmt.Errorf("a message to nobody: %w", err)
	}
	message, err := workflow.Receive[string](ctx, "stop")
	return message.Body, err
}

// A line of heirs, which is later removed as a whole.
func (w *faultsWorld) defineHeir() *workflow.Workflow[int, int] {
	step := faultsAct(w, "inherit", false, func(_ context.Context, n int) (int, error) { return n + 1, nil })
	return workflow.Define("heir", func(ctx *workflow.Context, n int) (int, error) {
		n, err := step.Execute(ctx, n)
		if err != nil || n >= 4 {
			return n, err
		}
		return 0, workflow.ContinueAsNew(ctx, n)
	})
}

// flaky fails for good while the world is broken, beside a step that does not, and can be tried again later.
func (w *faultsWorld) defineFlaky() *workflow.Workflow[int, string] {
	before := faultsAct(w, "before", false, func(context.Context, int) (string, error) { return "before", nil })
	fragile := workflow.DefineActivity("fragile", func(_ context.Context, _ int) (string, error) {
		if w.broken.Load() {
			return "", workflow.Terminal(errors.New("broken"))
		}
		return "whole", nil
	})
	return workflow.Define("flaky", func(ctx *workflow.Context, n int) (string, error) {
		if _, err := before.Execute(ctx, n); err != nil {
			return "", err
		}
		return fragile.Execute(ctx, n)
	})
}

const faultsReturning = "returning"

// patient has done something, and then waits until it is cancelled.
func (w *faultsWorld) definePatient() *workflow.Workflow[string, string] {
	book := faultsAct(w, "book", true, func(ctx context.Context, _ string) (string, error) {
		return "booked", faultsEffect(ctx, "book")
	}).WithCompensation(func(ctx context.Context, _, _ string) error {
		defer w.executes(ctx, "undo book", true)()
		return faultsEffect(ctx, "undo book")
	})
	endless := workflow.DefineActivity("endless", func(ctx context.Context, _ string) (string, error) {
		<-ctx.Done()
		return "", ctx.Err()
	})
	return workflow.Define("patient", func(ctx *workflow.Context, how string) (string, error) {
		if _, err := book.Execute(ctx, how); err != nil {
			return "", err
		}
		switch how {
		case "executing":
			return endless.Execute(ctx, how)
		case faultsReturning: // it is past its last command when it is cancelled
			select {
			case w.returning <- struct{}{}:
			default:
			}
			select {
			case <-w.leave:
			case <-w.ctx.Done():
			}
			return "returned", nil
		}
		message, err := workflow.Receive[string](ctx, "never")
		return message.Body, err
	})
}

// buyer waits for events, some of which its like have sent.
func (w *faultsWorld) defineBuyer(heard func(*workflow.Context, string) error) *workflow.Workflow[int, string] {
	return workflow.Define("buyer", func(ctx *workflow.Context, n int) (string, error) {
		_, err := workflow.WaitEvent[string](ctx, "refund", workflow.WithTimeout(20*time.Millisecond))
		if !errors.Is(err, workflow.ErrTimeout) {
			return "", fmt.Errorf("an event that nobody sent: %w", err)
		}
		paid, err := workflow.WaitEvent[string](ctx, "paid", workflow.WithAttributes(map[string]string{"buyer": fmt.Sprint(n)}))
		if err != nil {
			return "", err
		}
		if err := heard(ctx, paid.Data); err != nil {
			return "", err
		}
		err = workflow.SendEvent(ctx, workflow.OutgoingEvent{
			Type: "thanks", ID: fmt.Sprint("thanks-", n), Attributes: map[string]string{"to": fmt.Sprint(n)}, Data: fmt.Sprint("thanks ", n),
		})
		if err != nil {
			return "", err
		}
		thanks, err := workflow.WaitEvent[string](ctx, "thanks", workflow.WithAttributes(map[string]string{"to": fmt.Sprint(n)}))
		if err != nil {
			return "", err
		}
		return thanks.Data, heard(ctx, thanks.Data)
	})
}

// stranded is begun by a worker that then dies, or loses the run.
func (w *faultsWorld) defineStranded(body func(ctx context.Context) (string, error)) *workflow.Workflow[int, string] {
	step := workflow.DefineActivity("strand", func(ctx context.Context, _ int) (string, error) { return body(ctx) })
	return workflow.Define("stranded", func(ctx *workflow.Context, n int) (string, error) { return step.Execute(ctx, n) })
}

// moved begins in a worker that then shuts down in order, and ends in another.
func (w *faultsWorld) defineMoved(heard func(*workflow.Context, string) error) *workflow.Workflow[int, string] {
	pack := faultsAct(w, "move", false, func(context.Context, int) (string, error) {
		time.Sleep(150 * time.Millisecond) // so that the shutdown comes meanwhile
		return "moved", nil
	})
	return workflow.Define("moved", func(ctx *workflow.Context, n int) (string, error) {
		message, err := workflow.Receive[string](ctx, "address")
		if err != nil {
			return "", err
		}
		if err := heard(ctx, message.Body); err != nil {
			return "", err
		}
		if _, err := pack.Execute(ctx, n); err != nil {
			return "", err
		}
		return pack.Execute(ctx, n)
	})
}
