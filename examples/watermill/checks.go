package main

import (
	"context"
	"fmt"
	"io"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
)

// check compares what happened with what had to happen, and counts what differs.
type check struct {
	out    io.Writer
	failed int
}

func (c *check) same(what string, got, want any) {
	if fmt.Sprint(got) == fmt.Sprint(want) {
		fmt.Fprintf(c.out, "  ok      %s: %v\n", what, got)
		return
	}
	c.failed++
	fmt.Fprintf(c.out, "  FAILED  %s: got %v, want %v\n", what, got, want)
}

func (c *check) atLeast(what string, got, want int) {
	if got >= want {
		fmt.Fprintf(c.out, "  ok      %s: %d\n", what, got)
		return
	}
	c.failed++
	fmt.Fprintf(c.out, "  FAILED  %s: got %d, want at least %d\n", what, got, want)
}

// observe reads what became of everything, while the application still runs.
func observe(ctx context.Context, a *app, background *background, seats *seatPlan) (after, error) {
	r := after{counts: map[string]int{}, outcomes: map[string]int{}, statuses: map[string]int{}}
	for what, ids := range a.tally.all() {
		r.counts[what] = len(ids)
	}
	for _, id := range a.tally.all()[started] {
		outcome, err := booking.Run(background.engine, id).Result(ctx)
		if err != nil {
			return r, err
		}
		r.outcomes[outcome]++
	}
	rows, err := a.pool.Query(ctx, `select status from bookings where id like 'after-%'`)
	if err != nil {
		return r, err
	}
	statuses, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return r, err
	}
	for _, status := range statuses {
		r.statuses[status]++
	}
	if r.taken, err = seats.taken(ctx); err != nil {
		return r, err
	}
	r.listening = background.listener.Status().State
	r.handlers, err = a.handlersSeen()
	return r, err
}

func (r after) check(c *check) {
	unpaid := bookingsAfter - payers
	c.same("bookings", r.statuses, map[string]int{"paid": payers, "released": unpaid})
	c.same("runs", r.outcomes, map[string]int{"paid": payers, "released": unpaid})
	c.same("runs started, one for each event", r.counts[started], bookingsAfter)
	c.same("event delivered twice, run found", r.counts[existing], 1)
	c.same("confirmations, none lost", r.counts[confirmed], bookingsAfter)
	c.same("tickets", r.counts[ticketed], payers)
	c.same("seats released", r.counts[freed], unpaid)
	c.same("seat plan", r.taken, []int{1, 2, 11, 12, 13, 14})
	c.same("announcements", r.counts[announced], 1)
	channels := bus.ChannelsFor("romancy")
	c.same(channels.WorkflowResumable, r.counts[channels.WorkflowResumable], bookingsAfter)
	c.atLeast(channels.TimerExpired, r.counts[channels.TimerExpired], unpaid)
	c.same(channels.ChannelMessage, r.counts[channels.ChannelMessage], payers)
	c.same(channels.OutboxPending, r.counts[channels.OutboxPending], eventsAfter)
	c.same("poison queue", r.counts[poisoned], 0)
	c.same("listener", r.listening, bus.StateListening)
	c.same("outbox: events left", r.outbox.Pending, 0)
	c.same("outbox: dead letters", r.outbox.DeadLetters, 0)
	c.same("outbox: events published", r.outbox.Published, eventsAfter)
	c.same("outbox: attempts refused by the broker", r.outbox.Failed, 1)
	for _, handler := range []string{
		"book_seat", "confirm", "on_announcement", "on_message", "on_outbox", "on_resumable", "on_seat", "on_timer",
		"workflow_PaymentReceived", "workflow_SeatBooked",
	} {
		c.atLeast("Prometheus: messages of "+handler, int(r.handlers[handler]), 1)
	}
}
