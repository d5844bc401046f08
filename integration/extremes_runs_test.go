//nolint:forcetypeassert // a panic is a failure of the test
package integration_test

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"testing"
	"time"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/outbox"
	"github.com/romancy-go/romancy/workflow"
)

// eachInRun has one run call do with each of the values, and judges what that returned.
func eachInRun[T any](w *extremeWorld, name, field string, values []T, do func(ctx *workflow.Context, value T) error, documented ...error) {
	w.t.Helper()
	got := make([]error, len(values))
	w.inRun(func(ctx *workflow.Context) {
		for i, value := range values {
			got[i] = do(ctx, value)
		}
	})
	for i, value := range values {
		w.judge(name, field, value, func() error { return got[i] }, documented...)
	}
}

// extremeRunCalls are the commands of workflows, and what is defined for them.
var extremeRunCalls = []extremeRow{
	{[]string{
		"workflow.Activity.Execute(ctx)", "workflow.Activity.Go(ctx)", "workflow.All(ctx)", "workflow.ContinueAsNew(ctx)", "workflow.Future.Get(ctx)", "workflow.NewID(ctx)",
		"workflow.Now(ctx)", "workflow.Publish(ctx)", "workflow.Receive(ctx)", "workflow.ReceiveMany(ctx)", "workflow.Select(ctx)", "workflow.SendEvent(ctx)",
		"workflow.SendTo(ctx)", "workflow.SideEffect(ctx)", "workflow.Sleep(ctx)", "workflow.SleepUntil(ctx)", "workflow.Subscribe(ctx)", "workflow.Unsubscribe(ctx)",
		"workflow.WaitEvent(ctx)",
	}, tryContexts},
	{[]string{"workflow.Receive(channel)", "workflow.ReceiveMany(channel)", "workflow.OnMessage(channel)", "workflow.Receive(options)", "workflow.ReceiveMany(options)"}, func(w *extremeWorld) {
		hasty := workflow.WithTimeout(0)
		eachInRun(w, "workflow.Receive", "channel", extremeTexts, func(ctx *workflow.Context, channel string) error {
			_, err := workflow.Receive[int](ctx, channel, hasty, nil)
			return err
		}, workflow.ErrTimeout)
		eachInRun(w, "workflow.ReceiveMany", "channel", extremeTexts, func(ctx *workflow.Context, channel string) error {
			_, err := workflow.ReceiveMany[int](ctx, channel, 2, hasty, nil)
			return err
		}, workflow.ErrTimeout)
		eachInRun(w, "workflow.OnMessage", "channel", extremeTexts, func(ctx *workflow.Context, channel string) error {
			return workflow.Select(ctx,
				workflow.OnMessage(channel, func(workflow.Message[int]) error { return nil }), workflow.OnTimer(0, func() error { return nil }))
		})
	}},
	{[]string{"workflow.ReceiveMany(limit)", "workflow.WithTimeout(d)", "workflow.OnTimer(d)", "workflow.Sleep(d)", "workflow.SleepUntil(t)"}, tryWaits},
	{[]string{"workflow.Subscribe(channel)", "workflow.Subscribe(mode)", "workflow.Unsubscribe(channel)", "workflow.Publish(channel)", "workflow.SendTo(channel)", "workflow.SendTo(instanceID)"}, func(w *extremeWorld) {
		eachInRun(w, "workflow.Subscribe", "channel", extremeTexts, func(ctx *workflow.Context, channel string) error {
			return workflow.Subscribe(ctx, channel, workflow.Broadcast)
		})
		eachInRun(w, "workflow.Subscribe", "mode", extremeTexts, func(ctx *workflow.Context, mode string) error {
			return workflow.Subscribe(ctx, "modes", workflow.Mode(mode))
		})
		eachInRun(w, "workflow.Unsubscribe", "channel", extremeTexts, workflow.Unsubscribe)
		eachInRun(w, "workflow.Publish", "channel", extremeTexts, func(ctx *workflow.Context, channel string) error { return workflow.Publish(ctx, channel, 1, nil) })
		eachInRun(w, "workflow.SendTo", "channel", extremeTexts, func(ctx *workflow.Context, channel string) error { return workflow.SendTo(ctx, "nobody", channel, 1) }, workflow.ErrUndeliverable)
		eachInRun(w, "workflow.SendTo", "instance id", extremeTexts, func(ctx *workflow.Context, id string) error { return workflow.SendTo(ctx, id, "extremes", 1) }, workflow.ErrUndeliverable)
	}},
	{[]string{"workflow.WaitEvent(eventType)", "workflow.WaitEvent(options)", "workflow.WithAttributes(attributes)"}, func(w *extremeWorld) {
		eachInRun(w, "workflow.WaitEvent", "event type", extremeTexts, func(ctx *workflow.Context, eventType string) error {
			_, err := workflow.WaitEvent[int](ctx, eventType, workflow.WithTimeout(0), nil)
			return err
		}, workflow.ErrTimeout)
		var attributes []map[string]string
		for _, value := range extremesOf(reflect.TypeFor[map[string]string]()) {
			attributes = append(attributes, value.Interface().(map[string]string))
		}
		eachInRun(w, "workflow.WithAttributes", "attribute", attributes, func(ctx *workflow.Context, attributes map[string]string) error {
			_, err := workflow.WaitEvent[any](ctx, "extreme-attributes", workflow.WithTimeout(0), workflow.WithAttributes(attributes))
			return err
		}, workflow.ErrTimeout)
	}},
	{[]string{"workflow.SideEffect(name)", "workflow.DefineActivity(name)", "workflow.DefineActivity(options)", "workflow.WithMaxConcurrent(n)", "workflow.NewError(errorType)", "workflow.NewError(message)"}, func(w *extremeWorld) {
		body := func(context.Context, int) (int, error) { return 1, nil }
		eachInRun(w, "workflow.SideEffect", "name", extremeTexts, func(ctx *workflow.Context, name string) error {
			_, err := workflow.SideEffect(ctx, name, func() (int, error) { return 1, nil })
			return err
		})
		eachInRun(w, "workflow.DefineActivity", "name", extremeTexts, func(ctx *workflow.Context, name string) error {
			_, err := workflow.DefineActivity(name, body, nil).Execute(ctx, 0)
			return err
		})
		eachInRun(w, "workflow.WithMaxConcurrent", "WithMaxConcurrent", extremeInts, func(ctx *workflow.Context, n int) error {
			_, err := workflow.DefineActivity("limited", body, workflow.WithMaxConcurrent(n)).Execute(ctx, 0)
			return err
		})
		for _, text := range extremeTexts {
			for _, given := range []error{workflow.NewError(text, "message"), workflow.NewError("type", text)} {
				broken := workflow.DefineActivity("broken", func(context.Context, int) (int, error) { return 0, given })
				var failed *workflow.ActivityError
				w.inRun(func(ctx *workflow.Context) {
					if _, err := broken.Execute(ctx, 0); !errors.As(err, &failed) {
						w.t.Errorf("an activity that fails with %.60v: got %.300v", given, err)
					}
				})
			}
		}
	}},
	{[]string{"workflow.OnResult(future)", "workflow.All(futures)"}, func(w *extremeWorld) {
		eachInRun(w, "workflow.OnResult", "future", []*workflow.Future[int]{nil, {}}, func(ctx *workflow.Context, future *workflow.Future[int]) error {
			return workflow.Select(ctx, workflow.OnResult(future, func(int, error) error { return nil }))
		})
		eachInRun(w, "workflow.All", "future", []workflow.Awaitable{nil, (*workflow.Future[int])(nil)}, func(ctx *workflow.Context, future workflow.Awaitable) error {
			return workflow.All(ctx, future)
		})
	}},
}

