package bus

import "time"

const (
	// rationShare is the part of the time that statements may take while there is always something to send: a tenth. What
	// one costs hardly depends on how much it sends, and on a small machine one every two milliseconds would take an eighth
	// of everybody's throughput.
	rationShare = 10
	// rationBurst is how many windows' worth of statements may be sent ahead of that.
	rationBurst = 2
	// longestPause is how many windows pass at most until a statement has earned its time.
	longestPause = 5
	// maxRespite is how many windows a slow server is left alone at most.
	maxRespite = 5
)

// ration says when the next statement may be sent: a window after the last at the earliest. After a time with little to
// send there is something saved up, and a burst is sent window by window. While there is much to send for long,
// statements get their share of the time, or longestPause passes, whichever is shorter.
type ration struct {
	window time.Duration
	saved  time.Duration // of the server's time; negative after a statement that took more
	began  time.Time     // the last statement
	ended  time.Time
}

func newRation(window time.Duration) *ration {
	return &ration{window: window, saved: rationBurst * window}
}

// next returns the time before which nothing is to be sent.
func (r *ration) next() time.Time {
	if r.began.IsZero() {
		return time.Time{}
	}
	took := r.ended.Sub(r.began)
	pause := max(r.window, took+min(took, maxRespite*r.window)) // a busy server gains more from a larger batch a little later
	if r.saved < 0 {
		pause = max(pause, min(-r.saved*rationShare, longestPause*r.window))
	}
	return r.began.Add(pause)
}

// spend accounts for a statement.
func (r *ration) spend(began, ended time.Time) {
	if !r.began.IsZero() {
		r.saved += began.Sub(r.began) / rationShare
	}
	r.saved = min(r.saved, rationBurst*r.window) - ended.Sub(began)
	r.saved = max(r.saved, -r.window) // a statement that took long is paid for by its own respite
	r.began, r.ended = began, ended
}
