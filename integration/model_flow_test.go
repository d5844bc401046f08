package integration_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"github.com/romancy-go/romancy/workflow"
)

// modelInput is the input of a run that executes a generated program. Trace is what the program has seen in earlier rounds.
type modelInput struct {
	Program   modelProgram
	Round     int
	Trace     []string
	Collector string // the run that reports are sent to
	Box       string // the channel on which they are published
	Kept      string // a channel in competing mode
}

// modelRun interprets a program. Everything that it sees goes into its trace, which decides what its activities write.
type modelRun struct {
	world   *modelWorld
	ctx     *workflow.Context
	in      modelInput
	trace   []string
	futures map[int]*workflow.Future[string]
}

func (w *modelWorld) execute(ctx *workflow.Context, in modelInput) ([]string, error) {
	r := &modelRun{world: w, ctx: ctx, in: in, trace: in.Trace, futures: map[int]*workflow.Future[string]{}}
	for _, op := range in.Program.Rounds[in.Round] {
		if err := r.step(op); err != nil {
			return nil, err
		}
	}
	if in.Round+1 < len(in.Program.Rounds) {
		in.Round++
		in.Trace = r.trace
		return nil, workflow.ContinueAsNew(ctx, in)
	}
	if in.Program.Fails {
		return nil, workflow.NewError("failed", in.Program.ID).WithDetails(r.trace)
	}
	return r.trace, nil
}

func (r *modelRun) seef(format string, args ...any) {
	r.trace = append(r.trace, fmt.Sprintf(format, args...))
}

// seen stands for everything that the program has seen so far.
func seen(trace []string) string {
	hash := fnv.New64a()
	for _, line := range trace {
		_, _ = hash.Write([]byte(line + "\n")) // never fails
	}
	return strconv.FormatUint(hash.Sum64(), 36)
}

// outcome is what is seen of an activity.
func outcome(out string, err error) string {
	if failed := new(workflow.ActivityError); errors.As(err, &failed) {
		return fmt.Sprintf("failed %s %s %s after %d", failed.Type, failed.Message, failed.Details, failed.Attempts)
	}
	if err != nil {
		return err.Error()
	}
	return out
}

// step carries one op out. It returns an error only if the run is cancelled, or if something is wrong.
func (r *modelRun) step(op modelOp) error {
	switch op.Kind {
	case opDo:
		out, err := r.world.activity(r.in.Program.ID, op.Act).Execute(r.ctx, seen(r.trace))
		return r.sawOutcome("do "+op.Act.Name, out, err)
	case opGo:
		r.futures[op.Slot] = r.world.activity(r.in.Program.ID, op.Act).Go(r.ctx, seen(r.trace))
		return nil
	case opAwait:
		return r.await(op.Slot)
	case opAll:
		return r.all(op.Slots)
	case opSleep:
		return workflow.Sleep(r.ctx, op.Duration)
	case opSleepPast:
		return workflow.SleepUntil(r.ctx, time.Unix(0, 0))
	case opSideEffect:
		value, err := workflow.SideEffect(r.ctx, "value", func() (int64, error) { return rand.Int64(), nil })
		r.seef("side effect %d", value)
		return err
	case opNow:
		now, err := workflow.Now(r.ctx)
		r.seef("now %d", now.UnixMicro())
		return err
	case opNewID:
		id, err := workflow.NewID(r.ctx)
		r.seef("new id %s", id)
		return err
	default:
		return r.talk(op)
	}
}

