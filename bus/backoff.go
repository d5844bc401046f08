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
	misled   int // attempts that began because of a hint
	began    time.Time
}

// attempt notes that an attempt begins.
func (b *backoff) attempt() { b.began = time.Now() }

// healthy makes the next failure the first again. A counter that only grew would make the tenth lost connection of a
// month wait a minute.
func (b *backoff) healthy() { b.failures, b.misled = 0, 0 }

// next counts a failure and returns the wait before the next attempt.
func (b *backoff) next() time.Duration {
	step := min(backoffStep, b.limit)
	b.failures++
	if b.failures == 1 {
		// At once; but connections that die as soon as they are made must not become a busy loop.
		return max(0, step-time.Since(b.began))
	}
	return rand.N(doubled(step, b.failures-2, b.limit) + 1)
}

// hinted returns from when on a hint that the next attempt may succeed is good for one: a step after the last attempt
// began, doubling, because hints that mislead (the database answers others, but not us) must not undo the backoff.
func (b *backoff) hinted() time.Time {
	b.misled++
	return b.began.Add(doubled(min(backoffStep, b.limit), b.misled-1, b.limit))
}

// deafBackoff decides how long to wait before a connection that hears nothing is tried again. That is a matter of how
// things are set up, which seldom changes by itself.
type deafBackoff struct {
	first, limit time.Duration
	failures     int
	heard        bool // since the last failure
}

// next counts a failure and returns the wait before the next attempt. After a connection that did hear there is none: a
// new one may reach another server, or another pooler.
func (b *deafBackoff) next() time.Duration {
	if b.heard {
		b.heard, b.failures = false, 0
		return 0
	}
	ceiling := doubled(b.first, b.failures, b.limit)
	b.failures++
	return ceiling/2 + rand.N(ceiling/2+1)
}

// doubled returns d doubled n times, but no more than limit.
func doubled(d time.Duration, n int, limit time.Duration) time.Duration {
	for ; n > 0 && d < limit; n-- {
		d *= 2
	}
	return min(d, limit)
}

// pause waits for d, or for the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	if d <= 0 {
		return
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
