package workflow

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// EraseOption sets what Erase erases.
type EraseOption func(*eraseOptions)

type eraseOptions struct {
	formerRuns bool
}

// WithFormerRuns has Erase also erase the runs that this one continues, back to the first of its line or to where [Config.Retention]
// has deleted them. Their data is usually in the input of the run that continues them, and the other way round.
func WithFormerRuns() EraseOption {
	return func(o *eraseOptions) { o.formerRuns = true }
}

// erasePage is how many runs of a line are erased together.
const erasePage = 500

// Erase removes what a run that has ended has left of the application's data: its input, its output or its error, the reason of its
// cancellation, its trace context, its history with failed attempts and interruptions, and the unread messages that were sent to it
// or that it has sent. Its row stays with its id, workflow, status, times, priority and the ids of the runs that it continues and has continued
// as; RunInfo.ErasedAt and ListedRun.ErasedAt tell when it was erased. From then on Result returns ErrErased, Retry ErrNotRetryable, and a start with
// its id ErrIDConflict, because nothing is left to compare the input with. A message that the run has sent and that its receiver has
// not taken when Erase comes is never received.
//
// Only this run is erased unless [WithFormerRuns] is given. A run that has continued as new can be erased while the one that it continued as lives;
// what was sent to their line stays for that one.
//
// What is not the run's by the tables stays: messages that others have received from it, which are in their histories, events of
// [Engine.SendEvent], rows of the outbox, keys of [WithSendKey]. docs/security.md says where to look, and what backups, the log of the
// database, log lines, spans and brokers keep.
//
// It may be called again, and has to be after an error: it continues where it stopped. When it has returned nil the time of the first success stays, and another
// call removes what has come since. It deletes at most a thousand rows of a kind with one statement, and looks at all unread
// messages, five thousand at a time, so it takes time in proportion to those. It returns ErrNotFound if there is no such run,
// ErrNotEnded if it is in a state that it may leave (a stuck run: end it with [Engine.Cancel]), ErrNotStarted and ErrClosed.
func (e *Engine) Erase(ctx context.Context, id string, options ...EraseOption) error {
	if err := e.checkFor(id); err != nil {
		return fmt.Errorf("erase run %.255q: %w", id, err)
	}
	var chosen eraseOptions
	for _, option := range options {
		if option != nil {
			option(&chosen)
		}
	}
	limit := 1
	if chosen.formerRuns {
		limit = erasePage
	}
	for next := id; next != ""; {
		former, err := e.erasePage(ctx, next, limit)
		switch {
		case errors.Is(err, ErrNotFound) && next != id:
			return nil // retention has deleted the rest of the line
		case err != nil:
			return fmt.Errorf("erase run %.255q: %w", id, outward(err))
		case !chosen.formerRuns:
			return nil
		}
		next = former
	}
	return nil
}

// erasePage erases the run id and those before it in its line, up to limit, and returns the one before them.
func (e *Engine) erasePage(ctx context.Context, id string, limit int) (former string, err error) {
	found := new([]store.Erasable)
	if err := e.patiently(ctx, func(b *pgx.Batch) { e.store.FindErasable(b, id, limit, found) }); err != nil {
		return "", err
	}
	if len(*found) == 0 {
		return "", ErrNotFound
	}
	var runs, receivers []string
	for _, run := range *found {
		if !run.Ended {
			return "", fmt.Errorf("%w: it is %s", ErrNotEnded, run.Status)
		}
		if runs = append(runs, run.ID); run.Status == string(StatusContinued) {
			continue // what was sent to it is for its line
		}
		if receivers = append(receivers, run.ID); run.Line != "" {
			receivers = append(receivers, run.Line)
		}
	}
	if err := e.eraseRuns(ctx, runs, receivers); err != nil {
		return "", err
	}
	return (*found)[len(*found)-1].ContinuedFrom, nil
}

// eraseRuns erases runs: what they have recorded, their messages, and last, as the proof that nothing is left, what is in their rows.
func (e *Engine) eraseRuns(ctx context.Context, runs, receivers []string) error {
	for deleted := -1; deleted != 0; {
		did := new(store.ErasedRecords)
		if err := e.patiently(ctx, func(b *pgx.Batch) { e.store.EraseRecords(b, runs, did) }); err != nil {
			return err
		}
		if slices.Contains(did.Living, runs[0]) {
			return fmt.Errorf("%w: it has just been retried", ErrNotEnded)
		}
		deleted = did.Deleted
	}
	page := &store.MailPage{More: true}
	for page.More {
		next := new(store.MailPage)
		if err := e.patiently(ctx, func(b *pgx.Batch) {
			*next = store.MailPage{Last: page.Last}
			e.store.EraseMail(b, runs, receivers, next)
		}); err != nil {
			return err
		}
		page = next
	}
	return e.patiently(ctx, func(b *pgx.Batch) { e.store.EraseRuns(b, runs) })
}

// patiently has statements carried out that may be repeated, and tries for as long as another transaction, a transactional activity say,
// holds one of their rows.
func (e *Engine) patiently(ctx context.Context, statements func(*pgx.Batch)) error {
	do := e.side.Do
	for wait := 20 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		_, err := commit.Await(ctx, func(then func(struct{}, error)) { do(true, statements, then) })
		if !errors.Is(err, commit.ErrLocked) {
			return e.explained(ctx, err)
		}
		do = e.side.DoApart // others do not wait for what holds it
		select {
		case <-ctx.Done():
			return fmt.Errorf("its row is held by a transaction that has not ended: %w", ctx.Err())
		case <-time.After(wait):
		}
	}
}
