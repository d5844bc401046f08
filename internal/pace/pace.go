// Package pace rations looks that read an index from its beginning.
//
// A queue in a table leaves a dead index entry behind for everything that has passed through it. As long as a snapshot
// older than those entries is open anywhere in the database, nothing may remove them, and whoever looks for the oldest live
// row reads them all, every time. So looks begin at a low-water mark, below which an earlier look has found nothing. What
// comes to light below the mark after all (a transaction that was open for long, a row given back) is found by full looks,
// which ignore the mark. They are as frequent as they are cheap: without an old snapshot every look is a full one, and with
// one they take a twentieth of the time, however much has piled up.
package pace

import (
	"sync"
	"time"
)

const (
	// cheap is what a full look may cost without being rationed.
	cheap = 2 * time.Millisecond
	// share is how many times as long as a full look took the next one is put off.
	share = 20
)

// Pace says when a full look is due. Its zero value allows one at once. It is safe for concurrent use.
type Pace struct {
	mu   sync.Mutex
	next time.Time
	gap  time.Duration // after the last full look
}

// Begin reports whether the look that begins now is to be a full one. Others that begin before [Pace.Took] tells what it
// cost are not, if the last one was dear.
func (p *Pace) Begin(now time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now.Before(p.next) {
		return false
	}
	p.next = now.Add(p.gap)
	return true
}

// Took says what a full look that has just ended, successfully or not, has cost the server.
func (p *Pace) Took(now time.Time, cost time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.gap = 0
	if cost > cheap {
		p.gap = share * cost
	}
	p.next = now.Add(p.gap)
}

// Next returns when the next full look is due. After a look that was not full and found nothing, there should be another
// then.
func (p *Pace) Next() time.Time {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.next
}
