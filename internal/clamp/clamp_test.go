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
