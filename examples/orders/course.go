package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// faults are what the demo breaks on purpose.
type faults struct {
	killed         string // the worker that got SIGKILL
	killedAt       time.Time
	replacement    string
	endedBefore    int // runs that had ended when the worker was killed
	listenersEnded int // LISTEN sessions that were terminated
	terminated     bool
}

const (
	worker1, worker2, worker3 = "worker-1", "worker-2", "worker-3"

	lookInterval = 100 * time.Millisecond
	// patience bounds the whole. With polling only, a run waits about a second at each step that somebody else has to notice.
	patience        = 3 * time.Minute
	patiencePolling = 5 * time.Minute
)

// state is where the runs are.
type state struct {
	total                             int // of the orders
	Started, Completed, Failed, Stuck int
	Ready, Running, Waiting           int
	OutboxPending, OutboxDead         int
}

func (s state) ended() int { return s.Completed + s.Failed + s.Stuck }

func (d *demo) look(ctx context.Context) (state, error) {
	s := state{total: len(d.all)}
	const query = `
		select count(*), count(*) filter (where status = 'completed'), count(*) filter (where status in ('failed', 'cancelled')),
		       count(*) filter (where status = 'stuck'), count(*) filter (where status = 'ready'),
		       count(*) filter (where status = 'running'), count(*) filter (where status = 'waiting'),
		       (select count(*) from romancy.outbox where dead_at is null), (select count(*) from romancy.outbox where dead_at is not null)
		from romancy.instances`
	err := d.pool.QueryRow(ctx, query).Scan(&s.Started, &s.Completed, &s.Failed, &s.Stuck, &s.Ready, &s.Running, &s.Waiting,
		&s.OutboxPending, &s.OutboxDead)
	if err != nil {
		return s, fmt.Errorf("look at the runs: %w", err)
	}
	return s, nil
}

// runOrders starts the processes, breaks what is to be broken, and returns when every run has ended and the outbox is empty.
func (d *demo) runOrders(ctx context.Context) error {
	limit := patience
	if !d.notify {
		limit = patiencePolling
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("the demo has not come to its end within %s", limit))
	defer cancel()
	for _, child := range []struct {
		as   role
		name string
	}{{roleWorker, worker1}, {roleWorker, worker2}, {roleDesk, string(roleDesk)}, {roleStarter, string(roleStarter)}} {
		if err := d.start(ctx, child.as, child.name); err != nil {
			return err
		}
	}
	fmt.Fprintf(d.out, "%d orders, each sent twice, %d a second; two workers, a starter and an approval desk, each a process.\n\n",
		len(d.all), ordersPerSecond)
	d.started = time.Now()
	shown := newProgress(d.out, d.started)
	defer shown.end()
	pace := time.NewTicker(lookInterval)
	defer pace.Stop()
	for {
		now, err := d.look(ctx)
		if err == nil {
			shown.show(now)
			err = d.breakThings(ctx, now, shown)
		}
		if err == nil {
			err = d.checkChildren()
		}
		if err != nil {
			if cause := context.Cause(ctx); cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w (%w)", cause, err)
			}
			return err
		}
		if now.ended() == now.total && now.OutboxPending == 0 && !d.child(string(roleStarter)).running() {
			d.took = time.Since(d.started)
			return nil
		}
		select {
		case <-pace.C:
		case <-ctx.Done():
			return fmt.Errorf("%w: %+v", context.Cause(ctx), now)
		}
	}
}

// breakThings kills a worker after a third of the runs, and cuts everybody's LISTEN connection after half of them.
func (d *demo) breakThings(ctx context.Context, now state, shown *progress) error {
	if d.faults.killed == "" && 3*now.ended() >= now.total {
		victim := d.child(worker1)
		if err := victim.kill(); err != nil {
			return err
		}
		d.faults.killed, d.faults.killedAt, d.faults.endedBefore = victim.name, time.Now(), now.ended()
		shown.sayf("%s is killed with SIGKILL (pid %d); %s takes its place", worker1, victim.command.Process.Pid, worker3)
		if err := d.start(ctx, roleWorker, worker3); err != nil {
			return err
		}
		d.faults.replacement = worker3
	}
	if !d.faults.terminated && 2*now.ended() >= now.total {
		d.faults.terminated = true
		const query = `
			select count(pg_terminate_backend(pid)) from pg_stat_activity
			where datname = current_database() and application_name like '% listen'`
		if err := d.pool.QueryRow(ctx, query).Scan(&d.faults.listenersEnded); err != nil {
			return fmt.Errorf("terminate the LISTEN sessions: %w", err)
		}
		shown.sayf("%d LISTEN sessions are terminated", d.faults.listenersEnded)
	}
	return nil
}

// checkChildren returns an error if a process has ended that should not have.
func (d *demo) checkChildren() error {
	var errs []error
	for _, child := range d.children {
		if child.running() || child.killed {
			continue
		}
		if err := child.failure(); err != nil {
			errs = append(errs, err)
		} else if child.name != string(roleStarter) {
			errs = append(errs, fmt.Errorf("%s has stopped before its time", child.name))
		}
	}
	return errors.Join(errs...)
}

func (d *demo) child(name string) *process {
	for _, child := range d.children {
		if child.name == name {
			return child
		}
	}
	return nil
}
