package riverjobs

import (
	"context"
	"log/slog"
	"time"

	"github.com/riverqueue/river"

	"github.com/romancy-go/romancy/internal/outage"
)

// watchInterval is several times the longest interval between two jobs of ours, the retention's minute, and River's
// longest time without a leader.
const watchInterval = 5 * time.Minute

// watch warns, once an absence, when no client of the cluster ticks our periodic jobs: the leader does not have them, or
// the host has cleared them. It asks the database only if nothing was seen in this process.
func (j *Jobs) watch(ctx context.Context, interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	warned := false
	unknown := outage.New(j.logger, "cannot find out whether sweeps are being enqueued", "it is known again whether sweeps are being enqueued")
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		ticking, err := j.ticking(ctx, interval)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			unknown.Failed(ctx, err)
			continue
		}
		unknown.Succeeded(ctx)
		switch {
		case ticking:
			warned = false
		case !warned:
			warned = true
			j.logger.WarnContext(ctx, "no River leader enqueues our sweeps, so they run only in each worker, every fallback interval: "+
				"add these jobs in every process whose River client can lead, and do not clear its periodic jobs",
				slog.String("queue", Queue), slog.Duration("for", interval))
		}
	}
}

func (j *Jobs) ticking(ctx context.Context, window time.Duration) (bool, error) {
	since := time.Now().Add(-window)
	if time.Unix(0, max(j.lastTick.Load(), j.lastWork.Load())).After(since) {
		return true, nil
	}
	ctx, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	newest, err := j.client.JobList(ctx, river.NewJobListParams().
		Kinds(kindNames()...).Queues(Queue).OrderBy(river.JobListOrderByID, river.SortOrderDesc).First(1))
	if err != nil {
		return false, err
	}
	return len(newest.Jobs) > 0 && newest.Jobs[0].CreatedAt.After(since), nil
}
