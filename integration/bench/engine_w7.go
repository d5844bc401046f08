package main

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// parked is W7: what waiting runs cost a worker. The site's tables hold so many of them.
func (e *engineBench) parked(ctx context.Context, filled *site, waiting int) error {
	if err := e.memory(ctx); err != nil {
		return err
	}
	return e.readiness(ctx, filled, waiting)
}

// memory measures runs parked in memory, fewer than the cache holds.
func (e *engineBench) memory(ctx context.Context) (err error) {
	runs := 9000
	if e.quick {
		runs = 3000
	}
	s, err := e.open(ctx, systemRomancy)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, s.close(ctx)) }()
	// The first runs make buffers grow and statements be prepared, which is not theirs.
	if _, err := e.load(ctx, s, 200, ""); err != nil {
		return err
	}
	bytes, err := call[float64](ctx, s.worker, "memory", runs)
	if err != nil {
		return err
	}
	e.report("engine_w7_bytes_per_parked_run", bytes, "B", "memory of a parked run in the cache, its stack included")
	return nil
}

// readiness measures from the start of a worker process to the end of a run that was ready before.
func (e *engineBench) readiness(ctx context.Context, s *site, waiting int) error {
	if err := s.startSender(ctx); err != nil {
		return err
	}
	var seconds []float64
	for range e.rounds {
		if err := s.worker.stop(ctx); err != nil {
			return err
		}
		id, err := call[string](ctx, s.sender, "start", nil)
		if err != nil {
			return err
		}
		begun := time.Now()
		if err := s.startWorker(ctx); err != nil {
			return err
		}
		served, err := call[time.Time](ctx, s.worker, "result", id)
		if err != nil {
			return err
		}
		seconds = append(seconds, served.Sub(begun).Seconds())
		e.progressf("  ready after %.3f s", seconds[len(seconds)-1])
	}
	// The sender listens, too, and what is measured next on this site is compared with one that has none.
	if err := s.stopSender(ctx); err != nil {
		return err
	}
	e.report("engine_w7_ready", median(seconds), "s", "process start to the first run served, "+strconv.Itoa(waiting)+" waiting")
	return nil
}
