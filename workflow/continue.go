package workflow

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/google/uuid"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// ContinueAsNew returns an error that a workflow returns to go on as a new run of itself, with input in and an empty history: for
// workflows that go on for ever. The new run has an id of its own, which Get tells of the old one and the other way round; Result
// follows to the run that ends. Messages sent to the old run and not received, and those sent to its id later, reach the
// new one. Subscriptions and compensations end with the old run.
//
// An input that cannot be encoded, is larger than [MaxPayload], or is not one of this workflow's, gives another error: returned, it fails the run.
func ContinueAsNew[In any](ctx *Context, in In) error {
	if ctx.current() == nil {
		return fmt.Errorf("continue as new: %w", errNoContext)
	}
	input, err := encodeValue("the input of workflow", ctx.WorkflowName(), in)
	if err == nil {
		err = ctx.run.definition.checkInput(input)
	}
	if err != nil {
		return fmt.Errorf("continue workflow %q as new: %w", ctx.WorkflowName(), err)
	}
	return &continuation{input: input}
}

// continuation is the error that carries the input of the new run to the end of the old one.
type continuation struct{ input []byte }

func (*continuation) Error() string { return "the run continues as new: return this error" }

// continuedRecord is the output of a run that continued.
type continuedRecord struct {
	ContinuedAs string `json:"continued_as"`
}

func decodeContinued(output []byte) (id string) {
	var record continuedRecord
	if json.Unmarshal(output, &record) != nil {
		return ""
	}
	return record.ContinuedAs
}

// continueAs ends the run and creates the one that it goes on as. It reports false if the run has learnt instead that it is cancelled.
func (r *run) continueAs(next *continuation) (ended bool) {
	id, err := uuid.NewV7()
	if err != nil {
		r.giveUp(fmt.Errorf("make an id: %w", err))
	}
	ask := store.Continue{Fence: r.fence(), NextID: id.String(), Input: next.input}
	if _, err := commit.Await(context.Background(), func(then func(struct{}, error)) {
		r.engine.committer.Continue(r.stream, ask, then)
	}); err != nil {
		if r.overtaken(err) {
			return false
		}
		r.giveUp(err)
	}
	output, err := json.Marshal(continuedRecord{ContinuedAs: ask.NextID})
	if err != nil {
		panic(err) // a string always encodes
	}
	r.endSegment(string(StatusContinued), nil)
	r.engine.tellEnded(store.Run{ID: r.id, Workflow: r.definition.Name(), Status: string(StatusContinued), Output: output})
	r.engine.madeReady([]store.Named{{ID: ask.NextID, Workflow: r.definition.Name()}})
	r.engine.mailRuns.add(r.id) // what came after the statement had looked, and before its commit, has been announced for this id
	return true
}
