package workflow

import (
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/romancy-go/romancy/internal/bounds"
)

// MaxIDLength is the longest instance id, workflow, activity or channel name, in bytes. A notification carries two of them
// and must stay below PostgreSQL's limit of 8,000 bytes whatever characters they hold.
const MaxIDLength = 255

// Definition is a workflow of any type, as made by [Define].
type Definition interface {
	// Name returns the workflow's name.
	Name() string
	execute(ctx *Context, input []byte) ([]byte, error)
	checkInput(input []byte) error
	validate() error
	settings() workflowOptions
}

// Workflow is a durable function from In to Out. In and Out are encoded as JSON.
type Workflow[In, Out any] struct {
	name    string
	fn      func(ctx *Context, in In) (Out, error)
	options workflowOptions
}

type workflowOptions struct {
	maxRuns       int
	maxActivities int
	err           error
}

// DefineOption sets how the runs of a workflow are executed.
type DefineOption func(*workflowOptions)

// WithMaxConcurrentRuns bounds the runs of the workflow that execute in a worker at one time, parked ones not counted,
// within Config.MaxConcurrentRuns: n is 1 to 1,000,000. Others wait in the database, or parked, and do not hold up
// other workflows.
func WithMaxConcurrentRuns(n int) DefineOption {
	return func(o *workflowOptions) {
		o.maxRuns = n
		o.err = errors.Join(o.err, checkLimit("WithMaxConcurrentRuns", n))
	}
}

// WithMaxConcurrentActivities bounds the activities, of whatever kind, that a worker executes for runs of the workflow at
// one time, within Config.MaxConcurrentActivities: n is 1 to 1,000,000.
func WithMaxConcurrentActivities(n int) DefineOption {
	return func(o *workflowOptions) {
		o.maxActivities = n
		o.err = errors.Join(o.err, checkLimit("WithMaxConcurrentActivities", n))
	}
}

func checkLimit(option string, n int) error {
	return bounds.Number(option, n, 1, bounds.Most, ", or leave it out for no limit")
}

// Define makes a workflow of fn. name is stored with every run and must stay the same across deploys.
//
// fn must be deterministic: everything with a side effect, and everything that may differ from one execution to the next
// (time, random numbers, other systems), belongs into activities or one of the recorded values of this package. An engine
// runs fn again from the top after a crash or an eviction and answers its commands from history.
func Define[In, Out any](name string, fn func(ctx *Context, in In) (Out, error), options ...DefineOption) *Workflow[In, Out] {
	workflow := &Workflow[In, Out]{name: name, fn: fn}
	for _, option := range options {
		if option != nil {
			option(&workflow.options)
		}
	}
	return workflow
}

// Name returns the workflow's name.
func (w *Workflow[In, Out]) Name() string { return w.name }

func (w *Workflow[In, Out]) validate() error {
	errs := []error{checkName("workflow name", w.name)}
	if w.fn == nil {
		errs = append(errs, fmt.Errorf("workflow %.40q has no function: pass one to Define", w.name))
	}
	if w.options.err != nil {
		errs = append(errs, fmt.Errorf("workflow %.40q: %w", w.name, w.options.err))
	}
	return errors.Join(errs...)
}

func (w *Workflow[In, Out]) settings() workflowOptions { return w.options }

func (w *Workflow[In, Out]) execute(ctx *Context, input []byte) ([]byte, error) {
	var in In
	if err := decodeValue(input, &in); err != nil {
		ctx.run.misfit(0, fmt.Errorf("decode the input of workflow %q into %T: %w", w.name, in, err))
	}
	out, err := w.fn(ctx, in)
	if err != nil {
		return nil, err
	}
	return encodeValue("the output of workflow", w.name, out)
}

// checkInput reports why input, which comes from outside, is not one of this workflow.
func (w *Workflow[In, Out]) checkInput(input []byte) error {
	var in In
	if err := decodeValue(input, &in); err != nil {
		return fmt.Errorf("decode the input into %T: %w", in, err)
	}
	return nil
}

// checkText reports why value, which may be empty, cannot be stored; field says what it is.
func checkText(field, value string, most int) error {
	switch {
	case len(value) > most:
		return fmt.Errorf("%s %.40q... is %d bytes long: use at most %d", field, value, len(value), most)
	case !utf8.ValidString(value):
		return fmt.Errorf("%s %.40q is not valid UTF-8: use text that is", field, value)
	case strings.ContainsRune(value, 0):
		return fmt.Errorf("%s %.40q contains a NUL byte, which PostgreSQL cannot store: leave it out", field, value)
	}
	return nil
}

// checkUnshown is checkText for what may hold somebody's data, which its error does not show.
func checkUnshown(field, value string, most int) error {
	if checkText(field, value, most) == nil {
		return nil
	}
	return fmt.Errorf("%s, of %d bytes, must be valid UTF-8 without NUL bytes, and have %d bytes at most", field, len(value), most)
}

// checkName reports why value cannot be stored as an id or a name; field says what it is.
func checkName(field, value string) error {
	if value == "" {
		return fmt.Errorf("%s is empty: give 1 to %d bytes", field, MaxIDLength)
	}
	return checkText(field, value, MaxIDLength)
}
