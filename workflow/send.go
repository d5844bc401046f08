package workflow

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// What another transaction holds is asked for again after heldAtFirst, then less and less often, down to every heldAtMost.
const (
	heldAtFirst = 20 * time.Millisecond
	heldAtMost  = time.Second
)

// Publish sends value, encoded as JSON, to the subscribers of channel. See the function Publish for who receives it.
func (e *Engine) Publish(ctx context.Context, channel string, value any, options ...SendOption) error {
	return e.send(ctx, "", channel, value, options)
}

// SendTo sends value, encoded as JSON, to one run, which need not be waiting for it yet. It returns ErrUndeliverable if the
// run does not exist (then the error is ErrNotFound, too) or has ended, and ErrOutcomeUnknown if the connection was lost on the way.
func (e *Engine) SendTo(ctx context.Context, instanceID, channel string, value any, options ...SendOption) error {
	if err := checkName("instance id", instanceID); err != nil {
		return err
	}
	return e.send(ctx, instanceID, channel, value, options)
}

func (e *Engine) send(ctx context.Context, target, channel string, value any, options []SendOption) error {
	if err := e.check(); err != nil {
		return err
	}
	ask, err := newDelivery(target, channel, value, options)
	if err != nil {
		return err
	}
	return e.deliver(ctx, ask)
}

// deliver sends what newDelivery has made.
func (e *Engine) deliver(ctx context.Context, ask store.Deliver) error {
	span := e.beginSend(ctx, &ask)
	delivered, err := e.deliverWhenFree(ctx, ask)
	endSpan(span, err)
	switch {
	case err != nil:
		return fmt.Errorf("send to channel %q: %w", ask.Channel, err)
	case ask.Target != "" && delivered.Receivers == 0:
		return undeliverable(ask.Target, delivered)
	}
	return nil
}

// undeliverable says why a message has no receiver.
func undeliverable(target string, delivered store.Delivered) error {
	if delivered.Status == "" {
		return fmt.Errorf("send to run %q: %w: %w", target, ErrUndeliverable, ErrNotFound)
	}
	return fmt.Errorf("send to run %q: %w: its status is %s", target, ErrUndeliverable, delivered.Status)
}

// deliverWhenFree waits for another transaction that has sent under the same key.
func (e *Engine) deliverWhenFree(ctx context.Context, ask store.Deliver) (store.Delivered, error) {
	ask.KeepMicros = e.config.SendKeyRetention.Microseconds()
	for wait := heldAtFirst; ; wait = min(2*wait, heldAtMost) {
		delivered, err := takeIn(ctx, e.intake, func(then func(store.Delivered, error)) { e.committer.Deliver(nil, ask, then) })
		if err != nil || !delivered.Held {
			return delivered, e.explained(ctx, outward(err))
		}
		select {
		case <-ctx.Done():
			return delivered, fmt.Errorf("a transaction that has not ended has sent under the same key: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}

// PublishTx is Publish in the caller's transaction: the message is there, and wakes its receivers, if and when that commits.
func (e *Engine) PublishTx(ctx context.Context, tx pgx.Tx, channel string, value any, options ...SendOption) error {
	return e.sendTx(ctx, tx, "", channel, value, options)
}

// SendToTx is SendTo in the caller's transaction: the message is there, and wakes its receiver, if and when that commits.
func (e *Engine) SendToTx(ctx context.Context, tx pgx.Tx, instanceID, channel string, value any, options ...SendOption) error {
	if err := checkName("instance id", instanceID); err != nil {
		return err
	}
	return e.sendTx(ctx, tx, instanceID, channel, value, options)
}

func (e *Engine) sendTx(ctx context.Context, tx pgx.Tx, target, channel string, value any, options []SendOption) error {
	if err := e.check(); err != nil {
		return err
	}
	if bounds.Nothing(tx) {
		return errors.New("the transaction is nil: pass the pgx.Tx to send in")
	}
	ask, err := newDelivery(target, channel, value, options)
	if err != nil {
		return err
	}
	span := e.beginSend(ctx, &ask)
	ask.KeepMicros = e.config.SendKeyRetention.Microseconds()
	var notifications []bus.Message
	delivered, err := e.store.DeliverMessageTx(ctx, tx, ask, func(sent store.Sent) {
		notifications = append(notifications, bus.Message{Channel: e.config.Channels.ChannelMessage, Payload: announcement(sent)})
	})
	endSpan(span, err)
	switch {
	case err != nil:
		return fmt.Errorf("send to channel %q: %w", channel, err)
	case target != "" && delivered.Receivers == 0:
		return undeliverable(target, delivered)
	}
	return e.config.Notifier.NotifyTxMany(ctx, tx, notifications)
}

// announcement is the channel_message payload for a message. Only a direct send names its receiver.
func announcement(sent store.Sent) string {
	message := bus.ChannelMessage{ChannelName: sent.Channel, MessageID: sent.ID}
	if sent.Direct {
		message.TargetInstanceID = sent.Receiver
	}
	return bus.Encode(message)
}
