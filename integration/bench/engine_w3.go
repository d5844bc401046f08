package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// othersAsleep is how many runs sleep for days while timers are measured.
const othersAsleep = 10_000

var timerSpans = []struct {
	name  string
	sleep time.Duration
}{{"500ms", 500 * time.Millisecond}, {"2s", 2 * time.Second}}

// timers is W3: how late runs go on after sleeping, while many others sleep.
func (e *engineBench) timers(ctx context.Context) (err error) {
	sites, err := e.openBoth(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(ctx, sites)) }()
	measured, err := e.measureTimers(ctx, sites)
	if err != nil {
		return err
	}
	ours, theirs := measured[sites[0]], measured[sites[1]]
	for _, span := range timerSpans {
		for _, at := range percentiles {
			late, lateDBOS := ours[span.name].percentiles(at.p), theirs[span.name].percentiles(at.p)
			what := fmt.Sprintf("%s timers late, %d others asleep, %s", span.name, othersAsleep, at.name)
			e.report("engine_w3_"+span.name+"_"+at.name, median(late), "ms", what)
			e.report("engine_dbos_w3_"+span.name+"_"+at.name, median(lateDBOS), "ms", "  DBOS")
		}
	}
	return e.writeStatements(ctx, sites[0], "w3")
}

// measureTimers returns samples by site and span.
func (e *engineBench) measureTimers(ctx context.Context, sites []*site) (map[*site]map[string]latencies, error) {
	measured := map[*site]map[string]latencies{}
	for _, s := range sites {
		measured[s] = map[string]latencies{}
		begun := time.Now()
		if _, err := call[nothing](ctx, s.worker, "sleepers", othersAsleep); err != nil {
			return nil, err
		}
		e.progressf("  %s: %d asleep after %s", s.label, othersAsleep, time.Since(begun).Round(time.Millisecond))
	}
	runs := 400
	if e.quick {
		runs = 200
	}
	return measured, takeTurns(e.rounds, sites, func(round int, s *site) error {
		for _, span := range timerSpans {
			late, err := call[[]time.Duration](ctx, s.worker, "timers", timersOrder{Runs: runs, Sleep: span.sleep, Every: 10 * time.Millisecond})
			if err != nil {
				return err
			}
			e.progressf("  %s, round %d, %s: p50 %.2f ms, p99 %.2f ms", s.label, round+1, span.name, percentile(late, 0.50), percentile(late, 0.99))
			measured[s][span.name] = append(measured[s][span.name], late)
		}
		return nil
	})
}
