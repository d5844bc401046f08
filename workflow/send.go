package workflow

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Publish sends value, encoded as JSON, to the subscribers of channel. See the function Publish for who receives it.
func (e *Engine) Publish(ctx context.Context, channel string, value any, options ...SendOption) error {
	return e.send(ctx, "", channel, value, options)
}

// SendTo sends value, encoded as JSON, to one run, which need not be waiting for it yet. It returns ErrUndeliverable if the
// run does not exist or has ended, and ErrOutcomeUnknown if the connection was lost on the way.
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
	if err := e.intake.enter(ctx); err != nil {
		return fmt.Errorf("send to channel %q: %w", channel, err)
	}
	span := e.beginSend(ctx, &ask)
	delivered, err := commit.Await(ctx, func(then func(commit.Delivered, error)) {
		e.committer.Deliver(nil, ask, func(delivered commit.Delivered, err error) {
			e.intake.leave()
			then(delivered, err)
		})
	})
	endSpan(span, err)
	switch {
	case err != nil:
		return fmt.Errorf("send to channel %q: %w", channel, outward(err))
	case target != "" && delivered.Receivers == 0:
		return fmt.Errorf("send to run %q: %w", target, ErrUndeliverable)
	}
	return nil
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
	if tx == nil {
		return errors.New("the transaction is nil: pass the pgx.Tx to send in")
	}
	ask, err := newDelivery(target, channel, value, options)
	if err != nil {
		return err
	}
	span := e.beginSend(ctx, &ask)
	receivers := 0
	var notifications []bus.Message
	err = e.store.DeliverMessagesTx(ctx, tx, []store.Deliver{ask},
		func(_, found int) { receivers = found },
		func(sent store.Sent) {
			notifications = append(notifications, bus.Message{Channel: e.config.Channels.ChannelMessage, Payload: announcement(sent)})
		})
	endSpan(span, err)
	switch {
	case err != nil:
		return fmt.Errorf("send to channel %q: %w", channel, err)
	case target != "" && receivers == 0:
		return fmt.Errorf("send to run %q: %w", target, ErrUndeliverable)
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
