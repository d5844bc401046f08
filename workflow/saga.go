package workflow

import (
	"cmp"
	"context"
	"slices"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/journal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// compensation undoes an activity that succeeded.
type compensation struct {
	position int32 // of the activity
	name     string
	options  activityOptions
	undo     func(ctx context.Context) error
}

// registerCompensation notes how the step at position is undone, whose result is output. That is decoded when it is needed. It may not fit
// the code any more, which nobody has noticed who has not asked for it: then the compensation fails, lest the run end as if there were
// nothing to undo, and Retry attempts it again.
func (a *Activity[In, Out]) registerCompensation(r *run, position int32, in In, output []byte) {
	r.compensations = append(r.compensations, compensation{
		position: position, name: a.name, options: a.options,
		undo: func(ctx context.Context) error {
			var out Out
			if err := decodeResult(a.name, output, &out); err != nil {
				return Terminal(err)
			}
			return a.compensate(ctx, in, out)
		},
	})
}

// compensate undoes what the run has done, the last step first, and returns the failure to end it with. That the run is
// failing is recorded before the first compensation, so that it cannot complete normally any more.
func (r *run) compensate(cause error) failure {
	r.ground()
	failed := r.describeEnd(cause)
	undo := r.compensations
	r.compensations = nil
	if len(undo) == 0 {
		return failed
	}
	slices.SortFunc(undo, func(a, b compensation) int { return cmp.Compare(b.position, a.position) })
	r.compensating = true
	failed = r.recordFailing(failed)
	for _, done := range undo {
		options := done.options
		options.retry = options.undoing
		_, err := r.step(step{kind: journal.Compensation, name: done.name, options: options}, func(ctx context.Context) ([]byte, error) {
			return nil, done.undo(ctx)
		})
		if err != nil {
			r.log().Error("compensation failed for good", "activity", done.name, "error", r.engine.told(err))
			failed.CompensationErrors = append(failed.CompensationErrors, err.Error())
		}
	}
	return failed
}

// describeEnd describes what the run ends with because of cause, or because it is cancelled.
func (r *run) describeEnd(cause error) failure {
	if r.cancelled == nil {
		return describe(cause)
	}
	failed := describe(r.cancelled)
	failed.Message = r.cancelled.Reason // as of a run that had nothing to undo
	return failed
}

// recordFailing records why the run fails, or returns what an earlier execution has recorded.
func (r *run) recordFailing(failed failure) failure {
	position, record, recorded, err := r.issue(journal.Failing, "")
	if err != nil || recorded {
		return decodeFailure(record.Payload)
	}
	err = r.beginFailing(position, failed)
	if r.overtaken(err) {
		failed = r.describeEnd(r.cancelled)
		err = r.beginFailing(position, failed)
	}
	if err != nil {
		r.giveUp(err)
	}
	return failed
}

// beginFailing returns once it is durable that the run is failing, and why.
func (r *run) beginFailing(position int32, failed failure) error {
	_, err := commit.Await(context.Background(), func(then func(struct{}, error)) {
		r.engine.committer.Fail(r.stream, store.Fail{
			Fence: r.fence(), Position: position, Payload: failed.encode(), Cancelled: r.cancelled != nil,
		}, then)
	})
	if err == nil {
		r.pending = nil // carried out before, in the same stream
	}
	return err
}
