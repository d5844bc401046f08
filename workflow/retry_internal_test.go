package workflow

import (
	"errors"
	"math"
	"testing"
	"time"
)

// The waits between attempts grow by the multiplier up to the longest, and jitter only shortens them.
func TestDelayGrowsUpToTheLongestAndIsShortenedByJitter(t *testing.T) {
	t.Parallel()
	policy := RetryPolicy{InitialInterval: time.Second, MaxInterval: time.Minute, Multiplier: 3}
	constant, jittered, full := policy, policy, policy
	constant.Multiplier = 1
	jittered.Jitter = 0.5
	full.Jitter = 1
	endless := RetryPolicy{InitialInterval: time.Second, MaxInterval: math.MaxInt64, Multiplier: 10}
	endlessJittered := endless
	endlessJittered.Jitter = 0.5
	for _, test := range []struct {
		name   string
		policy RetryPolicy
		failed int
		random float64
		want   time.Duration
	}{
		{"first", policy, 1, 0, time.Second},
		{"second", policy, 2, 0, 3 * time.Second},
		{"fourth", policy, 4, 0, 27 * time.Second},
		{"longest", policy, 5, 0, time.Minute}, // instead of 81 s
		{"after thousands", policy, 10_000, 0, time.Minute},
		{"without jitter chance has no say", policy, 2, 0.9, 3 * time.Second},
		{"constant", constant, 7, 0, time.Second},
		{"jitter, none drawn", jittered, 2, 0, 3 * time.Second},
		{"jitter, half drawn", jittered, 2, 0.5, 2250 * time.Millisecond},
		{"jitter of the longest", jittered, 5, 0.5, 45 * time.Second},
		{"full jitter", full, 2, 0.75, 750 * time.Millisecond},
		{"default, first", RetryPolicy{}.withDefaults(), 1, 0.5, 100 * time.Millisecond},
		{"default, third", RetryPolicy{}.withDefaults(), 3, 0.5, 400 * time.Millisecond},
		{"default, longest", RetryPolicy{}.withDefaults(), 100, 0.5, time.Minute},
		{"longest there is", endless, 100, 0, math.MaxInt64},
		{"longest there is, half drawn", endlessJittered, 100, 0.5, 3 << 61},
		{"first and longest there is", RetryPolicy{InitialInterval: math.MaxInt64, MaxInterval: math.MaxInt64, Multiplier: 2}, 1, 0, math.MaxInt64},
		{"default, longest is not below the first", RetryPolicy{InitialInterval: time.Hour}.withDefaults(), 2, 0, time.Hour},
	} {
		if got := test.policy.delay(test.failed, test.random); got != test.want {
			t.Errorf("%s: the wait after %d failed attempts is %s, want %s", test.name, test.failed, got, test.want)
		}
	}
}

// A policy that cannot be meant is refused, with the field, its value and what to use.
func TestRetryPolicySaysWhatIsWrongWithIt(t *testing.T) {
	t.Parallel()
	for want, policy := range map[string]RetryPolicy{
		"": {},
		"RetryPolicy.MaxAttempts is -1: use 1 to 2147483647, or 0 for the default":                                                                  {MaxAttempts: -1},
		"RetryPolicy.InitialInterval is -1s and RetryPolicy.MaxInterval 1m0s: use positive durations, the second no shorter, or 0 for the defaults": {InitialInterval: -time.Second},
		"RetryPolicy.InitialInterval is 2s and RetryPolicy.MaxInterval 1s: use positive durations, the second no shorter, or 0 for the defaults":    {InitialInterval: 2 * time.Second, MaxInterval: time.Second},
		"RetryPolicy.Multiplier is 0.5: use 1 to 1e+06, or 0 for the default":                                                                       {Multiplier: 0.5},
		"RetryPolicy.Multiplier is NaN: use 1 to 1e+06, or 0 for the default":                                                                       {Multiplier: math.NaN()},
		"RetryPolicy.Jitter is -0.1: use 0 to 1":                                                                                                    {Jitter: -0.1},
		"RetryPolicy.Jitter is 1.5: use 0 to 1":                                                                                                     {Jitter: 1.5},
		"RetryPolicy.Jitter is NaN: use 0 to 1":                                                                                                     {Jitter: math.NaN()},
		"RetryPolicy.MaxElapsed is -1s: use a positive duration, or 0 for no limit":                                                                 {MaxElapsed: -time.Second},
		"RetryPolicy.NonRetryable contains nil: list the errors that end the step":                                                                  {NonRetryable: []error{errors.New("final"), nil}},
		"RetryPolicy.MaxAttempts is -2: use 1 to 2147483647, or 0 for the default\nRetryPolicy.Jitter is 2: use 0 to 1":                             {MaxAttempts: -2, Jitter: 2},
	} {
		var got string
		if err := policy.withDefaults().validate(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%+v: got %q, want %q", policy, got, want)
		}
	}
}
