package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime/debug"
	"slices"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// step is an activity or a compensation as the run executes it.
type step struct {
	kind    journal.Kind
	name    string
	options activityOptions
}

type stepBody func(ctx context.Context) ([]byte, error)

// stepRecord is the payload of a step's row in history.
type stepRecord struct {
	Output   json.RawMessage `json:"output,omitempty"`
	Error    *failure        `json:"error,omitempty"`
	Attempts int             `json:"attempts,omitempty"` // when more than one, or failed
}

func (s stepRecord) encode() []byte {
	text, err := json.Marshal(s)
	if err != nil {
		panic(err) // Output is JSON that Marshal has made
	}
	return text
}

// step executes a step until it is recorded as done or failed, and returns what is recorded.
func (r *run) step(s step, body stepBody) ([]byte, error) {
	position, record, recorded := r.issue(s.kind, s.name)
	if recorded {
		var done stepRecord
		if err := json.Unmarshal(record.Payload, &done); err != nil {
			r.stuck(fmt.Errorf("history is damaged: position %d: %w", position, err))
		}
		return s.result(done)
	}
	for attempt := r.journal.Attempts(position) + 1; ; attempt++ {
		r.settle() // what came before is durable before this has effects
		r.checkpoint()
		done, err := r.attempt(s, position, attempt, body)
		if err == nil {
			return s.result(done)
		}
		if r.lost.Load() {
			r.exit()
		}
		if attempt >= s.options.retry.MaxAttempts || errors.As(err, new(terminalError)) {
			described := describe(err)
			done = stepRecord{Error: &described, Attempts: attempt}
			r.append(position, s.kind, s.name, done.encode())
			return s.result(done)
		}
		r.retry(s, position, attempt, err)
	}
}

func (s step) result(done stepRecord) ([]byte, error) {
	if done.Error == nil {
		return done.Output, nil
	}
	return nil, &ActivityError{
		Activity: s.name, Type: done.Error.Type, Message: done.Error.Message, Attempts: done.Attempts, Stack: done.Error.Stack,
	}
}

// attempt executes body once. A success is on its way into history when it returns, or there.
func (r *run) attempt(s step, position int32, attempt int, body stepBody) (stepRecord, error) {
	key := r.id + "/" + strconv.Itoa(int(position))
	ctx := context.WithValue(r.ctx, infoKey{}, Info{
		InstanceID: r.id, WorkflowName: r.definition.Name(), Activity: s.name, Position: position, Attempt: attempt, IdempotencyKey: key,
	})
	if s.options.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, s.options.timeout)
		defer cancel()
	}
	done := stepRecord{}
	if attempt > 1 {
		done.Attempts = attempt
	}
	if s.options.transaction {
		return r.attemptInTransaction(ctx, s, position, done, body)
	}
	output, err := callBody(ctx, body)
	if err != nil {
		return done, err
	}
	if r.lost.Load() {
		r.exit()
	}
	done.Output = output
	r.append(position, s.kind, s.name, done.encode())
	return done, nil
}

// callBody turns a panic of the activity into its failure.
func callBody(ctx context.Context, body stepBody) (output []byte, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &panicError{value: value, stack: string(debug.Stack())}
		}
	}()
	return body(ctx)
}

