package bus

import (
	"context"
	"math/rand/v2"
	"time"
)

// backoffStep is the first wait of a backoff, and the least time between two attempts.
const backoffStep = 100 * time.Millisecond

// backoff decides how long to wait before the next attempt: not at all before the first retry, then up to 100 ms,
// doubling, with full jitter, so that the processes that lost the same server do not come back together.
type backoff struct {
	limit    time.Duration
	failures int
	began    time.Time
}

// attempt notes that an attempt begins.
func (b *backoff) attempt() { b.began = time.Now() }

// healthy makes the next failure the first again. A counter that only grew would make the tenth lost connection of a
// month wait a minute.
func (b *backoff) healthy() { b.failures = 0 }

// next counts a failure and returns the wait before the next attempt.
func (b *backoff) next() time.Duration {
	step := min(backoffStep, b.limit)
	b.failures++
	if b.failures == 1 {
		// At once; but connections that die as soon as they are made must not become a busy loop.
		return max(0, step-time.Since(b.began))
	}
	ceiling := b.limit
	if doublings := b.failures - 2; doublings < 32 {
		ceiling = min(b.limit, step<<doublings)
	}
	return rand.N(ceiling + 1)
}

// pause waits for d and reports whether ctx was still alive then.
func pause(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
