package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

const (
	// settling is how long a worker is left alone before its idleness is measured.
	settling = 5 * time.Second
	// idleWorkers are the workers of the larger cluster.
	idleWorkers = 5
)

// idle is W4: statements of workers that have nothing to do.
func (e *engineBench) idle(ctx context.Context) (err error) {
	sites, err := e.openBoth(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(ctx, sites)) }()
	cluster, err := e.open(ctx, systemRomancy)
	if err != nil {
		return err
	}
	sites = append(sites, cluster)
	for range idleWorkers - 1 {
		other, err := spawn(ctx, assignment{System: cluster.system, URL: cluster.url})
		if err != nil {
			return err
		}
		defer other.kill()
	}
	perSecond, err := e.measureIdle(ctx, sites)
	if err != nil {
		return err
	}
	one, theirs, five := perSecond[0], perSecond[1], perSecond[2]
	e.report("engine_w4_statements_per_second", one.ours, "/s", "statements of one idle worker, River's not counted")
	e.report("engine_w4_river_statements_per_second", one.river, "/s", "  River's beside it")
	e.report("engine_w4_5_workers_statements_per_second", five.ours/idleWorkers, "/s", "statements of 5 idle workers, each")
	e.report("engine_w4_5_workers_river_statements_per_second", five.river/idleWorkers, "/s", "  River's beside it, each")
	e.report("engine_dbos_w4_statements_per_second", theirs.ours+theirs.river, "/s", "  one idle worker of DBOS")
	return errors.Join(e.writeStatements(ctx, sites[0], "w4"), e.writeStatements(ctx, cluster, "w4_5_workers"))
}

// measureIdle counts the statements of all sites during the same time: they are told apart by database.
func (e *engineBench) measureIdle(ctx context.Context, sites []*site) ([]calls, error) {
	// Many of the intervals at which a worker does something: there are about a dozen statements in half a minute, and one
	// more or less at the ends is chance.
	window := 2 * time.Minute
	if e.quick {
		window = time.Minute
	}
	e.progressf("  idle for %s", settling+window)
	if err := pass(ctx, settling); err != nil {
		return nil, err
	}
	for _, s := range sites {
		if err := e.resetStatements(ctx, s); err != nil {
			return nil, err
		}
	}
	begun := time.Now()
	if err := pass(ctx, window); err != nil {
		return nil, err
	}
	perSecond := make([]calls, len(sites))
	took := time.Since(begun).Seconds()
	for i, s := range sites {
		counted, err := e.calls(ctx, s)
		if err != nil {
			return nil, err
		}
		if counted.ours == 0 {
			return nil, fmt.Errorf("no statement of %s within %s: %w", s.system, window, errNoSamples)
		}
		perSecond[i] = calls{ours: counted.ours / took, river: counted.river / took}
	}
	return perSecond, nil
}