// talk is step for what has to do with messages.
func (r *modelRun) talk(op modelOp) error {
	switch op.Kind {
	case opSend:
		for i := range op.Count {
			if err := workflow.SendTo(r.ctx, r.ctx.InstanceID(), op.Channel, crashMessage{Key: fmt.Sprintf("%s#%d", op.Key, i)}); err != nil {
				return err
			}
		}
		return nil
	case opSubscribe:
		return workflow.Subscribe(r.ctx, op.Channel, workflow.Broadcast)
	case opUnsubscribe:
		return workflow.Unsubscribe(r.ctx, op.Channel)
	case opPublish:
		return workflow.Publish(r.ctx, op.Channel, crashMessage{Key: op.Key + "#0"})
	case opReport:
		return workflow.Publish(r.ctx, r.in.Box, crashMessage{Key: r.in.Program.ID + "/" + op.Key})
	case opReportTo:
		return workflow.SendTo(r.ctx, r.in.Collector, "inbox", crashMessage{Key: r.in.Program.ID + "/" + op.Key})
	case opLost:
		return expected(workflow.SendTo(r.ctx, "nobody", "inbox", crashMessage{}), workflow.ErrUndeliverable)
	case opConflict:
		return expected(workflow.Subscribe(r.ctx, r.in.Kept, workflow.Broadcast), workflow.ErrModeConflict)
	case opReceive:
		return r.receive(op)
	case opReceiveMany:
		messages, err := workflow.ReceiveMany[crashMessage](r.ctx, op.Channel, op.Count)
		if err != nil {
			return err
		}
		var keys []string
		for _, message := range messages {
			keys = append(keys, message.Body.Key)
		}
		r.seef("many %s %s", op.Channel, strings.Join(keys, " "))
		return nil
	case opSelect:
		return r.choose(op)
	default:
		return fmt.Errorf("op %q is unknown", op.Kind)
	}
}

// expected passes the run's cancellation on and complains of anything else than want.
func expected(err, want error) error {
	switch {
	case errors.Is(err, want):
		return nil
	case errors.Is(err, workflow.ErrCancelled):
		return err
	default:
		return fmt.Errorf("want %w, got %w", want, err)
	}
}

func (r *modelRun) sawOutcome(what, out string, err error) error {
	if errors.Is(err, workflow.ErrCancelled) {
		return err
	}
	r.seef("%s: %s", what, outcome(out, err))
	return nil
}

func (r *modelRun) await(slot int) error {
	out, err := r.futures[slot].Get(r.ctx)
	return r.sawOutcome(fmt.Sprintf("future %d", slot), out, err)
}

func (r *modelRun) all(slots []int) error {
	futures := make([]workflow.Awaitable, 0, len(slots))
	for _, slot := range slots {
		futures = append(futures, r.futures[slot])
	}
	all := workflow.All(r.ctx, futures...)
	if errors.Is(all, workflow.ErrCancelled) {
		return all
	}
	failed := false
	for _, slot := range slots {
		_, err := r.futures[slot].Get(r.ctx)
		failed = failed || err != nil
		if err := r.await(slot); err != nil {
			return err
		}
	}
	if failed != (all != nil) {
		return fmt.Errorf("All says %w", all)
	}
	return nil
}

func (r *modelRun) receive(op modelOp) error {
	var options []workflow.ReceiveOption
	if op.Duration > 0 {
		options = append(options, workflow.WithTimeout(op.Duration))
	}
	message, err := workflow.Receive[crashMessage](r.ctx, op.Channel, options...)
	switch {
	case errors.Is(err, workflow.ErrTimeout):
		r.seef("nothing from %s", op.Channel)
	case err != nil:
		return err
	default:
		r.seef("message %s %s", op.Channel, message.Body.Key)
	}
	return nil
}

func (r *modelRun) choose(op modelOp) error {
	var cases []workflow.Case
	for _, c := range op.Cases {
		switch {
		case c.Slot > 0:
			cases = append(cases, workflow.OnResult(r.futures[c.Slot], func(out string, err error) error {
				return r.sawOutcome(fmt.Sprintf("chose future %d", c.Slot), out, err)
			}))
		case c.Channel != "":
			cases = append(cases, workflow.OnMessage(c.Channel, func(message workflow.Message[crashMessage]) error {
				r.seef("chose message %s %s", message.Channel, message.Body.Key)
				return nil
			}))
		default:
			cases = append(cases, workflow.OnTimer(c.Timer, func() error {
				r.seef("chose the timer")
				return nil
			}))
		}
	}
	return workflow.Select(r.ctx, cases...)
}