// tryContexts calls every command with the contexts that no workflow was given.
func tryContexts(w *extremeWorld) {
	for name, ctx := range map[string]*workflow.Context{"nil": nil, "zero": {}} {
		for command, call := range map[string]func() error{
			"Execute": func() error { _, err := harmless.Execute(ctx, 0); return err },
			"Go":      func() error { _, err := harmless.Go(ctx, 0).Get(ctx); return err },
			"All":     func() error { return workflow.All(ctx) }, "ContinueAsNew": func() error { return workflow.ContinueAsNew(ctx, 0) },
			"NewID": func() error { _, err := workflow.NewID(ctx); return err }, "Now": func() error { _, err := workflow.Now(ctx); return err },
			"Publish":     func() error { return workflow.Publish(ctx, "extremes", 1) },
			"Receive":     func() error { _, err := workflow.Receive[int](ctx, "extremes"); return err },
			"ReceiveMany": func() error { _, err := workflow.ReceiveMany[int](ctx, "extremes", 1); return err },
			"Select":      func() error { return workflow.Select(ctx, workflow.OnTimer(0, func() error { return nil })) },
			"SendEvent":   func() error { return workflow.SendEvent(ctx, workflow.OutgoingEvent{Type: "extreme"}) },
			"SendTo":      func() error { return workflow.SendTo(ctx, "nobody", "extremes", 1) },
			"SideEffect": func() error {
				_, err := workflow.SideEffect(ctx, "s", func() (int, error) { return 0, nil })
				return err
			},
			"Sleep": func() error { return workflow.Sleep(ctx, 0) }, "SleepUntil": func() error { return workflow.SleepUntil(ctx, time.Time{}) },
			"Subscribe":   func() error { return workflow.Subscribe(ctx, "extremes", workflow.Direct) },
			"Unsubscribe": func() error { return workflow.Unsubscribe(ctx, "extremes") },
			"WaitEvent":   func() error { _, err := workflow.WaitEvent[int](ctx, "extreme"); return err },
		} {
			if w.judge("workflow."+command, "context is nil", ctx, call) {
				w.t.Errorf("%s with a %s context succeeds", command, name)
			}
		}
	}
}

