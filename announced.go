package romancy

import (
	"context"
	"log/slog"
	"sync"

	"github.com/ThreeDotsLabs/watermill/message"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/riverjobs"
)

// announced tells the jobs of every timer registered anywhere, so that the leader knows when the earliest deadline that
// no worker has in memory may come.
type announced struct {
	listener *bus.Listener
	channel  string
	jobs     *riverjobs.Jobs
	logger   *slog.Logger
	foreign  *outage.Flood // of what is not a timer

	subscription *bus.Subscription
	loop         sync.WaitGroup
}

func (d *announced) start(ctx context.Context) error {
	subscription, err := d.listener.Subscribe(0, d.channel)
	if err != nil {
		return err
	}
	d.subscription = subscription
	d.foreign = outage.NewFlood(d.logger, "more foreign notifications were ignored", 1).Once()
	d.loop.Go(func() { d.run(context.WithoutCancel(ctx)) })
	return nil
}

// stop returns at once: the loop ends when its subscription closes.
func (d *announced) stop(context.Context) error {
	d.subscription.Close()
	d.loop.Wait()
	d.foreign.Close()
	return nil
}

func (d *announced) run(ctx context.Context) {
	for {
		notification, err := d.subscription.Next(ctx)
		if err != nil {
			return
		}
		if notification.CatchUp {
			d.jobs.Recheck()
			continue
		}
		timer, err := bus.Decode[bus.TimerRegistered](message.NewMessage("", message.Payload(notification.Payload)))
		if err != nil {
			if d.foreign.Pass("") {
				d.logger.WarnContext(ctx, "foreign notification ignored", slog.String("channel", notification.Channel), slog.Any("error", err))
			}
			continue
		}
		d.jobs.LowerDeadline(timer.ExpiresAt)
	}
}
