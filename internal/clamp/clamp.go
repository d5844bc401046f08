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
