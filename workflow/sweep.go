package workflow

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// hotGrace is how long a run that a live worker holds in memory is left to that worker.
	hotGrace = 2 * time.Second
	// mailSweepDelay is how long after a message for nobody in memory here its receiver is looked for: the worker that
	// holds it in memory has been faster by then, and a burst is one look.
	mailSweepDelay = 50 * time.Millisecond
	// mailSweepLimit is how many subscribers of a channel are looked at for a message; of more, the mailbox is swept.
	mailSweepLimit = 1000
	// unwellInterval is how often a worker looks for ready runs while no notifications arrive.
	unwellInterval = time.Second
)

// sweepSpacing is that of the loops which poll for whoever is not in memory here.
var sweepSpacing = spacing{gap: mailSweepDelay, share: 4, credit: time.Second}

// SweepResume makes runs ready that are not but should be: those of workers whose lease has run out, and parked ones that
// have mail, or wait for an event, which nobody was told of. It returns how many. It looks at the whole cluster, whatever workflows this process
// knows, and tells the other workers.
func (e *Engine) SweepResume(ctx context.Context) (int, error) {
	if err := e.check(); err != nil {
		return 0, err
	}
	return e.sweepResume(ctx, e.glance(ctx))
}

func (e *Engine) sweepResume(ctx context.Context, seen store.Glance) (total int, err error) {
	if seen.Running || seen.Dead {
		total, err = e.takeOver(ctx)
	}
	if seen.Mail {
		mailed, failed := e.sweepMail(ctx)
		total, err = total+mailed, errors.Join(err, failed)
	}
	if seen.EventWaits {
		told, failed := e.sweepEvents(ctx)
		total, err = total+told, errors.Join(err, failed)
	}
	if seen.Ready {
		e.claims.give()
	}
	return total, err
}

// SweepTimers makes parked runs ready whose sleep, or wait for another attempt, is over and whose worker is gone or late.
// It returns how many.
func (e *Engine) SweepTimers(ctx context.Context) (int, error) { return e.sweepDue(ctx, false) }

// SweepChannelTimeouts makes parked runs ready whose wait for a message has timed out and whose worker is gone or late. It
// returns how many.
func (e *Engine) SweepChannelTimeouts(ctx context.Context) (int, error) { return e.sweepDue(ctx, true) }

func (e *Engine) sweepDue(ctx context.Context, receiving bool) (int, error) {
	if err := e.check(); err != nil {
		return 0, err
	}
	if !e.glance(ctx).Within(0) {
		return 0, nil
	}
	return e.sweepDeadlines(ctx, receiving)
}

// NextDeadline returns the earliest deadline of any parked run, by this process's clock; ok is false if none has one.
func (e *Engine) NextDeadline(ctx context.Context) (at time.Time, ok bool, err error) {
	if err := e.check(); err != nil {
		return time.Time{}, false, err
	}
	until := new(*time.Duration)
	mark := e.deadlineMark()
	if err := e.do(ctx, true, func(b *pgx.Batch) { e.store.NextDeadline(b, mark, until) }); err != nil {
		return time.Time{}, false, err
	}
	if *until == nil {
		return time.Time{}, false, nil
	}
	return time.Now().Add(**until), true, nil
}

// madeReady tells all workers of runs that a sweep has made ready.
func (e *Engine) madeReady(runs []store.Named) {
	for _, run := range runs {
		e.tellResumable(run.ID, run.Workflow)
	}
	if len(runs) > 0 {
		e.claims.give()
	}
}

func (e *Engine) sweepMail(ctx context.Context) (total int, err error) {
	began := time.Now()
	after, full := e.mail.begin(began)
	page := &store.Page{Last: after, Full: true}
	for first := true; page.Full; first = false {
		next := &store.Page{Last: page.Last}
		found := new(store.Roused)
		err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.SweepMail(b, next, e.config.MaxMessagesPerBatch, hotGrace, found)
		})
		if first {
			e.mail.end(next, full, time.Since(began), err)
		}
		if err != nil {
			return total, err
		}
		total += len(found.Runs)
		e.roused(found)
		e.mailRuns.add(found.Held...)
		e.mailChannels.add(found.HeldOn...)
		page = next
	}
	return total, nil
}

func (e *Engine) sweepDeadlines(ctx context.Context, receiving bool) (total int, err error) {
	marked := &e.sleeping
	if receiving {
		marked = &e.receiving
	}
	for first := true; ; first = false {
		began := time.Now()
		from, full := marked.begin(began, first)
		seen, due := new(int64), new([]store.Overdue)
		err := e.do(ctx, true, func(b *pgx.Batch) {
			e.store.SweepDeadlines(b, receiving, e.config.MaxTimersPerBatch, hotGrace, from, deadlineMargin, seen, due)
		})
		marked.end(seen, full, time.Since(began), err)
		if err != nil {
			return total, err
		}
		total += len(*due)
		for _, run := range *due {
			e.metrics.late(run.Late)
			e.madeReady([]store.Named{run.Named})
		}
		if len(*due) < e.config.MaxTimersPerBatch {
			return total, nil
		}
	}
}

