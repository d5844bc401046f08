package workflow

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strconv"
	"time"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// step is an activity or a compensation as the run executes it.
type step struct {
	kind    journal.Kind
	name    string
	options activityOptions
	begin   func() error  // called before each attempt; nil: nothing is
	input   func() string // its digest; nil: it has none
	digest  string        // of the input, of a step that is not recorded yet
	inDoubt bool          // an attempt of which no failure is recorded may have had its effect, and will have had it if all others fail
}

type stepBody func(ctx context.Context) ([]byte, error)

// stepRecord is the payload of a step's row in history.
type stepRecord struct {
	Output   json.RawMessage `json:"output,omitempty"`
	Error    *failure        `json:"error,omitempty"`
	Attempts int             `json:"attempts,omitempty"` // when more than one, or failed
	Input    string          `json:"in,omitempty"`       // its digest; former versions recorded none
}

// encode is what encoding/json makes of s. The record of a step that was done at its first attempt, as almost all are, is put
// together by hand: Output is the encoder's own work, and would be read once more.
func (s stepRecord) encode() []byte {
	switch {
	case s.Error != nil:
		return encodeWords(s)
	case s.Attempts != 0 || len(s.Output) == 0:
		return mustEncode(s)
	}
	const output, in, end = `{"output":`, `,"in":"`, `"}`
	text := make([]byte, 0, len(output)+len(s.Output)+len(in)+len(s.Input)+len(end))
	text = append(append(text, output...), s.Output...)
	if s.Input != "" {
		text = append(append(append(text, in...), s.Input...), '"')
	}
	return append(text, '}')
}

// step executes a step until it is recorded as done or failed, and returns what is recorded.
func (r *run) step(s step, body stepBody) ([]byte, error) {
	next := r.journal.Issue
	if s.kind == journal.Compensation {
		next = r.journal.Launch // Retry forgets one that failed, whatever was undone after it
	}
	if s.input != nil && !r.journal.Replaying() {
		s.digest = s.input() // before its position is taken: it is code of the user's, and before that can change its input
	}
	position, record, recorded, err := r.take(next, s.kind, s.name)
	if err != nil {
		return nil, err
	}
	if recorded {
		done := r.decodeStep(position, record)
		r.checkRecordedInput(s, position, done.Input)
		return s.result(done)
	}
	r.checkNewInput(s, position)
	ctx := r.work
	if r.compensating {
		ctx = r.lifetime()
	}
	failed := newFailures(r.journal.Attempts(position))
	failed.input = s.digest
	attempting := false
	defer func() {
		if attempting && !r.exiting {
			if value := recover(); value != nil {
				panic(value) // not the body's, see callBody
			}
			r.leave(s, position, &failed)
		}
	}()
	for {
		r.settle() // what came before is durable before this has effects
		r.checkpoint()
		attempting = true
		done, err := r.executeUntilKept(ctx, s, position, failed.count+1, body)
		attempting = false
		interrupted := asInterruption(err)
		switch {
		case err != nil && r.left.Load():
			r.exit() // it ended because a shutdown did: that is no failure
		case errors.Is(err, errDraining):
			r.checkpoint() // hands the run over
		case interrupted != nil:
			r.giveUp(interrupted.err)
		case r.lost.Load() && !done.recorded:
			r.exit()
		case err == nil:
			if !done.recorded {
				r.append(position, s.kind, s.name, done.encode())
			}
			return s.result(done.stepRecord)
		default:
			if err := r.fail(s, position, &failed, err); err != nil {
				return nil, err
			}
		}
	}
}

// fail records a failed attempt. It returns what the workflow is to be told if that was the last, and otherwise nil when the
// next is due.
func (r *run) fail(s step, position int32, failed *failures, err error) error {
	switch {
	case r.asked.Load() != nil && !r.compensating:
		return r.recordCancelled(position)
	case failed.add(s.options.retry, err):
		final := failed.record(err)
		r.append(position, s.kind, s.name, final.encode())
		_, err := s.result(final)
		return err
	case r.retry(s, position, failed.count, err):
		return r.recordCancelled(position)
	}
	return nil
}

// leave is called while the goroutine ends because the body of a step has ended it, which nothing can stop. The attempt has
// failed, and is recorded; then the run is executed again from history.
func (r *run) leave(s step, position int32, failed *failures) {
	if !r.lost.Load() {
		_ = r.fail(s, position, failed, errGoexit) // the next execution tells the workflow
	}
	r.depart()
}

// depart hands the run over while its goroutine ends, which nothing can stop.
func (r *run) depart() {
	if !r.lost.Load() {
		r.settle()
		r.stopWork()
		r.awaitSilence() // what executes beside it is not to be executed by two at a time
		r.handOver()
	}
	r.exit()
}

func (r *run) decodeStep(position int32, record journal.Record) stepRecord {
	done, err := decodeStepRecord(position, record.Payload)
	if err != nil {
		r.stuck(err)
	}
	return done
}

