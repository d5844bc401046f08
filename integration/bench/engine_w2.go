package main

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// warmMessages are sent before those that count: statements get prepared, plans made.
const warmMessages = 10

// percentiles are those that are reported of latencies.
var percentiles = []struct {
	name string
	p    float64
}{{"p50", 0.50}, {"p99", 0.99}}

// latencies are the samples of one site, by round.
type latencies [][]time.Duration

func (l latencies) percentiles(p float64) []float64 {
	var all []float64
	for _, samples := range l {
		all = append(all, percentile(samples, p))
	}
	return all
}

// wakeUp is W2: from the return of a send in one process to the receiver's next line in another.
func (e *engineBench) wakeUp(ctx context.Context) (err error) {
	sites, err := e.openBoth(ctx)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, closeAll(ctx, sites)) }()
	measured, err := e.measureWakeUps(ctx, sites)
	if err != nil {
		return err
	}
	ours, theirs := measured[sites[0]], measured[sites[1]]
	for _, at := range percentiles {
		e.report("engine_w2_"+at.name, median(ours.percentiles(at.p)), "ms", "send committed to the next line, other process, "+at.name)
		e.report("engine_dbos_w2_"+at.name, median(theirs.percentiles(at.p)), "ms", "  DBOS")
		e.report("engine_w2_"+at.name+"_ratio_dbos", median(ratios(ours.percentiles(at.p), theirs.percentiles(at.p))), "x", "  against DBOS")
	}
	return e.writeStatements(ctx, sites[0], "w2")
}

func (e *engineBench) measureWakeUps(ctx context.Context, sites []*site) (map[*site]latencies, error) {
	messages := 400
	if e.quick {
		messages = 200
	}
	measured := map[*site]latencies{}
	for _, s := range sites {
		if err := s.startSender(ctx); err != nil {
			return nil, err
		}
	}
	return measured, takeTurns(e.rounds, sites, func(round int, s *site) error {
		samples, err := s.wakeUps(ctx, messages)
		if err != nil {
			return err
		}
		e.progressf("  %s, round %d: p50 %.2f ms, p99 %.2f ms", s.label, round+1, percentile(samples, 0.50), percentile(samples, 0.99))
		measured[s] = append(measured[s], samples)
		return nil
	})
}

// wakeUps has so many messages sent to one run. Both processes run on this machine and read one clock.
func (s *site) wakeUps(ctx context.Context, messages int) ([]time.Duration, error) {
	messages += warmMessages
	id, err := call[string](ctx, s.worker, "receiver", messages)
	if err != nil {
		return nil, err
	}
	sent, err := call[[]time.Time](ctx, s.sender, "send", sendOrder{To: id, Messages: messages})
	if err != nil {
		return nil, err
	}
	received, err := call[[]time.Time](ctx, s.worker, "arrivals", messages)
	if err != nil {
		return nil, err
	}
	if len(sent) != messages || len(received) != messages {
		return nil, fmt.Errorf("%d messages sent, %d received, want %d: %w", len(sent), len(received), messages, errNoSamples)
	}
	var samples []time.Duration
	for i := warmMessages; i < messages; i++ {
		// The receiver may go on before the sender has heard of its own commit.
		samples = append(samples, max(received[i].Sub(sent[i]), 0))
	}
	return samples, nil
}
