package workflow_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

func TestStartHandlerStartsOneRunAMessage(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	type order struct{ Item string }
	flow := workflow.Define("order", func(_ *workflow.Context, o order) (string, error) { return o.Item, nil })
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	var rejected []string
	handle := w.StartHandler(flow, workflow.WithRejected(func(msg *message.Message, cause error) error {
		rejected = append(rejected, msg.UUID+": "+cause.Error())
		return nil
	}))
	deliver := func(uuid, payload string) error {
		msg := message.NewMessage(uuid, []byte(payload))
		msg.SetContext(ctx)
		return handle(msg)
	}
	for range 3 {
		if err := deliver("order-1", `{"Item":"tea"}`); err != nil {
			t.Fatal(err)
		}
	}
	if out, err := flow.Run(w.Engine, "order-1").Result(ctx); err != nil || out != "tea" {
		t.Errorf("result %q, %v", out, err)
	}
	for _, poison := range []struct{ uuid, payload, says string }{
		{"order-2", `{"Item":`, "unexpected end of JSON"},
		{"order-3", `{"Item":5}`, "order-3"},
		{"order-4", `{"Item":"a\u0000"}`, "order-4"},
		{"", `{"Item":"tea"}`, "id is empty"},
		{strings.Repeat("x", 300), `{"Item":"tea"}`, "at most 255"},
		{"order-1", `{"Item":"coffee"}`, "another input"},
	} {
		rejected = nil
		if err := deliver(poison.uuid, poison.payload); err != nil {
			t.Errorf("%q would be delivered for ever: %v", poison.payload, err)
		}
		if poison.uuid == "order-4" {
			continue // json keeps what jsonb would refuse
		}
		if len(rejected) != 1 || !strings.Contains(rejected[0], poison.says) {
			t.Errorf("%q: rejected %q, want it to say %q", poison.payload, rejected, poison.says)
		}
	}
}

func TestStartHandlerKeepsWhatMayWorkLater(t *testing.T) {
	t.Parallel()
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pgtest.Pool(t), []workflow.Definition{flow})
	noted := errors.New("the poison queue is down")
	handle := w.StartHandler(flow, workflow.WithRejected(func(*message.Message, error) error { return noted }))
	if err := handle(message.NewMessage("order-1", []byte("x"))); !errors.Is(err, noted) {
		t.Errorf("a rejection that could not be noted: %v", err)
	}
	w.shutdown(t)
	if err := handle(message.NewMessage("order-1", []byte("1"))); !errors.Is(err, workflow.ErrClosed) {
		t.Errorf("on an engine that is shut down: %v", err)
	}
}