func decodeStepRecord(position int32, payload []byte) (done stepRecord, err error) {
	if err := json.Unmarshal(payload, &done); err != nil {
		return done, fmt.Errorf("history is damaged: position %d: %w", position, refusal.Decoding(err))
	}
	return done, nil
}

// failures counts the failed attempts of a step.
type failures struct {
	count int
	since time.Time // when the first failed
	input string    // the digest of what the step was given
}

func newFailures(past journal.Attempts) failures {
	return failures{count: past.Failed, since: time.Now().Add(-micros(past.Since))}
}

func micros(n int64) time.Duration { return bounds.Micros(n) }

// add counts a failed attempt and reports whether it was the last.
func (f *failures) add(policy RetryPolicy, err error) (final bool) {
	if f.count++; f.count == 1 {
		f.since = time.Now()
	}
	return f.count >= policy.MaxAttempts || !policy.retries(err) ||
		policy.MaxElapsed > 0 && time.Since(f.since) >= policy.MaxElapsed
}

// record returns the final failure as it is recorded.
func (f *failures) record(err error) stepRecord {
	described := describe(err)
	return stepRecord{Error: &described, Attempts: f.count, Input: f.input}
}

func (s step) result(done stepRecord) ([]byte, error) {
	if done.Error == nil {
		return done.Output, nil
	}
	return nil, &ActivityError{
		Activity: s.name, Type: done.Error.Type, Message: done.Error.Message, Details: done.Error.Details,
		Attempts: done.Attempts, Stack: done.Error.Stack,
	}
}

// attempted is what a successful attempt leaves to be recorded, or has recorded in its transaction.
type attempted struct {
	stepRecord

	recorded bool
}

// try executes body once. Its error is the activity's, or an *interruption. It may be called by any goroutine of the run.
func (r *run) try(ctx context.Context, s step, position int32, attempt int, body stepBody) (attempted, error) {
	key := r.id + "/" + strconv.Itoa(int(position))
	ctx = context.WithValue(ctx, infoKey{}, Info{
		InstanceID: r.id, WorkflowName: r.definition.Name(), Activity: s.name, Position: position, Attempt: attempt, IdempotencyKey: key,
	})
	done := attempted{stepRecord: stepRecord{Input: s.digest}}
	if attempt > 1 {
		done.Attempts = attempt
	}
	if s.options.transaction {
		return r.attemptInTransaction(ctx, s, position, done, body)
	}
	ctx, cancel := s.limited(ctx)
	defer cancel()
	output, err := callBody(ctx, s, body)
	done.Output = output
	return done, err
}

// limited returns the context of an attempt's body, whose time begins now.
func (s step) limited(ctx context.Context) (context.Context, context.CancelFunc) {
	if s.options.timeout <= 0 {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, s.options.timeout)
}

// callBody turns a panic of the activity into its failure. If the activity ends its goroutine it does not return: whoever the
// goroutine belongs to notices.
func callBody(ctx context.Context, s step, body stepBody) (output []byte, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = newPanicError("", value)
		}
	}()
	output, err = body(ctx)
	return output, checked(err, s.options.retry.NonRetryable...)
}

// retry records a failed attempt and waits, durably, until the next is due. It reports true if the run is cancelled instead.
func (r *run) retry(s step, position int32, attempt int, cause error) (cancelled bool) {
	ask := r.newRetry(s, position, attempt, cause)
	ask.Stay = r.air.busy() // await parks the run, if nothing is under way, after it has called back what only waits
	waited, err := commit.Await(context.Background(), func(then func(store.Waited, error)) {
		r.engine.committer.Retry(r.stream, ask, then)
	})
	if err != nil {
		r.giveUp(err)
	}
	wait := store.Wait{Fence: ask.Fence, AtMicros: waited.FiresAtMicros}
	switch waited.Outcome {
	case store.Cancelled:
		r.learnCancelled()
		return true
	case store.Parked:
		r.engine.tellTimer(r.id, position, *waited.FiresAtMicros)
		if resumed := r.stayParked(wait, waited, nil); resumed.outcome == store.Due {
			return false
		}
		// Made ready by a sweep, perhaps too early by a little.
	default:
		r.engine.tellTimer(r.id, position, *waited.FiresAtMicros)
	}
	outcome, _ := r.await(&wait, nil, nil)
	return outcome == store.Cancelled
}

func (r *run) newRetry(s step, position int32, attempt int, cause error) store.Retry {
	delay := s.options.retry.delay(attempt, rand.Float64())
	r.log().Info("attempt failed, will be retried", "step", s.name, "position", position, "attempt", attempt, "delay", delay, "error", r.engine.told(cause))
	return store.Retry{
		Fence: r.fence(), Position: position, Attempt: attempt,
		Error:       attemptFailure{failure: describe(cause), Kind: s.kind, Step: s.name, InDoubt: s.inDoubt}.encode(),
		DelayMicros: delay.Microseconds(), Heeds: !r.compensating,
	}
}
