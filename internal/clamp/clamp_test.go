package clamp_test

import (
	"math"
	"testing"
	"time"

	"github.com/romancy-go/romancy/internal/clamp"
)

func TestDurationsOfTheDatabaseKeepTheirSign(t *testing.T) {
	t.Parallel()
	year9999 := time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC).UnixMicro()
	const longest = 292 * 365 * 24 * time.Hour
	for _, test := range []struct {
		micros int64
		least  time.Duration
		most   time.Duration
	}{
		{0, 0, 0},
		{1, time.Microsecond, time.Microsecond},
		{-1, -time.Microsecond, -time.Microsecond},
		{longest.Microseconds(), longest, longest},
		{year9999, longest, math.MaxInt64},
		{-year9999, -math.MaxInt64, -longest},
		{math.MaxInt64, longest, math.MaxInt64},
		{math.MinInt64, -math.MaxInt64, -longest},
	} {
		if got := clamp.Micros(test.micros); got < test.least || got > test.most || -got > -test.least || -got < -test.most {
			t.Errorf("%d microseconds are %s, want between %s and %s", test.micros, got, test.least, test.most)
		}
		millis := float64(test.micros) / 1000
		if got := clamp.Millis(millis); got < test.least || got > test.most {
			t.Errorf("%g milliseconds are %s, want between %s and %s", millis, got, test.least, test.most)
		}
	}
	if got := clamp.Millis(math.Inf(1)); got != math.MaxInt64 {
		t.Errorf("infinitely many milliseconds are %s", got)
	}
	if got := clamp.Millis(math.NaN()); got != 0 {
		t.Errorf("no number of milliseconds is %s", got)
	}
}

func TestInstantsStayInTheYearsOfBoth(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		at   time.Time
		want int // the year
	}{
		{time.Time{}, 1},
		{time.Date(2026, 11, 28, 1, 2, 3, 4000, time.UTC), 2026},
		{time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC), 9999},
		{time.Date(289_999, 1, 1, 0, 0, 0, 0, time.UTC), 289_999},
		{time.Date(1_000_000, 1, 1, 0, 0, 0, 0, time.UTC), 290_000},
		{time.Date(-1_000_000, 1, 1, 0, 0, 0, 0, time.UTC), -4000},
	} {
		if got := time.UnixMicro(clamp.UnixMicro(test.at)).UTC(); got.Year() != test.want {
			t.Errorf("%s becomes %s", test.at, got)
		}
	}
}

func TestSumsDoNotTurnRound(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ a, b, want int64 }{
		{1, 2, 3},
		{-1, 1, 0},
		{math.MaxInt64, 1, math.MaxInt64},
		{math.MaxInt64, math.MaxInt64, math.MaxInt64},
		{math.MinInt64, -1, math.MinInt64},
		{math.MinInt64, math.MinInt64, math.MinInt64},
		{math.MaxInt64, math.MinInt64, -1},
	} {
		if got := clamp.Sum(test.a, test.b); got != test.want {
			t.Errorf("%d + %d is %d, want %d", test.a, test.b, got, test.want)
		}
	}
}
