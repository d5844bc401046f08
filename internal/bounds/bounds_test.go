package bounds

import (
	"math"
	"testing"
	"time"
)

// Whatever is counted in microseconds becomes an instant that can be stored.
func TestWhatIsBeyondTheRangeIsItsEnd(t *testing.T) {
	t.Parallel()
	for _, at := range []time.Time{time.Unix(1<<60, 0), time.Date(10_000, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got := Instant(at); !got.Equal(Latest) || CheckInstant("x", at) == nil {
			t.Errorf("%s becomes %s, and is %v", at, got, CheckInstant("x", at))
		}
	}
	for _, at := range []time.Time{time.Unix(-1<<60, 0), time.Date(0, 1, 1, 0, 0, 0, 0, time.UTC)} {
		if got := Instant(at); !got.Equal(Earliest) || CheckInstant("x", at) == nil {
			t.Errorf("%s becomes %s, and is %v", at, got, CheckInstant("x", at))
		}
	}
	for _, micros := range []int64{math.MaxInt64, math.MinInt64, Latest.UnixMicro() + 1, Earliest.UnixMicro() - 1} {
		if got := time.UnixMicro(InstantMicros(micros)); got.Before(Earliest) || got.After(Latest) {
			t.Errorf("%d µs since 1970 are %s", micros, got)
		}
	}
	for _, end := range []time.Time{Earliest, Latest} {
		if got := int64(float64(end.UnixMicro())); got != end.UnixMicro() {
			t.Errorf("PostgreSQL, which counts in doubles, makes %d of %d", got, end.UnixMicro())
		}
	}
}

func TestNothingIsAlsoAnInterfaceThatHoldsNil(t *testing.T) {
	t.Parallel()
	for _, nothing := range []any{nil, (*int)(nil), error(nil), (func())(nil), map[string]int(nil), []int(nil), (chan int)(nil)} {
		if !Nothing(nothing) {
			t.Errorf("a %T is something", nothing)
		}
	}
	for _, something := range []any{0, "", struct{}{}, new(int), []int{}, func() {}} {
		if Nothing(something) {
			t.Errorf("a %T is nothing", something)
		}
	}
}
