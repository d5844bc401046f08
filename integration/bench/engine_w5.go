package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// crashed is how many runs are in flight when their worker is killed.
	crashed = 100
	// defaultLease is the library's, which the workers have.
	defaultLease = 15 * time.Second
)

// recovery is W5: a worker process is killed in the middle of its runs, and another finishes them.
func (e *engineBench) recovery(ctx context.Context) (err error) {
	s, err := e.open(ctx, systemRomancy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	heir, err := spawn(ctx, assignment{System: s.system, URL: s.url})
	if err != nil {
		return err
	}
	defer heir.kill()
	ids, err := call[[]string](ctx, s.worker, "crowd", crashed)
	if err != nil {
		return err
	}
	s.worker.kill()
	killed := time.Now()
	var ended int
	err = e.on(ctx, s, "select count(*) from romancy.instances where id = any ($1) and ended_at is not null", &ended, ids)
	if err != nil {
		return err
	}
	if ended > 0 {
		return fmt.Errorf("%d of %d runs had ended before their worker was killed: it was not in the middle of them", ended, crashed)
	}
	done, err := call[time.Time](ctx, heir, "results", ids)
	if err != nil {
		return err
	}
	e.report("engine_w5_recovered", done.Sub(killed).Seconds(), "s", fmt.Sprintf("worker killed with %d runs in flight, until another has ended all", crashed))
	e.report("engine_w5_lease", defaultLease.Seconds(), "s", "  its lease")
	return nil
}
