package riverjobs

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/riverqueue/river"
)

const (
	// stopPatience is how long Stop lets running sweeps finish before it cancels them: they are idempotent, and the next
	// tick continues.
	stopPatience = 2 * time.Second

	// queuePatience bounds the removal of our queue from a host's client, which waits for a lock that the client holds
	// for as long as its own stop takes.
	queuePatience = 5 * time.Second
)

// Stop ends the ticks, waits for running sweeps (cancelling them after two seconds, or when ctx ends) and stops the own
// client, or takes our queue and periodic jobs out of the host's. It waits for every goroutine it started, bounded by
// ctx, and returns an error if they outlive it; it may then be called again. Stopping twice, or before Start, is fine.
func (j *Jobs) Stop(ctx context.Context) error {
	release, err := j.takeTurn(ctx)
	if err != nil {
		return fmt.Errorf("riverjobs: stop: %w", err)
	}
	defer release()
	if !j.beginStop() {
		return nil
	}
	j.removePeriodic()
	j.stopLoops()
	j.awaitIdle(ctx)

	if j.guest() {
		err = j.leaveQueue(ctx)
	} else {
		err = j.stopClient(ctx)
	}
	if err = errors.Join(err, j.awaitLoops(ctx)); err != nil {
		return err
	}
	j.floods.close()
	j.mu.Lock()
	defer j.mu.Unlock()
	j.state = stateStopped
	return nil
}

// takeTurn makes Start and Stop wait for each other.
func (j *Jobs) takeTurn(ctx context.Context) (release func(), err error) {
	release = func() { <-j.turn }
	select {
	case j.turn <- struct{}{}: // even if ctx has ended
		return release, nil
	default:
	}
	select {
	case j.turn <- struct{}{}:
		return release, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// beginStop reports whether there is anything to stop.
func (j *Jobs) beginStop() bool {
	j.mu.Lock()
	defer j.mu.Unlock()
	switch j.state {
	case stateNew:
		j.state = stateStopped
		j.cancelWork()
		return false
	case stateStopped:
		return false
	case stateRunning:
		j.state = stateStopping
		if j.working == 0 {
			close(j.idle)
		}
	case stateStopping: // an earlier Stop ran out of time
	}
	return true
}

func (j *Jobs) awaitIdle(ctx context.Context) {
	patience := time.NewTimer(stopPatience)
	defer patience.Stop()
	select {
	case <-j.idle:
	case <-patience.C:
	case <-ctx.Done():
	}
	j.cancelWork()
	select {
	case <-j.idle:
	case <-ctx.Done():
	}
}

func (j *Jobs) stopClient(ctx context.Context) error {
	if err := j.client.StopAndCancel(ctx); err != nil {
		return fmt.Errorf("riverjobs: stop the River client: %w", err)
	}
	return nil
}

// leaveQueue gives up after a while: what the host's client still fetches from our queue is handed back.
func (j *Jobs) leaveQueue(ctx context.Context) error {
	if !j.ownsQueue {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, queuePatience)
	defer cancel()
	removed := make(chan error, 1)
	go func() { removed <- j.client.Queues().Remove(ctx, Queue) }() // outlives us only as long as the host's own stop
	select {
	case err := <-removed:
		if err != nil && !errors.Is(err, &river.QueueNotFoundError{}) && ctx.Err() == nil {
			return fmt.Errorf("riverjobs: remove queue %q from Client: %w", Queue, err)
		}
		j.ownsQueue = err != nil
	case <-ctx.Done():
		j.logger.Warn("the River client is busy stopping, so our queue stays in it", slog.String("queue", Queue))
	}
	return nil
}

func (j *Jobs) awaitLoops(ctx context.Context) error {
	done := make(chan struct{})
	go func() { j.background.Wait(); close(done) }()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("riverjobs: stop: %w", context.Cause(ctx))
	}
}
