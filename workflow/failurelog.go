package workflow

import (
	"errors"
)

const (
	// failureLines is how many runs of one workflow that fail with one type of error, or are forgotten by the database, have a line
	// each in a minute.
	failureLines = 100

	stuckRemedy = "remove the cause, then call Engine.Retry: the run continues from its history"
)

// reportFailed logs that the run has failed, which this worker has just recorded. cause is what the workflow returned, failed
// what is recorded of it.
func (r *run) reportFailed(failed failure, cause error) {
	workflow := r.definition.Name()
	if !r.engine.reports.failures.Pass(workflow+"\x00"+failed.Type, "workflow", workflow, "type", failed.Type, "last", r.id) {
		return
	}
	attrs := []any{"error", r.engine.toldFailure(failed), "type", failed.Type}
	if step := failedStepOf(cause); step != nil {
		attrs = append(attrs, "step", step.Activity, "position", step.position, "attempts", step.Attempts)
	}
	if n := len(failed.CompensationErrors); n > 0 {
		attrs = append(attrs, "compensations_failed", n)
	}
	if failed.Stack != "" && !r.engine.config.HideErrorTexts { // it has arguments in it
		attrs = append(attrs, "stack", failed.Stack)
	}
	r.log().Warn("run failed", attrs...)
}

// failedStepOf returns the failure of an activity that a workflow has returned; nil if it has returned none, or an error that cannot
// be asked.
func failedStepOf(cause error) (step *ActivityError) {
	defer func() {
		if recover() != nil {
			step = nil
		}
	}()
	errors.As(cause, &step)
	return step
}

// at notes the position of the step whose failure err is.
func at(position int32, err error) error {
	if failed, ok := err.(*ActivityError); ok { //nolint:errorlint // as step returns it
		failed.position = position
	}
	return err
}