// takeoverLoop takes over the runs of dead workers as soon as a lease has ended.
func (e *Engine) takeoverLoop(ctx context.Context) {
	rounds := spacing{gap: time.Second, share: 10, credit: 10 * time.Second} // anybody can say that a worker has left
	for {
		select {
		case <-ctx.Done():
			return
		case <-e.takeovers:
		}
		rounds.begin(time.Now())
		// Not only what the dead worker executed: also what it held parked, with mail and deadlines that the others have left
		// to it for as long as it seemed alive.
		e.sweepAll(ctx, e.reports.deaths, e.glance(ctx))
		rounds.rest(ctx)
	}
}

// mailSweepLoop polls, a little later, for the receivers of messages that are not in memory here.
func (e *Engine) mailSweepLoop(ctx context.Context) {
	rounds := sweepSpacing
	again := retrying{}
	for again.wait(ctx, e.mailRuns.some, e.mailChannels.some) {
		select {
		case <-ctx.Done():
			return
		case <-time.After(mailSweepDelay):
		}
		rounds.begin(time.Now())
		runs, more := e.mailRuns.take()
		channels, moreChannels := e.mailChannels.take()
		held, err := e.sweepMailFor(ctx, keys(runs), keys(channels), more || moreChannels)
		noteOutcome(ctx, e.reports.messages, err)
		if err != nil {
			e.mailRuns.putBack(runs, more)
			e.mailChannels.putBack(channels, moreChannels)
		}
		if e.mailRuns.add(held...); len(held) > 0 {
			e.mailChannels.putBack(channels, false) // messages for whoever competes are found by their channels alone
		}
		again.after(err != nil || len(held) > 0)
		rounds.rest(ctx)
	}
}

// sweepMailFor makes the runs ready, and those who receive on the channels, that have messages, or, if there are more than can be named, any.
// held: those whose rows are held at the moment.
func (e *Engine) sweepMailFor(ctx context.Context, runs, channels []string, more bool) (held []string, err error) {
	if err := e.letting.wait(ctx); err != nil {
		return nil, err
	}
	if more {
		if _, err := e.sweepMail(ctx); err != nil {
			return nil, err
		}
	}
	if len(runs) == 0 && len(channels) == 0 {
		return nil, nil
	}
	found := new(store.Roused)
	since := make([]int64, len(channels))
	for i, name := range channels {
		since[i] = e.mail.since(name)
	}
	if err := e.doHinted(ctx, func(b *pgx.Batch) { e.store.SweepMailFor(b, runs, channels, since, mailSweepLimit, found) }); err != nil {
		return nil, err
	}
	e.roused(found)
	if found.More {
		_, err = e.sweepMail(ctx)
	}
	return found.Held, err
}

// roused tells of what a look at mail has found.
func (e *Engine) roused(found *store.Roused) {
	e.madeReady(found.Runs)
	e.sent(found.Forwarded)
	e.lookFor(found.Heirs)
}

func keys[V any](byName map[string]V) []string {
	return slices.Collect(maps.Keys(byName))
}

// safetyNet is the last one: whatever notifications and the cluster's periodic sweeps have missed, every worker finds by
// itself, each fallback interval. While notifications do not arrive it looks every second for ready runs, and for the mail of
// the runs it holds: the leader that would otherwise have them swept can be absent for twenty seconds.
func (e *Engine) safetyNet(ctx context.Context) {
	swept := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(e.fallback()):
		}
		e.held.tooMany()
		if !e.config.Listener.Healthy() {
			e.claims.give()
			e.looking.everybody()
		}
		if time.Since(swept) < e.config.FallbackInterval {
			continue
		}
		swept = time.Now()
		e.mail.reset()
		seen := e.glance(ctx)
		if seen.Running {
			e.orphans.give()
		}
		e.sweepAll(ctx, e.reports.sweeps, seen)
	}
}

// fallback is after how long somebody looks who would have been told by a notification.
func (e *Engine) fallback() time.Duration {
	if e.config.Listener.Healthy() {
		return e.config.FallbackInterval
	}
	return min(e.config.FallbackInterval, unwellInterval)
}

// sweepAll carries out all sweeps that a glance has found something for.
func (e *Engine) sweepAll(ctx context.Context, report *outage.Reporter, seen store.Glance) {
	sweeps := []func(context.Context) (int, error){
		func(ctx context.Context) (int, error) { return e.sweepResume(ctx, seen) },
	}
	if seen.Within(0) {
		for _, receiving := range []bool{false, true} {
			sweeps = append(sweeps, func(ctx context.Context) (int, error) { return e.sweepDeadlines(ctx, receiving) })
		}
	}
	if seen.Within(e.ahead()) {
		sweeps = append(sweeps, e.lookAhead)
	}
	e.sweepUntilDone(ctx, report, sweeps...)
}

func (e *Engine) sweepUntilDone(ctx context.Context, report *outage.Reporter, sweeps ...func(context.Context) (int, error)) {
	var errs []error
	for _, sweep := range sweeps {
		_, err := sweep(ctx)
		errs = append(errs, err)
	}
	noteOutcome(ctx, report, errors.Join(errs...))
}

// noteOutcome reports how an attempt has ended that is made again and again. The end of the engine is no failure.
func noteOutcome(ctx context.Context, report *outage.Reporter, err error) {
	switch {
	case err == nil:
		report.Succeeded(ctx)
	case ctx.Err() == nil && !errors.Is(err, ErrClosed) && !errors.Is(err, commit.ErrClosed):
		report.Failed(ctx, err)
	}
}