// activity makes the activity that an op names.
func (w *modelWorld) activity(program string, act modelAct) *workflow.Activity[string, string] {
	policy := workflow.RetryPolicy{MaxAttempts: 1000, InitialInterval: 3 * time.Millisecond, MaxInterval: 10 * time.Millisecond}
	if act.Dooms > 0 && !act.Terminal {
		policy.MaxAttempts = act.Dooms
	}
	options := []workflow.ActivityOption{workflow.WithRetry(policy)}
	if act.Tx {
		options = append(options, workflow.WithTransaction())
	}
	if act.HasTimeout {
		options = append(options, workflow.WithTimeout(modelForever))
	}
	activity := workflow.DefineActivity(act.Name, func(ctx context.Context, seen string) (string, error) {
		return w.act(ctx, program, act, seen)
	}, options...)
	if !act.Undo {
		return activity
	}
	return activity.WithCompensation(func(ctx context.Context, seen, out string) error {
		if out != act.Name+"@"+seen {
			return workflow.Terminal(fmt.Errorf("undo of %s is given %q and %q", act.Name, seen, out))
		}
		if err := w.effect(ctx, modelEffect{program, act.Name, "undo", seen}, act.Tx); err != nil {
			return err
		}
		if attempt := workflow.ActivityInfo(ctx).Attempt; attempt <= act.UndoFails {
			return fmt.Errorf("attempt %d fails", attempt)
		}
		return nil
	})
}

func (w *modelWorld) act(ctx context.Context, program string, act modelAct, seen string) (string, error) {
	attempt := workflow.ActivityInfo(ctx).Attempt
	if act.Dooms > 0 {
		// Nothing that may fail by itself comes before: what is recorded last is this.
		w.note(modelEffect{program, act.Name, "try", seen})
		doomed := error(workflow.NewError("doomed", act.Name).WithDetails(seen))
		if act.Terminal && attempt >= act.Dooms {
			doomed = workflow.Terminal(doomed)
		}
		return "", doomed
	}
	if err := w.effect(ctx, modelEffect{program, act.Name, "do", seen}, act.Tx); err != nil {
		return "", err
	}
	if act.Takes > 0 {
		select {
		case <-time.After(act.Takes):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
	if attempt <= act.Fails {
		return "", fmt.Errorf("attempt %d fails", attempt)
	}
	return act.Name + "@" + seen, nil
}

// collect hears reports, on a channel that it competes for and from those who send to it, and begins anew after a few.
func (w *modelWorld) collect(ctx *workflow.Context, in modelCollector) (int, error) {
	if err := workflow.Subscribe(ctx, in.Box, workflow.Competing); err != nil {
		return 0, err
	}
	for range 4 {
		stop := false
		heard := func(message workflow.Message[crashMessage]) error {
			in.Heard++
			_, err := w.hear.Execute(ctx, message.Body.Key)
			return err
		}
		err := workflow.Select(ctx, workflow.OnMessage("inbox", heard), workflow.OnMessage(in.Box, heard),
			workflow.OnMessage("stop", func(workflow.Message[crashMessage]) error { stop = true; return nil }))
		if err != nil || stop {
			return in.Heard, err
		}
	}
	return in.Heard, workflow.ContinueAsNew(ctx, in)
}

type modelCollector struct {
	Box   string
	Heard int
}

// keep holds a channel in competing mode.
func keep(ctx *workflow.Context, channel string) (string, error) {
	if err := workflow.Subscribe(ctx, channel, workflow.Competing); err != nil {
		return "", err
	}
	message, err := workflow.Receive[crashMessage](ctx, "stop")
	return message.Body.Key, err
}
