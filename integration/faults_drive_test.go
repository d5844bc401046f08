package integration_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow"
)

// drive has the world do all it can, once, and returns what went wrong.
func (w *faultsWorld) drive() error {
	w.broken.Store(true)
	w.poisoned.Store(true)
	errs := make(chan error, 20)
	var busy sync.WaitGroup
	scenarios := map[string]func() error{
		"orders": w.driveOrders, "events": w.driveEvents, "cancels": w.driveCancels, "repairs": w.driveRepairs,
		"starts": w.driveStarts, "outbox": w.driveOutbox, "retention": w.driveRetention, "bus": w.driveBus,
		"letters": w.driveLetters, "many": w.driveMany, "watermill-sql": w.driveWoken, "scrape": w.driveScrape,
	}
	if w.trapped {
		delete(scenarios, "watermill-sql")
	}
	if w.sweeps() { // the others sweep when a worker goes
		maps.Copy(scenarios, map[string]func() error{"rescue": w.driveRescue, "move": w.driveMove, "lapse": w.driveLapse})
	}
	for name, scenario := range scenarios {
		busy.Go(func() {
			began := time.Now()
			defer func() { w.t.Logf("%s took %s", name, time.Since(began).Round(time.Millisecond)) }()
			if err := scenario(); err != nil {
				errs <- fmt.Errorf("%s: %w", name, err)
				time.AfterFunc(faultsGrace, w.giveUp) // what waits for this would wait long
			}
		})
	}
	busy.Wait()
	close(errs)
	var all []error
	for err := range errs {
		if all == nil || !errors.Is(err, context.Canceled) { // given up because of another
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// wantResult waits for a run's end.
func wantResult[Out comparable](w *faultsWorld, run *workflow.Run[Out], want Out) error {
	var got Out
	err := w.persistUnlessEnded("the result of "+run.ID(), func() (err error) {
		got, err = run.Result(w.ctx)
		return err
	})
	if err != nil {
		return fmt.Errorf("%s ended with %w, want %v; its row: %s", run.ID(), err, want, w.rowOf(run.ID()))
	}
	if got != want {
		return fmt.Errorf("%s ended with %v, want %v", run.ID(), got, want)
	}
	return nil
}

// wantEnd waits until a run has ended otherwise than completed.
func wantEnd[Out any](w *faultsWorld, run *workflow.Run[Out], status workflow.Status, errorType string) error {
	err := w.persistUnlessEnded("the end of "+run.ID(), func() error {
		_, err := run.Result(w.ctx)
		return err
	})
	var ended *workflow.RunError
	if !errors.As(err, &ended) || ended.Status != status || errorType != "" && ended.Type != errorType || ended.CompensationErrors != nil {
		return fmt.Errorf("%s ended with %w, want it %s with %s", run.ID(), err, status, errorType)
	}
	return nil
}

func (w *faultsWorld) send(run, channel, body string) error {
	return w.persist("send", func() error {
		return w.desk.Engine().SendTo(w.ctx, run, channel, body, workflow.WithSendKey(run+" "+channel+" "+body))
	})
}

func (w *faultsWorld) publish(channel, body string) error {
	return w.persist("publish", func() error {
		return w.desk.Engine().Publish(w.ctx, channel, body, workflow.WithSendKey(channel+" "+body))
	})
}

func startRun[In, Out any](w *faultsWorld, flow *workflow.Workflow[In, Out], e *workflow.Engine, in In, options ...workflow.StartOption) (run *workflow.Run[Out], err error) {
	err = w.persist("start "+flow.Name(), func() (err error) {
		run, err = flow.Start(w.ctx, e, in, options...)
		return err
	})
	return run, err
}

func (w *faultsWorld) driveOrders() error {
	desk := w.desk.Engine()
	auditor, err := startRun(w, w.flows.auditor, desk, 0, workflow.WithID(faultsAuditor))
	if err != nil {
		return err
	}
	if err := w.until("the audit is heard", "select count(*) = 1 from romancy.subscriptions where channel = 'audit'"); err != nil {
		return err
	}
	keeper, err := startRun(w, w.flows.keeper, desk, "", workflow.WithID(faultsKeeper))
	if err != nil {
		return err
	}
	// While it has not tried the audit's channel, the auditor must not continue as new: nobody is subscribed for a moment then.
	if err := w.until("the keeper waits", "select status = 'waiting' from romancy.instances where id = $1::text", faultsKeeper); err != nil {
		return err
	}
	orders, err := w.order()
	if err != nil {
		return err
	}
	for n := range faultsOrders {
		o := faultsOrder(n)
		for _, remark := range []string{"remark 1", "remark 2"} { // both are there before they are asked for
			if err := w.send(o.id(), "remarks", remark); err != nil {
				return err
			}
		}
		if err := errors.Join(w.send(o.id(), "approvals", "approved"), w.publish("vans", "van "+o.id())); err != nil {
			return err
		}
	}
	if err := w.until("all want the news", "select count(*) = $1::int from romancy.subscriptions where channel = 'news'", faultsOrders); err != nil {
		return err
	}
	if err := w.announce("extra"); err != nil {
		return err
	}
	for n, run := range orders {
		o := faultsOrder(n)
		if o.refused() {
			err = wantEnd(w, run, workflow.StatusFailed, "refused")
		} else {
			err = wantResult(w, run, o.want())
		}
		if err != nil {
			return err
		}
	}
	if err := w.send(faultsKeeper, "stop", "enough"); err != nil {
		return err
	}
	if err := wantResult(w, keeper, "enough"); err != nil {
		return err
	}
	if err := w.awaitNotes(faultsAuditor, faultsOrders); err != nil {
		return err
	}
	if err := w.send(faultsAuditor, "stop", "enough"); err != nil {
		return err
	}
	return wantResult(w, auditor, faultsOrders)
}

// announce has a run publish to more than one statement reaches: the orders come after many that have no run.
func (w *faultsWorld) announce(news string) error {
	_, err := w.direct.Exec(w.ctx, "insert into romancy.subscriptions (instance_id, channel, mode) select $1::text || n, 'news', 'broadcast' from generate_series(1, 2000) n", faultsGhosts)
	if err != nil {
		return err
	}
	herald, err := startRun(w, w.flows.herald, w.desk.Engine(), news)
	if err != nil {
		return err
	}
	return wantResult(w, herald, news)
}

// order starts the orders, in three ways.
func (w *faultsWorld) order() ([]*workflow.Run[string], error) {
	var requests []workflow.StartRequest[faultsOrder]
	for n := range faultsOrders - 2 {
		requests = append(requests, workflow.StartRequest[faultsOrder]{Input: faultsOrder(n), Options: []workflow.StartOption{workflow.WithID(faultsOrder(n).id())}})
	}
	var orders []*workflow.Run[string]
	if err := w.persist("start many", func() (err error) {
		orders, err = w.flows.order.StartMany(w.ctx, w.desk.Engine(), requests)
		return err
	}); err != nil {
		return nil, err
	}
	own := faultsOrder(faultsOrders - 2)
	run, err := startRun(w, w.flows.order, w.shop.Engine(), own, workflow.WithID(own.id()), workflow.WithPriority(3))
	if err != nil {
		return nil, err
	}
	orders = append(orders, run)
	last := faultsOrder(faultsOrders - 1)
	err = w.persist("start in a transaction", func() error {
		return pgx.BeginFunc(w.ctx, w.deskPool, func(tx pgx.Tx) (err error) {
			run, err = w.flows.order.StartTx(w.ctx, tx, w.desk.Engine(), last, workflow.WithID(last.id()))
			if err != nil {
				return err
			}
			return w.desk.Engine().SendToTx(w.ctx, tx, last.id(), "remarks", "remark 1", workflow.WithSendKey(last.id()+" remarks remark 1"))
		})
	})
	return append(orders, run), err
}

// awaitNotes waits until a run has received so much.
func (w *faultsWorld) awaitNotes(run string, want int) error {
	for {
		if got := w.notes(run); got >= want {
			return nil
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-w.ctx.Done():
			return fmt.Errorf("%s has received %d messages, want %d: %w", run, w.notes(run), want, w.ctx.Err())
		}
	}
}

func (w *faultsWorld) driveEvents() error {
	desk := w.desk.Engine()
	paid := func(n int) workflow.OutgoingEvent {
		return workflow.OutgoingEvent{Type: "paid", Source: "bank", ID: fmt.Sprint("paid-", n), Attributes: map[string]string{"buyer": fmt.Sprint(n)}, Data: fmt.Sprint("paid ", n)}
	}
	early := func() error { return desk.SendEvent(w.ctx, paid(0)) }
	if err := w.persist("send an event early", early); err != nil {
		return err
	}
	var buyers []*workflow.Run[string]
	for n := range 3 {
		run, err := startRun(w, w.flows.buyer, w.annex.engine, n, workflow.WithID(fmt.Sprint("buyer-", n)))
		if err != nil {
			return err
		}
		buyers = append(buyers, run)
	}
	var sleepers []*workflow.Run[string]
	for n, d := range []time.Duration{30 * time.Millisecond, 300 * time.Millisecond, 2200 * time.Millisecond, 2300 * time.Millisecond} {
		run, err := startRun(w, w.flows.sleeper, desk, d, workflow.WithID(fmt.Sprint("sleeper-", n)))
		if err != nil {
			return err
		}
		sleepers = append(sleepers, run)
	}
	if err := w.until("two buyers wait", "select count(*) >= 2 from romancy.event_waits where type = 'paid'"); err != nil {
		return err
	}
	if err := w.persist("send an event", func() error { return desk.SendEvent(w.ctx, paid(1)) }); err != nil {
		return err
	}
	if err := w.persist("send an event in a transaction", func() error {
		return pgx.BeginFunc(w.ctx, w.deskPool, func(tx pgx.Tx) error { return desk.SendEventTx(w.ctx, tx, paid(2)) })
	}); err != nil {
		return err
	}
	for n, run := range buyers {
		if err := wantResult(w, w.flows.buyer.Run(desk, run.ID()), fmt.Sprint("thanks ", n)); err != nil {
			return err
		}
	}
	for _, run := range sleepers {
		if err := wantResult(w, run, "awake"); err != nil {
			return err
		}
	}
	return nil
}

func (w *faultsWorld) driveCancels() error {
	desk := w.desk.Engine()
	for how, options := range map[string][]workflow.CancelOption{
		"plainly": nil, "undoing": {workflow.Compensate()}, "executing": {workflow.Compensate()}, "executing plainly": nil,
		faultsReturning: {workflow.Compensate()},
	} {
		run, err := startRun(w, w.flows.patient, desk, how, workflow.WithID("patient-"+how))
		if err != nil {
			return err
		}
		if err := w.until(run.ID()+" has booked", "select exists (select from romancy.history where instance_id = $1::text and name = 'book')", run.ID()); err != nil {
			return err
		}
		if how == faultsReturning {
			select {
			case <-w.returning:
			case <-w.ctx.Done():
				return fmt.Errorf("%s does not return: %w", run.ID(), w.ctx.Err())
			}
		}
		if err := w.persist("cancel", func() error {
			err := desk.Cancel(w.ctx, run.ID(), "changed my mind", options...)
			if errors.Is(err, workflow.ErrEnded) {
				return nil // the answer to an earlier call was lost
			}
			return err
		}); err != nil {
			return err
		}
		if how == faultsReturning {
			close(w.leave)
		}
		if err := wantEnd(w, run, workflow.StatusCancelled, ""); err != nil {
			return err
		}
	}
	return nil
}

func (w *faultsWorld) driveRepairs() error {
	desk := w.desk.Engine()
	run, err := startRun(w, w.flows.flaky, desk, 1, workflow.WithID("flaky"))
	if err != nil {
		return err
	}
	if err := wantEnd(w, run, workflow.StatusFailed, ""); err != nil {
		return err
	}
	w.broken.Store(false)
	if err := w.persist("retry", func() error {
		err := desk.Retry(w.ctx, run.ID())
		if errors.Is(err, workflow.ErrNotRetryable) {
			return nil // the answer to an earlier call was lost
		}
		return err
	}); err != nil {
		return err
	}
	if err := w.until("it is tried again", "select status <> 'failed' from romancy.instances where id = $1::text", run.ID()); err != nil {
		return err
	}
	return wantResult(w, run, "whole")
}

func (w *faultsWorld) driveStarts() error {
	desk := w.desk.Engine()
	var delayed []*workflow.Run[string]
	for n, e := range []*workflow.Engine{desk, w.annex.engine} {
		run, err := startRun(w, w.flows.sleeper, e, 10*time.Millisecond, workflow.WithID(fmt.Sprint("delayed-", n)), workflow.WithDelay(150*time.Millisecond))
		if err != nil {
			return err
		}
		delayed = append(delayed, run)
	}
	for _, run := range delayed {
		if err := wantResult(w, w.flows.sleeper.Run(desk, run.ID()), "awake"); err != nil {
			return err
		}
	}
	return w.persist("inspect", func() error {
		info, err := desk.Get(w.ctx, "delayed-0")
		if err != nil {
			return err
		}
		history, err := desk.History(w.ctx, "delayed-0")
		if err != nil {
			return err
		}
		page, err := desk.List(w.ctx, workflow.Filter{Statuses: []workflow.Status{workflow.StatusCompleted}, Workflows: []string{"sleeper"}, InputPath: "$ ? (@ == 10000000)"})
		if err != nil {
			return err
		}
		if _, _, err := w.shop.Engine().NextDeadline(w.ctx); err != nil {
			return err
		}
		if info.Status != workflow.StatusCompleted || len(history) < 3 || len(page.Runs) != 2 {
			w.t.Errorf("delayed-0 is %s with %d records, and %d runs are like it", info.Status, len(history), len(page.Runs))
		}
		return nil
	})
}

// driveRetention has what is old removed.
func (w *faultsWorld) driveRetention() error {
	run, err := startRun(w, w.flows.heir, w.desk.Engine(), 0, workflow.WithID("heir"))
	if err != nil {
		return err
	}
	if err := wantResult(w, run, 4); err != nil {
		return err
	}
	if err := w.persist("erase", func() error { return w.desk.Engine().Erase(w.ctx, run.ID(), workflow.WithFormerRuns()) }); err != nil {
		return err
	}
	if err := w.persist("send an event for nobody", func() error {
		return w.desk.Engine().SendEvent(w.ctx, workflow.OutgoingEvent{Type: "old", Source: "past", ID: "old", Data: 1})
	}); err != nil {
		return err
	}
	for _, aged := range []string{
		"update romancy.instances set ended_at = ended_at - interval '2 hours' where workflow = 'heir'",
		"update romancy.events set expires_at = clock_timestamp() - interval '1 hour' where type = 'old'",
		"insert into romancy.sent_keys (key, expires_at) values ('ancient', clock_timestamp() - interval '1 hour')",
		"insert into romancy.mailbox (channel, mode, receiver, payload) values ('lost', 'direct', 'gone', '{}')",
	} {
		if _, err := w.direct.Exec(w.ctx, aged); err != nil {
			return err
		}
	}
	for gone := false; !gone; {
		if err := w.persist("sweep what is old", func() error {
			_, err := w.shop.Engine().SweepRetention(w.ctx)
			return err
		}); err != nil {
			return err
		}
		err := w.direct.QueryRow(w.ctx, `select not exists (select from romancy.instances where workflow = 'heir')
			and not exists (select from romancy.events where type = 'old') and not exists (select from romancy.sent_keys where key = 'ancient')`).Scan(&gone)
		if err != nil {
			return fmt.Errorf("what is old is not removed: %w", err)
		}
		if !w.sweeps() {
			continue
		}
		for what, sweep := range map[string]func(context.Context) (int, error){
			"resume": w.shop.Engine().SweepResume, "timers": w.shop.Engine().SweepTimers, "channels": w.shop.Engine().SweepChannelTimeouts,
			"resume again": w.shop.Engine().SweepResume, // one after a dear one begins at its marks
		} {
			if err := w.persist("sweep "+what, func() error { _, err := sweep(w.ctx); return err }); err != nil {
				return err
			}
		}
	}
	return nil
}

const (
	faultsReaders = 12
	faultsQuick   = 40
	faultsBulk    = 2000
)

// driveMany does what is done otherwise when there is much of it.
func (w *faultsWorld) driveMany() error {
	desk := w.desk.Engine()
	var readers []*workflow.Run[string]
	for n := range faultsReaders {
		run, err := startRun(w, w.flows.reader, desk, n, workflow.WithID(fmt.Sprint("reader-", n)))
		if err != nil {
			return err
		}
		readers = append(readers, run)
	}
	var requests []workflow.StartRequest[int]
	for n := range faultsQuick {
		requests = append(requests, workflow.StartRequest[int]{Input: n, Options: []workflow.StartOption{workflow.WithID(fmt.Sprint("quick-", n))}})
	}
	var quick []*workflow.Run[int]
	for _, e := range []*workflow.Engine{w.shop.Engine(), desk} { // the second finds them all
		if err := w.persist("start many", func() (err error) {
			quick, err = w.flows.quick.StartMany(w.ctx, e, requests)
			return err
		}); err != nil {
			return err
		}
	}
	for n, run := range quick {
		if err := wantResult(w, run, n); err != nil {
			return err
		}
	}
	if err := w.until("all readers wait", "select count(*) = $1::integer from romancy.event_waits where type = 'story'", faultsReaders); err != nil {
		return err
	}
	for n := range 4 {
		if err := w.persist("send a story", func() error {
			return desk.SendEvent(w.ctx, workflow.OutgoingEvent{
				Type: "story", Source: "press", ID: fmt.Sprint("story-", n), Attributes: map[string]string{"reader": fmt.Sprint(n)}, Data: fmt.Sprint("story ", n),
			})
		}); err != nil {
			return err
		}
	}
	for n, run := range readers {
		if err := wantResult(w, run, fmt.Sprint("story ", n%4)); err != nil {
			return err
		}
	}
	return nil
}

// notes counts what a run has received.
func (w *faultsWorld) notes(run string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for what := range w.noted {
		if prefix := run + " <- "; len(what) > len(prefix) && what[:len(prefix)] == prefix {
			n++
		}
	}
	return n
}
