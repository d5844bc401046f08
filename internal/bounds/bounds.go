// Package bounds says which numbers, durations and instants options, fields and arguments take, in one place, so that
// each of them is refused with its name, its value and a remedy before anything that counts in smaller numbers sees
// it.
package bounds

import (
	"fmt"
	"math"
	"reflect"
	"time"
)

const (
	// Most is how many of a thing an option can allow, and how often something may happen: PostgreSQL counts in 32
	// bits, and Go reserves room for some of them.
	Most = 1_000_000
	// MostPerBatch is how many rows an option can have one statement handle.
	MostPerBatch = 10_000
	// MostAttempts is how often a step can be attempted: what the database counts attempts in.
	MostAttempts = math.MaxInt32

	// Shortest is the shortest duration of an option: the database counts in milliseconds.
	Shortest = time.Millisecond
	// Longest is the longest interval or limit of an option: multiplied by what it is multiplied by, it is a duration
	// still.
	Longest = 365 * 24 * time.Hour
	// LongestLease is the longest lease of a worker: the limits of its statements, of which PostgreSQL counts the
	// milliseconds in 32 bits, are made from it.
	LongestLease = 24 * time.Hour
)

// Number reports a value that is not between least and most, NaN included. instead, which may be empty, follows the
// remedy.
func Number[T int | int64 | float64 | time.Duration](name string, value, least, most T, instead string) error {
	if value >= least && value <= most {
		return nil
	}
	return fmt.Errorf("%s is %v: use %v to %v%s", name, value, least, most, instead)
}

// orDefault is the other remedy for a field of which zero means the default.
const orDefault = ", or 0 for the default"

// Count reports a number of things, or of times, that an option cannot allow. Zero has been replaced by the default
// before.
func Count(name string, n int) error { return Number(name, n, 1, Most, orDefault) }

// Batch reports a number of rows that one statement cannot be allowed to handle. Zero has been replaced by the default
// before.
func Batch(name string, n int) error { return Number(name, n, 1, MostPerBatch, orDefault) }

// Interval reports a duration that cannot be an interval, a limit or a lease. Zero has been replaced by the default
// before.
func Interval(name string, d time.Duration) error {
	return Number(name, d, Shortest, Longest, orDefault)
}

// Age reports a duration that cannot say for how long something is kept; zero says something else, which instead tells.
func Age(name string, d, least time.Duration, instead string) error {
	if d >= least || d == 0 {
		return nil
	}
	return fmt.Errorf("%s is %s: use at least %s, or 0 %s", name, d, least, instead)
}

// What an instant can be: PostgreSQL and JSON can express it, and so can 64 bits that count microseconds. A double,
// which PostgreSQL multiplies intervals by, has both exactly.
var (
	Earliest = time.Date(1, time.January, 1, 0, 0, 0, 0, time.UTC)
	Latest   = time.Date(9999, time.December, 31, 23, 59, 59, 0, time.UTC)
)

// Instant returns t, or the end of the range that it is beyond.
func Instant(t time.Time) time.Time {
	switch {
	case t.Before(Earliest):
		return Earliest
	case t.After(Latest):
		return Latest
	default:
		return t
	}
}

// InstantMicros is Instant for what is counted in microseconds since 1970.
func InstantMicros(micros int64) int64 {
	return min(max(micros, Earliest.UnixMicro()), Latest.UnixMicro())
}

// CheckInstant reports an instant that is beyond the range.
func CheckInstant(name string, t time.Time) error {
	if !t.Before(Earliest) && !t.After(Latest) {
		return nil
	}
	return fmt.Errorf("%s is in the year %d (%d s since 1970): use an instant from %s to %s", name, t.UTC().Year(), t.Unix(),
		Earliest.Format(time.RFC3339), Latest.Format(time.RFC3339))
}

// Nothing reports whether value is nil, or an interface that holds a nil pointer, function, map, slice or channel:
// what is called on it panics later, far from who has given it.
func Nothing(value any) bool {
	if value == nil {
		return true
	}
	switch held := reflect.ValueOf(value); held.Kind() {
	case reflect.Pointer, reflect.Func, reflect.Map, reflect.Slice, reflect.Chan, reflect.UnsafePointer:
		return held.IsNil()
	default:
		return false
	}
}
