package workflow_test

import (
	"errors"
	"strings"
	"sync"
	"testing"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/message"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"

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
	if out, err := flow.Run(w.Engine, workflow.MessageRunID(flow, message.NewMessage("order-1", nil))).Result(ctx); err != nil || out != "tea" {
		t.Errorf("result %q, %v", out, err)
	}
	for _, poison := range []struct{ uuid, payload, says string }{
		{"order-2", `{"Item":`, "not valid at byte"},
		{"order-3", `{"Item":5}`, "order-3"},
		{"order-4", `{"Item":"a\u0000"}`, "order-4"},
		{"", `{"Item":"tea"}`, "UUID is empty"},
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
	other := workflow.Define("forgotten", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	if err := w.StartHandler(other)(message.NewMessage("order-1", []byte("1"))); err == nil {
		t.Error("the workflow is not registered: the message is lost")
	}
	w.shutdown(t)
	if err := handle(message.NewMessage("order-1", []byte("1"))); !errors.Is(err, workflow.ErrClosed) {
		t.Errorf("on an engine that is shut down: %v", err)
	}
}

// What a broker delivers twice is sent once, to the run that it names or to whoever is subscribed, through a router as
// applications have it.
func TestSendHandlerSendsEveryMessageOnce(t *testing.T) {
	t.Parallel()
	type letter struct{ Text string }
	flow := workflow.Define("reader", func(ctx *workflow.Context, subscribed bool) (string, error) {
		if subscribed {
			if err := workflow.Subscribe(ctx, "letters", workflow.Broadcast); err != nil {
				return "", err
			}
		}
		var got []string
		for {
			message, err := workflow.Receive[letter](ctx, "letters")
			if err != nil || message.Body.Text == "end" {
				return strings.Join(got, " "), err
			}
			got = append(got, message.Body.Text+"/"+message.Metadata["color"])
		}
	})
	pool := pgtest.Pool(t)
	w := startWorker(t, pool, []workflow.Definition{flow})
	ctx := testContext(t)
	named, err := flow.Start(ctx, w.Engine, false, workflow.WithID("named"))
	if err != nil {
		t.Fatal(err)
	}
	subscribed, err := flow.Start(ctx, w.Engine, true)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "one is subscribed", func() bool { return count(t, pool, "select count(*) from romancy.subscriptions") == 1 })

	broker := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var rejected []string
	note := workflow.WithRejected(func(msg *message.Message, cause error) error {
		mu.Lock()
		defer mu.Unlock()
		rejected = append(rejected, msg.UUID+": "+cause.Error())
		return nil
	})
	router.AddConsumerHandler("by-metadata", "letters", broker, w.SendHandler("letters", note, workflow.WithTarget(workflow.TargetFromMetadata)))
	router.AddConsumerHandler("by-target", "for-named", broker, w.SendHandler("letters", note,
		workflow.WithTarget(func(*message.Message) string { return "named" }),
		workflow.WithMessageID(func(msg *message.Message) string { return msg.Metadata.Get("number") })))
	routed := make(chan error, 1)
	go func() { routed <- router.Run(ctx) }()
	<-router.Running()
	defer func() {
		if err := errors.Join(router.Close(), <-routed, broker.Close()); err != nil {
			t.Error(err)
		}
	}()

	publish := func(topic, uuid, payload string, metadata message.Metadata) {
		t.Helper()
		msg := message.NewMessage(uuid, []byte(payload))
		msg.Metadata = metadata
		if err := broker.Publish(topic, msg); err != nil { // returns when the handler has acknowledged it
			t.Fatal(err)
		}
	}
	toNamed := message.Metadata{workflow.MetadataInstanceID: "named", "color": "red"}
	for range 3 {
		publish("letters", "1", `{"Text":"direct"}`, toNamed)
		publish("letters", "2", `{"Text":"published"}`, message.Metadata{"color": "blue"})
		publish("for-named", "x", `{"Text":"numbered"}`, message.Metadata{"number": "7", "color": "green"})
		publish("for-named", "y", `{"Text":"numbered"}`, message.Metadata{"number": "7"})
	}
	for _, poison := range []struct {
		uuid, payload, target, says string
	}{
		{"3", `{"Text":`, "", "json.RawMessage is encoded as is no JSON"},
		{"4", ``, "", "json.RawMessage is encoded as is no JSON"},
		{"5", "\"\xff\"", "", "not valid UTF-8"},
		{"", `{}`, "", "UUID is empty"},
		{strings.Repeat("x", 256), `{}`, "", "at most 255"},
		{"6", `{}`, "nobody", "undeliverable"},
		{"7", `{}`, strings.Repeat("x", 256), "at most 255"},
	} {
		mu.Lock()
		rejected = nil
		mu.Unlock()
		publish("letters", poison.uuid, poison.payload, message.Metadata{workflow.MetadataInstanceID: poison.target})
		mu.Lock()
		if len(rejected) != 1 || !strings.Contains(rejected[0], poison.says) {
			t.Errorf("%q: rejected %q, want it to say %q", poison.payload, rejected, poison.says)
		}
		rejected = nil
		mu.Unlock()
	}
	publish("letters", "8", `{"Text":"end"}`, toNamed)
	publish("letters", "9", `{"Text":"end"}`, nil)
	if got, err := named.Result(ctx); err != nil || got != "direct/red numbered/green" {
		t.Errorf("the run named got %q, %v", got, err)
	}
	if got, err := subscribed.Result(ctx); err != nil || got != "published/blue" {
		t.Errorf("the subscriber got %q, %v", got, err)
	}
	publish("letters", "8", `{"Text":"end"}`, toNamed) // delivered again when the run has ended: no reason to reject it
	mu.Lock()
	defer mu.Unlock()
	if len(rejected) > 0 {
		t.Errorf("rejected %q", rejected)
	}
}

func TestSendHandlerKeepsWhatMayWorkLater(t *testing.T) {
	t.Parallel()
	w := startWorker(t, pgtest.Pool(t), nil)
	if err := w.SendHandler("")(message.NewMessage("1", []byte("1"))); err == nil {
		t.Error("a channel that cannot be: the message is lost")
	}
	w.shutdown(t)
	if err := w.SendHandler("letters")(message.NewMessage("1", []byte("1"))); !errors.Is(err, workflow.ErrClosed) {
		t.Errorf("on an engine that is shut down: %v", err)
	}
	var none *workflow.Engine
	if err := none.SendHandler("letters")(message.NewMessage("1", []byte("1"))); !errors.Is(err, workflow.ErrNotStarted) {
		t.Errorf("on no engine: %v", err)
	}
}
