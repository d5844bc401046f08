package workflow

import (
	"errors"
	"fmt"

	"github.com/romancy-go/romancy/internal/bounds"
)

// Future is an activity that executes beside the workflow, begun by [Activity.Go].
type Future[Out any] struct {
	run    *run
	flight *flight
	err    error // why it was never begun
}

// Go begins the activity and returns at once; several begun so execute concurrently. It takes its position in history now and
// is recorded there when it ends, with the activity's options and compensation as if by Execute. What nobody has waited for
// when the workflow returns is waited for then; when it returns an error, its context ends. A run is not parked, and counts as
// executing, for as long as an attempt is under way.
//
// That an activity with a compensation has begun is durable before its first attempt. If the worker leaves while it is under way
// and the run fails or is cancelled, the next worker executes it again, to its end and with its retry policy, and then undoes it.
func (a *Activity[In, Out]) Go(ctx *Context, in In) *Future[Out] {
	r := ctx.current()
	future := &Future[Out]{run: r}
	if future.err = a.check(); future.err != nil {
		return future
	}
	var before command
	if before, future.err = r.enter(commandGo); future.err != nil {
		return future
	}
	defer r.complete(before, &future.err)
	var undo func(position int32, output []byte)
	if a.compensate != nil {
		undo = func(position int32, output []byte) { a.registerCompensation(r, position, in, output) }
	}
	future.flight, future.err = r.launch(a.step(in), a.body(in), undo)
	return future
}

// Get waits for the activity and returns its result; a failure is an *ActivityError, as from Execute. It returns ErrNotChosen
// for one that lost a [Select], and a *CancelledError if the run is cancelled. A result
// that cannot be decoded leaves the run stuck, as by Execute.
func (f *Future[Out]) Get(ctx *Context) (out Out, err error) {
	if f == nil {
		return out, errNoFuture
	}
	before, err := ctx.current().enter(commandGet)
	if err != nil {
		return out, err
	}
	defer ctx.run.complete(before, &err)
	if err := f.await(ctx); err != nil {
		return out, err
	}
	output, err := f.run.outcome(f.flight)
	if err != nil {
		return out, at(f.flight.position, err)
	}
	if err := decodeResult(f.flight.step.name, output, &out); err != nil {
		f.run.misfit(f.flight.position, err)
	}
	return out, nil
}

// await waits until the outcome is known.
func (f *Future[Out]) await(ctx *Context) error {
	if _, err := f.begun(); err != nil {
		return err
	}
	if f.run != ctx.run {
		return fmt.Errorf("future of activity %q: it belongs to run %q, not to %q", f.flight.step.name, f.run.id, ctx.run.id)
	}
	if f.flight.dropped {
		return nil
	}
	f.run.awaitFlights(func() bool { return f.run.air.over(f.flight) })
	return nil
}

// errNoFuture is what a future answers that is nil or a zero value.
var errNoFuture = errors.New("the future is nil: give what Activity.Go returns")

func (f *Future[Out]) begun() (*flight, error) {
	if f == nil || f.flight == nil && f.err == nil {
		return nil, errNoFuture
	}
	return f.flight, f.err
}

// Awaitable is a [Future] of any type.
type Awaitable interface {
	await(ctx *Context) error
	begun() (*flight, error)
}

// All waits until all futures have ended, and returns the errors of those that failed, joined in the order given. Each result
// is then there without waiting, by Get.
func All(ctx *Context, futures ...Awaitable) (err error) {
	before, err := ctx.current().enter(commandAll)
	if err != nil {
		return err
	}
	defer ctx.run.complete(before, &err)
	errs := make([]error, 0, len(futures))
	for i, future := range futures {
		if bounds.Nothing(future) {
			errs = append(errs, fmt.Errorf("future %d of %d: %w", i+1, len(futures), errNoFuture))
			continue
		}
		err := future.await(ctx)
		if err == nil {
			begun, _ := future.begun()
			_, err = ctx.run.outcome(begun)
			err = at(begun.position, err)
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (a *Activity[In, Out]) check() error {
	if a == nil {
		return errors.New("the activity is nil: use what DefineActivity returns")
	}
	errs := []error{checkName("activity name", a.name), a.options.err}
	if a.fn == nil {
		errs = append(errs, errors.New("it has no function: pass one to DefineActivity"))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("activity %.40q: %w", a.name, err)
	}
	return nil
}
