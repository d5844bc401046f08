// Package outage keeps a failure that lasts, or comes and goes, from flooding the log: one line when it begins, one a minute while it
// lasts, one when it is over. What begins again within a minute of the last such line has none of its own.
package outage

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"github.com/romancy-go/romancy/internal/refusal"
)

// between is the least time between two lines about the same outage.
const between = time.Minute

// Reporter reports on one thing that can fail. Its methods are safe for concurrent use.
type Reporter struct {
	logger *slog.Logger
	fails  string
	over   string

	mu       sync.Mutex
	began    time.Time // zero: all is well
	said     time.Time
	failures int  // since the last line, or since it began
	quiet    bool // it began so soon after the last line that it has none yet
	last     error
}

// New returns a reporter whose lines say fails while there is an outage, and over when it has ended. An empty over is no line: its
// owner says so itself.
func New(logger *slog.Logger, fails, over string) *Reporter {
	return &Reporter{logger: logger, fails: fails, over: over}
}

// Failed notes a failure. attrs are added to the line, if there is one. What is known to help is added as "remedy".
func (r *Reporter) Failed(ctx context.Context, err error, attrs ...any) {
	r.FailedAs(ctx, r.fails, err, attrs...)
}

// FailedAs is Failed with another text for the line, if there is one.
func (r *Reporter) FailedAs(ctx context.Context, fails string, err error, attrs ...any) {
	r.mu.Lock()
	defer r.mu.Unlock()
	now := time.Now()
	r.failures++
	r.last = err
	begins := r.began.IsZero()
	if begins {
		r.began = now
	}
	if !r.said.IsZero() && now.Sub(r.said) < between {
		r.quiet = r.quiet || begins // what comes and goes has no more lines than what lasts
		return
	}
	if r.failures > 1 {
		attrs = append(attrs, "since", r.began.UTC().Format(time.RFC3339), "failures", r.failures)
	}
	r.said, r.quiet = now, false
	if remedy := refusal.Remedy(err); remedy != "" {
		attrs = append(attrs, "remedy", remedy)
	}
	r.logger.WarnContext(ctx, fails, append([]any{"error", err}, attrs...)...)
}

// Succeeded notes that it works, and says so if it did not.
func (r *Reporter) Succeeded(ctx context.Context) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.began.IsZero() {
		return
	}
	if r.quiet {
		r.began, r.quiet, r.last = time.Time{}, false, nil // its failures are counted in the next line
		return
	}
	if r.over != "" {
		r.logger.InfoContext(ctx, r.over, "failures", r.failures, "lasted", time.Since(r.began).Round(time.Millisecond))
	}
	r.began, r.failures, r.last = time.Time{}, 0, nil
}

// Err returns the last failure of the outage that lasts; nil if there is none.
func (r *Reporter) Err() error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.last
}
