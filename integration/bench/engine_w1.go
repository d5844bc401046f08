package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

var (
	// inFlight are the numbers of runs that are kept going.
	inFlight = []int{1, 50, 500, 2000}
	// inFlightDBOS are those tried with DBOS: beyond its pool's size a higher number only makes it queue.
	inFlightDBOS = []int{1, 20, 50, 500}
)

// loads are the answers to load orders by runs in flight, one a round.
type loads map[int][]loadAnswer

func (l loads) perSecond(n int) []float64 {
	var all []float64
	for _, answer := range l[n] {
		all = append(all, answer.PerSecond)
	}
	return all
}

// best is the highest rate of each round, whatever was in flight.
func (l loads) best() []float64 {
	var all []float64
	for _, rates := range l {
		for round, answer := range rates {
			if round == len(all) {
				all = append(all, 0)
			}
			all[round] = max(all[round], answer.PerSecond)
		}
	}
	return all
}

// throughput is W1: runs of five steps a second.
func (e *engineBench) throughput(ctx context.Context) (err error) {
	if e.bare, err = e.bareRuns(ctx, e.span(5*time.Second)); err != nil {
		return err
	}
	e.report("engine_bare_1_per_second", e.bare, "runs/s", "plain inserts, 7 commits a run, 1 in flight")
	sites, err := e.openBoth(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(ctx, sites)) }()
	measured := map[string]loads{systemRomancy: {}, systemDBOS: {}}
	for round := range e.rounds {
		if err := e.throughputRound(ctx, round, sites, measured); err != nil {
			return err
		}
	}
	e.reportThroughput(measured[systemRomancy], measured[systemDBOS])
	return e.profileLoad(ctx, sites[0])
}

// throughputRound measures every setting of both systems once, close together: a ratio is of one round.
func (e *engineBench) throughputRound(ctx context.Context, round int, sites []*site, measured map[string]loads) error {
	settings := map[string][]int{systemRomancy: inFlight, systemDBOS: inFlightDBOS}
	for i := range max(len(inFlight), len(inFlightDBOS)) {
		for _, s := range turn(round, sites) {
			if i >= len(settings[s.system]) {
				continue
			}
			n := settings[s.system][i]
			answer, err := e.load(ctx, s, n, "")
			if err != nil {
				return err
			}
			e.progressf("  %s, %d in flight, round %d: %.0f runs/s", s.label, n, round+1, answer.PerSecond)
			measured[s.system][n] = append(measured[s.system][n], answer)
		}
	}
	return nil
}

// load measures one round of n runs in flight.
func (e *engineBench) load(ctx context.Context, s *site, n int, profile string) (loadAnswer, error) {
	return call[loadAnswer](ctx, s.worker, "load", loadOrder{
		InFlight: n, Warm: e.span(3 * time.Second), Span: e.span(8 * time.Second), Profile: profile,
	})
}

func (e *engineBench) reportThroughput(ours, theirs loads) {
	for _, n := range inFlightDBOS {
		e.reportLoad(fmt.Sprintf("engine_dbos_w1_%d", n), "DBOS", n, theirs)
	}
	best := theirs.best()
	e.report("engine_dbos_w1_best_per_second", median(best), "runs/s", "  its best")
	for _, n := range inFlight {
		name := fmt.Sprintf("engine_w1_%d", n)
		e.reportLoad(name, "romancy", n, ours)
		against, what := theirs.perSecond(n), fmt.Sprintf("  against DBOS with %d in flight", n)
		if n >= 500 || len(against) == 0 {
			against, what = best, "  against DBOS's best, whatever it has in flight"
		}
		e.report(name+"_ratio_dbos", median(ratios(ours.perSecond(n), against)), "x", what)
		if e.bare > 0 {
			e.report(name+"_ratio_bare", median(ours.perSecond(n))/e.bare, "x", "  against plain inserts one at a time")
		}
	}
}

func (e *engineBench) reportLoad(name, system string, n int, measured loads) {
	var transactions, wal []float64
	for _, answer := range measured[n] {
		transactions, wal = append(transactions, answer.Transactions), append(wal, answer.WAL)
	}
	e.report(name+"_per_second", median(measured.perSecond(n)), "runs/s", fmt.Sprintf("%s, 5-step runs, %d in flight", system, n))
	e.report(name+"_commits_per_workflow", median(transactions), "commits", "  transactions of the whole server that wrote, a run")
	e.report(name+"_wal_bytes_per_workflow", median(wal), "B", "  WAL, a run")
}

// profileLoad writes CPU profiles of our worker, and what its statements took, beside the profile that was asked for.
func (e *engineBench) profileLoad(ctx context.Context, s *site) error {
	if e.profile == "" {
		return nil
	}
	for _, n := range []int{1, 500} {
		kind := fmt.Sprintf("w1_%d", n)
		if err := e.resetStatements(ctx, s); err != nil {
			return err
		}
		if _, err := e.load(ctx, s, n, e.profile+"."+kind); err != nil {
			return err
		}
		if err := e.writeStatements(ctx, s, kind); err != nil {
			return err
		}
	}
	return nil
}
