// Package clamp converts what the database says of time into this process's types. An instant of PostgreSQL may be
// 294,000 years away, and a time.Duration ends after 292: a plain multiplication would make a deadline that never
// comes one that has passed.
package clamp

import (
	"math"
	"time"
)

// Micros returns n microseconds, or the longest duration there is of that sign. Its negative is a duration, too.
func Micros(n int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Microsecond)
	return time.Duration(min(max(n, -most), most)) * time.Microsecond
}

// Millis returns n milliseconds likewise.
func Millis(n float64) time.Duration { return Nanos(n * float64(time.Millisecond)) }

// Nanos returns so many nanoseconds likewise. What is not a number is none.
func Nanos(nanos float64) time.Duration {
	switch {
	case math.IsNaN(nanos):
		return 0
	case nanos >= math.MaxInt64:
		return math.MaxInt64
	case nanos <= -math.MaxInt64:
		return -math.MaxInt64
	default:
		return time.Duration(nanos)
	}
}

// The years that both PostgreSQL's timestamps and microseconds since 1970 in 64 bits hold, and their differences with
// now.
const (
	firstYear = -4000
	lastYear  = 290_000
)

// UnixMicro returns an instant in microseconds since 1970, no earlier than the year -4000 and no later than 290,000.
func UnixMicro(at time.Time) int64 {
	first, last := time.Date(firstYear, 1, 1, 0, 0, 0, 0, time.UTC), time.Date(lastYear, 1, 1, 0, 0, 0, 0, time.UTC)
	switch {
	case at.Before(first):
		return first.UnixMicro()
	case at.After(last):
		return last.UnixMicro()
	default:
		return at.UnixMicro()
	}
}

// Sum returns a + b, or the largest or least number there is.
func Sum(a, b int64) int64 {
	switch sum := a + b; {
	case a > 0 && b > 0 && sum < 0:
		return math.MaxInt64
	case a < 0 && b < 0 && sum >= 0:
		return math.MinInt64
	default:
		return sum
	}
}
