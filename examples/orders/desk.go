package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow"
)

// thinkingTime is how long the desk looks at a large order.
const thinkingTime = 400 * time.Millisecond

// deskReport is what the desk says at its end.
type deskReport struct {
	Approvals  int            `json:"approvals"`  // sent
	Repeated   int            `json:"repeated"`   // not sent, because the run had ended: the event came twice
	Reconnects int64          `json:"reconnects"` // of the listening connection
	Notified   map[string]int `json:"notified"`   // messages by channel that a notification brought
	CaughtUp   map[string]int `json:"caught_up"`  // messages by channel that a catch-up brought
}

// desk is outside of the workflows: it hears of large orders from NATS and approves them, and it watches the notifications.
type desk struct {
	app *romancy.App

	mu     sync.Mutex
	report deskReport
}

func runDesk(ctx context.Context, child *childProcess) (any, error) {
	pool, err := connect(ctx, child, 8)
	if err != nil {
		return nil, err
	}
	defer pool.Close()
	d := &desk{report: deskReport{Notified: map[string]int{}, CaughtUp: map[string]int{}}}
	d.app = romancy.NewApp(romancy.WithPool(pool), romancy.WithListenNotify(&child.Notify), romancy.WithLogger(child.logger))
	if err := d.app.Start(ctx); err != nil {
		return nil, err
	}
	err = d.serve(ctx, child)
	d.report.Reconnects = d.app.Status().Listener.Reconnects
	return d.report, errors.Join(err, shutdown(d.app))
}

// serve runs one Watermill router with two sources: NATS, and the notification channels.
func (d *desk) serve(ctx context.Context, child *childProcess) error {
	events, err := newSubscriber(child, "desk", 8)
	if err != nil {
		return err
	}
	notifications, err := d.app.Subscriber(bus.SubscriberConfig{})
	if err != nil {
		closeAll(child.logger, events)
		return err
	}
	router, err := newRouter(child)
	if err != nil {
		closeAll(child.logger, events, notifications)
		return err
	}
	router.AddConsumerHandler("approve", topicPlaced, events, d.approve)
	for _, channel := range d.app.Channels().All() {
		router.AddConsumerHandler("count "+channel, channel, notifications, func(msg *message.Message) error {
			d.count(channel, msg)
			return nil
		})
	}
	return whileRouting(ctx, router, func(ctx context.Context) error {
		child.ready()
		<-ctx.Done()
		return nil
	})
}

// approve sends the approval of a large order to its run. An event that comes twice does no harm: the first message is
// received, and mail that nobody receives goes with the run.
func (d *desk) approve(msg *message.Message) error {
	var event OrderEvent
	if err := json.Unmarshal(msg.Payload, &event); err != nil {
		return fmt.Errorf("decode event %s: %w", msg.UUID, err)
	}
	if !event.NeedsApproval {
		return nil
	}
	select {
	case <-time.After(thinkingTime):
	case <-msg.Context().Done():
		return msg.Context().Err()
	}
	err := d.app.Engine().SendTo(msg.Context(), event.RunID, approvals, Approval{By: "desk"})
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case errors.Is(err, workflow.ErrUndeliverable):
		d.report.Repeated++
		return nil
	case err != nil:
		return fmt.Errorf("approve order %d: %w", event.OrderID, err)
	}
	d.report.Approvals++
	return nil
}

func (d *desk) count(channel string, msg *message.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if msg.Metadata.Get(bus.MetadataSource) == bus.SourceCatchUp {
		d.report.CaughtUp[channel]++
	} else {
		d.report.Notified[channel]++
	}
}
