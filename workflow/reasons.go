package workflow

import (
	"slices"
	"time"
)

// reasons are why a parked run is to be polled for: what happened on a channel that it waits on, or, as the zero value, that it may
// be due. A reason is kept until a poll that began after it came has been answered, or until the run resumes, and so polls for
// itself. It knows no database and no goroutine.
type reasons struct {
	open    []listening // no poll has begun since they came
	polled  []listening // those that the poll under way is for
	polling bool
	failed  int // polls in a row that were not answered
}

const (
	// pollAgain is after how long a poll that was not answered is repeated, the first time; then later and later.
	pollAgain = 50 * time.Millisecond
	// pollAgainAtMost is the longest time between two such polls.
	pollAgainAtMost = time.Second
)

// add takes note of a reason. One that is like it, and that no poll has begun for, is the same.
func (s *reasons) add(on listening) {
	if !slices.Contains(s.open, on) {
		s.open = append(s.open, on)
	}
}

// waiting reports whether there are reasons that no poll has begun for.
func (s *reasons) waiting() bool { return len(s.open) > 0 }

// begin begins a poll and returns what it is to be of. A poll of any channel answers for the deadline as well.
func (s *reasons) begin() (on listening) {
	s.polling = true
	for i, reason := range s.open {
		if on = reason; on.channel != "" {
			s.open = slices.Delete(s.open, i, i+1)
			break
		}
	}
	s.polled = append(s.polled, on)
	if i := slices.Index(s.open, listening{}); i >= 0 {
		s.open = slices.Delete(s.open, i, i+1)
		if on.channel != "" {
			s.polled = append(s.polled, listening{})
		}
	}
	return on
}

// nothing ends a poll that has found nothing.
func (s *reasons) nothing() { s.polled, s.polling, s.failed = nil, false, 0 }

// fail ends a poll that was not answered, and returns after how long to try again.
func (s *reasons) fail() (wait time.Duration) {
	unanswered := s.polled
	s.polled, s.polling = nil, false
	for _, on := range unanswered {
		s.add(on)
	}
	wait = min(pollAgain<<min(s.failed, 10), pollAgainAtMost)
	s.failed++
	return wait
}

// end forgets all reasons, because the run resumes or is not in memory any more, and returns them.
func (s *reasons) end() (left []listening) {
	left = slices.Concat(s.polled, s.open)
	*s = reasons{}
	return left
}