// tryWaits has runs wait: those whose end has passed go on, the others are parked and can be cancelled.
func tryWaits(w *extremeWorld) {
	eachInRun(w, "workflow.ReceiveMany", "limit", extremeInts, func(ctx *workflow.Context, limit int) error {
		_, err := workflow.ReceiveMany[int](ctx, "extremes", limit, workflow.WithTimeout(0))
		return err
	}, workflow.ErrTimeout)
	eachInRun(w, "workflow.WithTimeout", "WithTimeout", extremeDurations, func(ctx *workflow.Context, d time.Duration) error {
		body := func(context.Context, int) (int, error) { return 1, nil }
		_, err := workflow.DefineActivity("bounded", body, workflow.WithTimeout(d)).Execute(ctx, 0)
		return err
	}, context.DeadlineExceeded)
	for _, d := range extremeDurations {
		w.wait(fmt.Sprintf("Receive for %s", d), d > time.Millisecond, func(ctx *workflow.Context) error {
			_, err := workflow.Receive[int](ctx, "extremes", workflow.WithTimeout(d))
			return err
		})
		w.wait(fmt.Sprintf("OnTimer(%s)", d), d > time.Millisecond, func(ctx *workflow.Context) error {
			return workflow.Select(ctx, workflow.OnTimer(d, func() error { return nil }))
		})
		w.wait(fmt.Sprintf("Sleep(%s)", d), d > time.Millisecond, func(ctx *workflow.Context) error { return workflow.Sleep(ctx, d) })
	}
	for _, at := range extremeTimes {
		w.wait(fmt.Sprintf("SleepUntil the year %d", at.Year()), at.After(time.Now()), func(ctx *workflow.Context) error { return workflow.SleepUntil(ctx, at) })
	}
}

// wait has a run wait, and checks that it is parked if it has to be, and goes on if not.
func (w *extremeWorld) wait(name string, parks bool, wait func(ctx *workflow.Context) error) {
	w.t.Helper()
	engine := w.app.Engine()
	var failed error
	w.mu.Lock()
	w.probes = append(w.probes, func(ctx *workflow.Context) { failed = wait(ctx) })
	which := len(w.probes) - 1
	w.mu.Unlock()
	run, err := w.probe.Start(w.ctx, engine, which)
	if err != nil {
		w.t.Errorf("%s: %v", name, err)
		return
	}
	if !parks {
		ctx, cancel := context.WithTimeout(w.ctx, extremePatience)
		defer cancel()
		if _, err := run.Result(ctx); err != nil || failed != nil && !errors.Is(failed, workflow.ErrTimeout) {
			w.t.Errorf("%s: got %v, %v, want it to be over", name, err, failed)
		}
		return
	}
	for began := time.Now(); ; time.Sleep(time.Millisecond) {
		info, err := engine.Get(w.ctx, run.ID())
		switch {
		case err == nil && info.Status == workflow.StatusWaiting && info.WakeAt.After(time.Now().Add(time.Hour)):
			if err := engine.Cancel(w.ctx, run.ID(), "it was tried"); err != nil {
				w.t.Errorf("%s: %v", name, err)
			}
			return
		case err != nil || info.Status.Final() || time.Since(began) > extremePatience:
			w.t.Errorf("%s: got %+v, %v, want it to wait", name, info, err)
			return
		}
	}
}

// What an App returns before Start answers every call with an error, or nothing.
func TestWhatAnAppReturnsBeforeStartAnswersEveryCall(t *testing.T) {
	t.Parallel()
	app := romancy.NewApp()
	if _, err := app.Listener().Subscribe(0, "extremes"); err == nil {
		t.Error("one can subscribe before Start")
	}
	if _, err := app.Subscriber(bus.SubscriberConfig{}); !errors.Is(err, romancy.ErrNotStarted) {
		t.Errorf("a subscriber before Start: %v", err)
	}
	for name, nothing := range map[string]any{"engine": app.Engine(), "listener": app.Listener(), "writer": app.Outbox(), "notifier": (*bus.Notifier)(nil), "another writer": (*outbox.Writer)(nil)} {
		receiver := reflect.ValueOf(nothing)
		for i := range receiver.NumMethod() {
			method := receiver.Method(i)
			if err, broken := attempt(func() error { return callEmpty(t.Context(), method) }); broken {
				t.Errorf("%s.%s: %v", name, receiver.Type().Method(i).Name, err)
			}
		}
	}
}

// callEmpty calls method with the zero values of its arguments.
func callEmpty(ctx context.Context, method reflect.Value) error {
	arguments := make([]reflect.Value, 0, method.Type().NumIn())
	for i := range method.Type().NumIn() {
		of := method.Type().In(i)
		switch {
		case method.Type().IsVariadic() && i == method.Type().NumIn()-1:
			continue
		case of == reflect.TypeFor[context.Context]():
			arguments = append(arguments, reflect.ValueOf(ctx))
		default:
			arguments = append(arguments, reflect.Zero(of))
		}
	}
	method.Call(arguments)
	return nil
}
