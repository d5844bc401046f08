package workflow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// Activity is a step with side effects. Its result is recorded: a run executes it until it has been recorded once, then
// answers from history. Its body may run more than once if a worker crashes before the result is recorded; use
// [Info.IdempotencyKey] towards other systems, or WithTransaction for work in the same database.
type Activity[In, Out any] struct {
	name       string
	fn         func(ctx context.Context, in In) (Out, error)
	compensate func(ctx context.Context, in In, out Out) error
	options    activityOptions
}

type activityOptions struct {
	retry       RetryPolicy
	undoing     RetryPolicy // of the compensation
	timeout     time.Duration
	transaction bool
	limit       *activityLimit // nil: none
	err         error
}

// ActivityOption sets how an activity is executed.
type ActivityOption interface{ applyActivity(o *activityOptions) }

type activityOption func(*activityOptions)

func (f activityOption) applyActivity(o *activityOptions) { f(o) }

// WithRetry attempts the activity, and its compensation, again when it fails; without it, one failed attempt of the activity is
// final, and the tenth of the compensation. Zero fields of policy take their defaults. A panic is a failed attempt, and so is a
// body that ends its goroutine (runtime.Goexit) instead of returning.
func WithRetry(policy RetryPolicy) ActivityOption {
	return activityOption(func(o *activityOptions) {
		o.retry = policy.withDefaults()
		o.undoing = o.retry
		o.err = errors.Join(o.err, o.retry.validate())
	})
}

// WithMaxConcurrent bounds the attempts of the activity, and of its compensation, that a worker executes at one time,
// within Config.MaxConcurrentActivities: what lies behind it may not bear more. n is 1 to 1,000,000. Others wait in
// memory, in the order in which they came, without their timeouts running.
func WithMaxConcurrent(n int) ActivityOption {
	return activityOption(func(o *activityOptions) {
		o.limit = &activityLimit{n: n}
		o.err = errors.Join(o.err, checkLimit("WithMaxConcurrent", n))
	})
}

// WithTransaction executes each attempt in a transaction of its own on the engine's pool. What the body writes through
// [Tx], the recorded result and the events it emits there commit together, exactly once. The body must not commit or roll
// back that transaction, and should be short: it holds a connection of the pool.
//
// A quarter of the pool's connections, one at least, is never used for this, however many engines of the process work on the
// pool, so that an activity can use the pool beside its transaction. A pool of one connection is the exception: there it is
// the only one, and a body that asks the pool for another waits for ever.
func WithTransaction() ActivityOption {
	return activityOption(func(o *activityOptions) { o.transaction = true })
}

// DefineActivity makes an activity of fn. name is stored in history and must stay the same across deploys.
func DefineActivity[In, Out any](name string, fn func(ctx context.Context, in In) (Out, error), options ...ActivityOption) *Activity[In, Out] {
	activity := &Activity[In, Out]{name: name, fn: fn, options: activityOptions{retry: once, undoing: compensationRetry}}
	for _, option := range options {
		if option != nil {
			option.applyActivity(&activity.options)
		}
	}
	return activity
}

// WithCompensation returns a copy of the activity that is undone by compensate when the workflow fails later. The
// compensations of all activities that succeeded run in reverse order, each as a durable step with the activity's options
// (ten attempts if it has no retry policy).
//
// If the worker leaves while a step begun by [Activity.Go] is under way, and the run fails or is cancelled, the step is executed to its end and
// undone. One by Execute is not if the run is cancelled before another worker has it: that it had begun is not recorded.
func (a *Activity[In, Out]) WithCompensation(compensate func(ctx context.Context, in In, out Out) error) *Activity[In, Out] {
	compensated := *a
	compensated.compensate = compensate
	return &compensated
}

// Name returns the activity's name.
func (a *Activity[In, Out]) Name() string { return a.name }

// Execute carries the activity out, or answers from history if it has been. A failure is an *ActivityError. If the run is
// cancelled it returns a *CancelledError. If the result cannot be decoded, because its type has changed since it was recorded, or
// cannot be decoded at all, the run is stuck: neither goes it on without the result, nor is the step forgotten.
//
// in is encoded as JSON, if it can be, and a digest of it is recorded. The run is stuck if a replay gives a step the input that is
// recorded for another of the same activity, and that other one something else: results would be swapped. Any other input that is not
// the recorded one is logged, and the step answered with what is recorded. Commands are issued one after the other: while another is
// under way it returns ErrConcurrentUse, and the run is stuck.
func (a *Activity[In, Out]) Execute(ctx *Context, in In) (out Out, err error) {
	if err := a.check(); err != nil {
		return out, err
	}
	before, err := ctx.current().enter(commandExecute)
	if err != nil {
		return out, err
	}
	defer ctx.run.complete(before, &err)
	output, err := ctx.run.step(a.step(in), a.body(in))
	position := ctx.run.journal.Issued()
	if err != nil {
		return out, at(position, err)
	}
	if a.compensate != nil { // first: the step is done, whatever code of the user's decodes it
		a.registerCompensation(ctx.run, position, in, output)
	}
	if err := decodeResult(a.name, output, &out); err != nil {
		ctx.run.misfit(position, err)
	}
	return out, nil
}

// decodeResult decodes what is recorded of an activity into out.
func decodeResult[Out any](activity string, output []byte, out *Out) error {
	if err := decodeValue(output, out); err != nil {
		return fmt.Errorf("decode the recorded result of activity %q into %T: %w", activity, *out, err)
	}
	return nil
}

func (a *Activity[In, Out]) step(in In) step {
	return step{kind: journal.Activity, name: a.name, options: a.options, input: func() string { return digestOf(in) }}
}

func (a *Activity[In, Out]) body(in In) stepBody {
	return func(ctx context.Context) ([]byte, error) {
		result, err := a.fn(ctx, in)
		if err != nil {
			return nil, err
		}
		text, err := encodeValue("the result of activity", a.name, result)
		return text, Terminal(err)
	}
}

// Info describes the attempt that an activity's body is executing.
type Info struct {
	InstanceID   string
	WorkflowName string
	Activity     string
	Position     int32 // of the step in its run's history, from 1
	Attempt      int   // from 1
	// IdempotencyKey is the same for every attempt of this step and of no other: instance id, position and, for a
	// compensation, its kind.
	IdempotencyKey string
}

type infoKey struct{}

type txKey struct{}

// ActivityInfo returns what is being executed. Outside an activity it is the zero Info.
func ActivityInfo(ctx context.Context) Info {
	info, _ := ctx.Value(infoKey{}).(Info)
	return info
}

// Tx returns the transaction of an activity defined WithTransaction. Anywhere else there is none, and Tx panics.
func Tx(ctx context.Context) pgx.Tx {
	tx, ok := ctx.Value(txKey{}).(pgx.Tx)
	if !ok {
		panic("workflow.Tx: not inside an activity defined WithTransaction")
	}
	return tx
}
