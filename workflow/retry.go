package workflow

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/romancy-go/romancy/internal/bounds"
)

// RetryPolicy says when a failed activity is attempted again. Its state is stored: attempts are counted across crashes.
type RetryPolicy struct {
	// MaxAttempts is how often the activity is attempted in all, at most 2,147,483,647. Default 10.
	MaxAttempts int
	// InitialInterval is the wait before the second attempt, at most MaxInterval. Default 100 ms.
	InitialInterval time.Duration
	// MaxInterval is the longest wait between two attempts, however long it would be by Multiplier: any positive
	// duration. Default 1 minute, or InitialInterval if that is longer.
	MaxInterval time.Duration
	// Multiplier is the factor from one wait to the next, 1 to 1,000,000. Default 2.
	Multiplier float64
	// Jitter is the share of a wait, 0 to 1, by which it is shortened at random. Default 0.
	Jitter float64
	// MaxElapsed: an attempt that fails this long after the first one failed is the last. Default 0: no limit.
	MaxElapsed time.Duration
	// NonRetryable are errors that end the step at once: an attempt fails for good if errors.Is finds one of them in its
	// error. For errors with a type give an *Error of that type. See also Terminal.
	NonRetryable []error
}

// once is the policy of an activity without WithRetry.
var once = RetryPolicy{MaxAttempts: 1}

// compensationRetry is the policy of a compensation whose activity has none: undoing is worth more patience than doing.
var compensationRetry = RetryPolicy{MaxAttempts: 10}.withDefaults()

func (p RetryPolicy) withDefaults() RetryPolicy {
	if p.MaxAttempts == 0 {
		p.MaxAttempts = 10
	}
	if p.InitialInterval == 0 {
		p.InitialInterval = 100 * time.Millisecond
	}
	if p.MaxInterval == 0 {
		p.MaxInterval = max(time.Minute, p.InitialInterval)
	}
	if p.Multiplier == 0 {
		p.Multiplier = 2
	}
	return p
}

func (p RetryPolicy) validate() error {
	var errs []error
	errs = append(errs, bounds.Number("RetryPolicy.MaxAttempts", p.MaxAttempts, 1, bounds.MostAttempts, orDefault))
	if p.InitialInterval < 0 || p.MaxInterval < p.InitialInterval {
		errs = append(errs, fmt.Errorf("RetryPolicy.InitialInterval is %s and RetryPolicy.MaxInterval %s: use positive durations, the second no shorter, "+
			"or 0 for the defaults", p.InitialInterval, p.MaxInterval))
	}
	errs = append(errs,
		bounds.Number("RetryPolicy.Multiplier", p.Multiplier, 1, bounds.Most, orDefault),
		bounds.Number("RetryPolicy.Jitter", p.Jitter, 0, 1, ""))
	if p.MaxElapsed < 0 {
		errs = append(errs, fmt.Errorf("RetryPolicy.MaxElapsed is %s: use a positive duration, or 0 for no limit", p.MaxElapsed))
	}
	if slices.Contains(p.NonRetryable, nil) {
		errs = append(errs, errors.New("RetryPolicy.NonRetryable contains nil: list the errors that end the step"))
	}
	return errors.Join(errs...)
}

// retries reports whether an attempt that failed with err may be followed by another.
func (p RetryPolicy) retries(err error) bool {
	return !errors.As(err, new(terminalError)) &&
		!slices.ContainsFunc(p.NonRetryable, func(final error) bool { return errors.Is(err, final) })
}

// delay returns the wait after the given number of failed attempts; random is in [0, 1).
func (p RetryPolicy) delay(failed int, random float64) time.Duration {
	wait := float64(p.InitialInterval) * math.Pow(p.Multiplier, float64(failed-1))
	wait = min(wait, float64(p.MaxInterval)) * (1 - p.Jitter*random)
	if wait < float64(p.MaxInterval) {
		return time.Duration(wait)
	}
	return p.MaxInterval // the longest there is, rounded to a float, is none
}
