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

// foreignTrace is what a producer would like to be part of.
const foreignTrace = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"

// Whoever may publish to a topic is not whoever may start, cancel or write to runs: of its messages only the payload counts.
func TestAProducerChoosesNoIDNoReceiverNoKeyAndNoTrace(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	process := newTracing()
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	reader := workflow.Define("reader", func(ctx *workflow.Context, channel string) (map[string]string, error) {
		if err := workflow.Subscribe(ctx, channel, workflow.Broadcast); err != nil {
			return nil, err
		}
		message, err := workflow.Receive[string](ctx, channel)
		if message.Body == "forged" {
			return nil, errors.New("the message was forged")
		}
		return message.Metadata, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow, reader}, process.option())
	ctx := testContext(t)
	var rejected []error
	note := workflow.WithRejected(func(_ *message.Message, cause error) error { rejected = append(rejected, cause); return nil })
	deliver := func(handle message.NoPublishHandlerFunc, uuid, payload string, metadata message.Metadata) {
		t.Helper()
		msg := message.NewMessage(uuid, []byte(payload))
		msg.Metadata = metadata
		msg.SetContext(ctx)
		if err := handle(msg); err != nil {
			t.Fatal(err)
		}
	}

	// The id of a run that the application is going to start, before it does, and as the id of the message to which it leads.
	for _, uuid := range []string{"order-1", "message:order::order-1", "order::order-1"} {
		deliver(w.StartHandler(flow, note), uuid, "666", message.Metadata{"traceparent": foreignTrace})
	}
	ours, err := flow.Start(ctx, w.Engine, 1, workflow.WithID("order-1"))
	if err != nil || ours.Existing() {
		t.Fatalf("a producer has taken the id of a run: %v", err)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where id not like 'message:%'"); n != 1 {
		t.Errorf("%d runs have ids as the application's", n)
	}
	if n := count(t, pool, "select count(*) from romancy.instances where id like 'message:%'"); n != 3 {
		t.Errorf("the messages started %d runs, want 3", n)
	}

	// A run that waits for the application's word alone, the application's key, and a trace.
	named, err := reader.Start(ctx, w.Engine, "approvals", workflow.WithID("named"))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is subscribed", func() bool { return count(t, pool, "select count(*) from romancy.subscriptions") == 1 })
	if deliver(w.SendHandler("other", note), "1", `"forged"`, message.Metadata{workflow.MetadataInstanceID: "named"}); len(rejected) != 1 ||
		!strings.Contains(rejected[0].Error(), "WithTarget(workflow.TargetFromMetadata)") {
		t.Errorf("a message that names its receiver is rejected with %v", rejected)
	}
	if n := count(t, pool, "select count(*) from romancy.mailbox"); n != 0 {
		t.Errorf("%d messages were sent", n)
	}
	deliver(w.SendHandler("approvals", note), "approved", `"published"`,
		message.Metadata{"Traceparent": foreignTrace, "tracestate": "x=y", "color": "red"})
	metadata, err := named.Result(ctx)
	if err != nil || metadata["color"] != "red" || metadata["tracestate"] != "" || strings.Contains(metadata["traceparent"]+metadata["Traceparent"], "0af7651916cd43dd8448eb211c80319c") {
		t.Errorf("it got the metadata %v, %v", metadata, err)
	}
	again, err := reader.Start(ctx, w.Engine, "approvals")
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is subscribed", func() bool { return count(t, pool, "select count(*) from romancy.subscriptions") == 1 })
	if err := w.Publish(ctx, "approvals", "ours", workflow.WithSendKey("approved")); err != nil {
		t.Fatal(err)
	}
	if _, err := again.Result(ctx); err != nil {
		t.Errorf("the key of the application was taken: %v", err)
	}
	w.shutdown(t)
	for name, spans := range exported(process) {
		for _, span := range spans {
			if span.SpanContext.TraceID().String() == "0af7651916cd43dd8448eb211c80319c" {
				t.Errorf("%s is in the producer's trace", name)
			}
			for _, link := range span.Links {
				if link.SpanContext.TraceID().String() == "0af7651916cd43dd8448eb211c80319c" {
					t.Errorf("%s is linked to the producer's trace", name)
				}
			}
		}
	}
}

// What is delivered twice starts one run; the same UUID on another topic, or for another workflow, another one.
func TestMessagesAreKnownByWorkflowTopicAndUUID(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	flow := workflow.Define("order", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	bill := workflow.Define("bill", func(_ *workflow.Context, n int) (int, error) { return n, nil })
	w := startWorker(t, pool, []workflow.Definition{flow, bill})
	ctx := testContext(t)
	broker := gochannel.NewGoChannel(gochannel.Config{BlockPublishUntilSubscriberAck: true}, watermill.NopLogger{})
	router, err := message.NewRouter(message.RouterConfig{}, watermill.NopLogger{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	ids := map[string]bool{}
	noting := func(definition workflow.Definition) message.NoPublishHandlerFunc {
		handle := w.StartHandler(definition)
		return func(msg *message.Message) error {
			mu.Lock()
			defer mu.Unlock()
			ids[workflow.MessageRunID(definition, msg)] = true
			return handle(msg)
		}
	}
	router.AddConsumerHandler("orders", "orders", broker, noting(flow))
	router.AddConsumerHandler("bills", "orders", broker, noting(bill))
	router.AddConsumerHandler("more", "orders:more", broker, noting(flow))
	routed := make(chan error, 1)
	go func() { routed <- router.Run(ctx) }()
	<-router.Running()
	defer func() {
		if err := errors.Join(router.Close(), <-routed, broker.Close()); err != nil {
			t.Error(err)
		}
	}()
	long := strings.Repeat("x", 255)
	for range 2 {
		for _, sent := range [][2]string{{"orders", "1"}, {"orders", "more:1"}, {"orders:more", "1"}, {"orders", long}} {
			if err := broker.Publish(sent[0], message.NewMessage(sent[1], []byte("1"))); err != nil {
				t.Fatal(err)
			}
		}
	}
	if n := count(t, pool, "select count(*) from romancy.instances"); n != 7 || len(ids) != 7 {
		t.Errorf("%d runs, and the ids %v, want three messages of one topic for two workflows and one of another", n, ids)
	}
	for id := range ids {
		if n := count(t, pool, "select count(*) from romancy.instances where id = '"+id+"'"); n != 1 {
			t.Errorf("there are %d runs %s", n, id)
		}
	}
}
