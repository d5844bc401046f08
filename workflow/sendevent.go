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

// SendEvent sends an event, which is kept for every run that waits for it or will. While another transaction that has sent
// an event of the same source and id is open, SendEvent waits for its end, bounded by ctx. Unless the event has no ID it may be
// repeated after any error. It returns ErrNotStarted, ErrClosed, or an error that names what is wrong with the event.
//
// Outside the runs, subscribers of the channel for messages are told of it as of a message: with the channel name "event:"
// and the type. That is not repeated if the notification is lost: events are kept, but they are pending for nobody.
func (e *Engine) SendEvent(ctx context.Context, event OutgoingEvent) error {
	if err := e.check(); err != nil {
		return err
	}
	ask, err := e.newEvent(event)
	if err != nil {
		return err
	}
	for wait := heldAtFirst; ; wait = min(2*wait, heldAtMost) {
		held, err := takeIn(ctx, e.intake, func(then func(bool, error)) { e.committer.SendEvent(nil, ask, then) })
		if err != nil {
			return fmt.Errorf("send event %q of %q: %w", ask.EventID, ask.Source, e.explained(ctx, outward(err)))
		}
		if !held {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("send event %q of %q: a transaction that has not ended has sent it: %w", ask.EventID, ask.Source, ctx.Err())
		case <-time.After(wait):
		}
	}
}

// SendEventTx is SendEvent in the caller's transaction: the event is there if and when that commits.
func (e *Engine) SendEventTx(ctx context.Context, tx pgx.Tx, event OutgoingEvent) error {
	if err := e.check(); err != nil {
		return err
	}
	if bounds.Nothing(tx) {
		return errors.New("the transaction is nil: pass the pgx.Tx to send in")
	}
	ask, err := e.newEvent(event)
	if err != nil {
		return err
	}
	var notifications []bus.Message
	if err := e.store.SendEventTx(ctx, tx, ask, func(sent store.SentEvent) {
		notifications = append(notifications, bus.Message{Channel: e.config.Channels.ChannelMessage, Payload: eventAnnouncement(sent)})
	}); err != nil {
		return fmt.Errorf("send event %q of %q: %w", ask.EventID, ask.Source, err)
	}
	return e.config.Notifier.NotifyTxMany(ctx, tx, notifications)
}

func eventAnnouncement(event store.SentEvent) string {
	return bus.Encode(bus.ChannelMessage{ChannelName: eventChannel(event.Type), MessageID: event.ID})
}