// attemptInTransaction executes body and records its result in one transaction of the pool's.
func (r *run) attemptInTransaction(ctx context.Context, s step, position int32, done stepRecord, body stepBody) (stepRecord, error) {
	select {
	case r.engine.txSlots <- struct{}{}:
		defer func() { <-r.engine.txSlots }()
	case <-ctx.Done():
		return done, ctx.Err()
	}
	tx, err := r.engine.config.Pool.Begin(ctx)
	if err != nil {
		if ctx.Err() == nil {
			r.giveUp(fmt.Errorf("begin the transaction of %s %q: %w", s.kind, s.name, err)) // not the activity's fault
		}
		return done, fmt.Errorf("begin a transaction: %w", err)
	}
	committed := false
	defer func() {
		if !committed {
			rollback(tx)
		}
	}()
	output, err := callBody(context.WithValue(ctx, txKey{}, tx), body)
	if err != nil {
		return done, err
	}
	done.Output = output
	owned, err := r.engine.store.AppendInTransaction(ctx, tx, store.Append{
		Fence: store.Fence{ID: r.id, Token: r.token}, Position: position, Kind: s.kind, Name: s.name, Payload: done.encode(),
	})
	switch {
	case store.IsUniqueViolation(err):
		rollback(tx)
		r.giveUp(err)
	case err != nil && ctx.Err() == nil && tx.Conn().IsClosed():
		r.giveUp(fmt.Errorf("record %s %q in its transaction: %w", s.kind, s.name, err)) // not the activity's fault
	case err != nil:
		return done, fmt.Errorf("record the step in its transaction: %w", err)
	case !owned:
		rollback(tx)
		r.giveUp(commit.ErrFenced)
	}
	// Detached: a commit that is cut off halfway may have happened, so only its own time limit ends it.
	commitCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if err := tx.Commit(commitCtx); err != nil {
		var refused *pgconn.PgError
		if errors.As(err, &refused) || errors.Is(err, pgx.ErrTxCommitRollback) {
			return done, fmt.Errorf("commit: %w", err) // a deferred constraint, say: the activity has failed
		}
		r.giveUp(fmt.Errorf("%w: %w", commit.ErrOutcomeUnknown, err))
	}
	committed = true
	return done, nil
}

// rollback has its own bounded context: the transaction's may be over.
func rollback(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // a failure closes the connection, which rolls back too
}

// retry records a failed attempt and waits, durably, until the next is due.
func (r *run) retry(s step, position int32, attempt int, cause error) {
	delay := s.options.retry.delay(attempt, rand.Float64())
	r.logger.Info("attempt failed, will be retried", "step", s.name, "position", position, "attempt", attempt, "delay", delay, "error", cause)
	ask := store.Retry{
		Fence: store.Fence{ID: r.id, Token: r.token}, Position: position, Attempt: attempt,
		Error: describe(cause).encode(), DelayMicros: delay.Microseconds(),
	}
	waited, err := commit.Await(context.Background(), func(then func(store.Waited, error)) {
		r.engine.committer.Retry(r.stream, ask, then)
	})
	if err != nil {
		r.giveUp(err)
	}
	r.engine.tellTimer(r.id, position, *waited.FiresAtMicros)
	wait := store.Wait{Fence: ask.Fence, AtMicros: waited.FiresAtMicros}
	if resumed := r.stayParked(wait, waited); resumed.outcome == claimed {
		r.wait(wait) // made ready by a sweep, perhaps too early by a little
	}
}

// compensation undoes an activity that succeeded.
type compensation struct {
	name    string
	options activityOptions
	undo    func(ctx context.Context) error
}

// compensate undoes what the failed run has done, last first, and returns the failure to end it with. That the run is
// failing is recorded before the first compensation, so that it cannot complete normally any more.
func (r *run) compensate(cause error) failure {
	failed := describe(cause)
	if len(r.compensations) == 0 {
		return failed
	}
	text, err := r.record(journal.Failing, "", func() ([]byte, error) { return failed.encode(), nil })
	if err != nil {
		return failed
	}
	failed = decodeFailure(text)
	undo := r.compensations
	r.compensations = nil
	for _, done := range slices.Backward(undo) {
		options := done.options
		if options.retry.MaxAttempts == 1 {
			options.retry = compensationRetry
		}
		_, err := r.step(step{kind: journal.Compensation, name: done.name, options: options}, func(ctx context.Context) ([]byte, error) {
			return nil, done.undo(ctx)
		})
		if err != nil {
			r.logger.Error("compensation failed for good", "activity", done.name, "error", err)
			failed.CompensationErrors = append(failed.CompensationErrors, err.Error())
		}
	}
	return failed
}
