package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// full is W6: the workloads again, on tables full of runs that have ended and that wait, beside a database without them.
// Each figure is what the full one costs for one unit of the empty one, so 1 is no difference and more is worse. W7, what
// waiting runs cost, is measured on the same database.
func (e *engineBench) full(ctx context.Context) (err error) {
	ended, waiting := 1_000_000, 100_000
	if e.quick {
		ended, waiting = ended/10, waiting/10
	}
	empty, err := e.open(ctx, systemRomancy)
	if err != nil {
		return err
	}
	sites := []*site{empty}
	defer func() { err = errors.Join(err, closeAll(ctx, sites)) }()
	filled, err := e.open(ctx, systemRomancy)
	if err != nil {
		return err
	}
	sites = append(sites, filled)
	empty.label, filled.label = "empty", "full"
	if err := e.fill(ctx, filled, ended, waiting); err != nil {
		return err
	}
	if err := e.parked(ctx, filled, waiting); err != nil { // W7
		return err
	}
	for _, measure := range []func(context.Context, []*site) error{e.fullIdle, e.fullThroughput, e.fullWakeUp, e.fullTimers} {
		if err := measure(ctx, sites); err != nil {
			return err
		}
	}
	return nil
}

// cost reports how a full site compares to an empty one.
func (e *engineBench) cost(name string, ratio float64, what string) {
	e.report("engine_w6_"+name+"_ratio_empty", ratio, "x", "full tables cost: "+what)
}

func (e *engineBench) fullIdle(ctx context.Context, sites []*site) error {
	perSecond, err := e.measureIdle(ctx, sites)
	if err != nil {
		return err
	}
	e.cost("w4", perSecond[1].ours/perSecond[0].ours, "statements of an idle worker")
	return errors.Join(e.writeStatements(ctx, sites[0], "w6_w4_empty"), e.writeStatements(ctx, sites[1], "w6_w4_full"))
}

func (e *engineBench) fullThroughput(ctx context.Context, sites []*site) error {
	for _, n := range []int{500, 1} {
		measured := map[*site]loads{sites[0]: {}, sites[1]: {}}
		if err := takeTurns(e.rounds, sites, func(round int, s *site) error {
			answer, err := e.load(ctx, s, n, "")
			measured[s][n] = append(measured[s][n], answer)
			e.progressf("  %s, %d in flight, round %d: %.0f runs/s", s.label, n, round+1, answer.PerSecond)
			return err
		}); err != nil {
			return err
		}
		name := "w1"
		if n == 1 {
			name = "w1_1"
		}
		e.cost(name, median(ratios(measured[sites[0]].perSecond(n), measured[sites[1]].perSecond(n))), fmt.Sprintf("time of a run, %d in flight", n))
	}
	return nil
}

func (e *engineBench) fullWakeUp(ctx context.Context, sites []*site) error {
	measured, err := e.measureWakeUps(ctx, sites)
	if err != nil {
		return err
	}
	empty, filled := measured[sites[0]], measured[sites[1]]
	for _, at := range percentiles {
		e.cost("w2_"+at.name, median(ratios(filled.percentiles(at.p), empty.percentiles(at.p))), "send to next line, "+at.name)
	}
	return nil
}

func (e *engineBench) fullTimers(ctx context.Context, sites []*site) error {
	measured, err := e.measureTimers(ctx, sites)
	if err != nil {
		return err
	}
	for _, span := range timerSpans {
		empty, filled := measured[sites[0]][span.name], measured[sites[1]][span.name]
		for _, at := range percentiles {
			e.cost("w3_"+span.name+"_"+at.name, median(ratios(filled.percentiles(at.p), empty.percentiles(at.p))), span.name+" timers late, "+at.name)
		}
	}
	return nil
}

// fill puts so many runs that have ended, and that wait, half of them for a message and half for a time, into the tables of
// a site: copies of runs that the engine has made. Its worker process is another one afterwards.
func (e *engineBench) fill(ctx context.Context, s *site, ended, waiting int) error {
	begun := time.Now()
	if _, err := call[loadAnswer](ctx, s.worker, "load", loadOrder{InFlight: 1, Span: 100 * time.Millisecond}); err != nil {
		return err
	}
	if _, err := call[string](ctx, s.worker, "receiver", 1); err != nil {
		return err
	}
	if _, err := call[nothing](ctx, s.worker, "sleepers", 1); err != nil {
		return err
	}
	if _, err := call[nothing](ctx, s.worker, "parked", 2); err != nil {
		return err
	}
	if err := s.worker.stop(ctx); err != nil {
		return err
	}
	for _, copies := range []struct {
		workflow, status string
		count            int
	}{
		{fiveSteps.Name(), "completed", ended},
		{receiver.Name(), "waiting", waiting / 2},
		{sleeper.Name(), "waiting", waiting / 2},
	} {
		if err := s.multiply(ctx, copies.workflow, copies.status, copies.count); err != nil {
			return fmt.Errorf("fill the tables with runs of %s: %w", copies.workflow, err)
		}
	}
	if err := s.settle(ctx); err != nil {
		return err
	}
	e.progressf("  %d ended and %d waiting runs after %s", ended, waiting, time.Since(begun).Round(time.Millisecond))
	return s.startWorker(ctx)
}
