package riverjobs

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/riverqueue/river"
	"github.com/riverqueue/river/rivertype"

	"github.com/romancy-go/romancy/internal/outage"
)

// watchInterval is several times the longest interval between two jobs of ours, the retention's minute, and River's
// longest time without a leader.
const watchInterval = 5 * time.Minute

// What watch warns of.
const (
	nobodyLeads = "no River leader enqueues our sweeps, so they run only in each worker, every fallback interval: " +
		"add these jobs in every process whose River client can lead, and do not clear its periodic jobs"
	nobodyWorks = "no River client works on our sweeps, so they run only in each worker, every fallback interval, and nothing is removed " +
		"that is kept for a limited time: resume the queue if it is paused; whoever may connect to the database can have paused it"
)

// watch warns, once an absence, when no client of the cluster ticks our periodic jobs (the leader does not have them, or the host
// has cleared them), and when none works on them: River believes whoever tells it that a queue is paused. It asks the database
// only if nothing was seen in this process.
func (j *Jobs) watch(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	warned := ""
	unknown := outage.New(j.logger, "cannot find out whether sweeps are being enqueued", "it is known again whether sweeps are being enqueued")
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		absent, err := j.absence(ctx, interval)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			unknown.Failed(ctx, err)
			continue
		}
		unknown.Succeeded(ctx)
		if absent != "" && absent != warned {
			j.logger.WarnContext(ctx, absent, slog.String("queue", Queue), slog.Duration("for", interval))
		}
		warned = absent
	}
}

// absence returns what to warn of, "" if there is nothing.
func (j *Jobs) absence(ctx context.Context, window time.Duration) (string, error) {
	since := time.Now().Add(-window)
	if time.Unix(0, j.lastWork.Load()).After(since) {
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	waiting, err := j.client.JobList(ctx, ofOurs(slices.Collect(maps.Keys(j.sweeps)), river.SortOrderAsc).States(rivertype.JobStateAvailable))
	switch {
	case err != nil:
		return "", err
	case len(waiting.Jobs) > 0 && waiting.Jobs[0].CreatedAt.Before(since):
		return nobodyWorks, nil
	case time.Unix(0, j.lastTick.Load()).After(since):
		return "", nil
	}
	newest, err := j.client.JobList(ctx, ofOurs(kindNames(), river.SortOrderDesc))
	if err != nil || len(newest.Jobs) > 0 && newest.Jobs[0].CreatedAt.After(since) {
		return "", err
	}
	return nobodyLeads, nil
}

// ofOurs asks for the first of our jobs.
func ofOurs(kinds []string, order river.SortOrder) *river.JobListParams {
	return river.NewJobListParams().Kinds(kinds...).Queues(Queue).OrderBy(river.JobListOrderByID, order).First(1)
}
