package workflow

import (
	"context"
	"errors"
	"log/slog"
)

// Context is what a workflow function is given. It is a context.Context that ends when the run loses its worker or the
// worker shuts down; it must be used by the workflow's own goroutine only. Of two commands at a time one returns ErrConcurrentUse,
// and the run is stuck. Use Activity.Go for activities that execute side by side.
type Context struct {
	context.Context

	run *run
}

// errNoContext is what a command returns for a context that no workflow was given.
var errNoContext = errors.New("the workflow's context is nil: pass the one that its function was given")

// current returns the run; nil, of which enter knows, if there is no context.
func (c *Context) current() *run {
	if c == nil {
		return nil
	}
	return c.run
}

// InstanceID returns the id of this run.
func (c *Context) InstanceID() string { return c.run.id }

// WorkflowName returns the name of this run's workflow.
func (c *Context) WorkflowName() string { return c.run.definition.Name() }

// IsReplaying reports whether the next command is answered from history instead of being carried out.
func (c *Context) IsReplaying() bool { return c.run.journal.Replaying() }

// Logger returns the engine's logger with the run and its workflow as attributes. While history is replayed it discards,
// so that a line is logged once.
func (c *Context) Logger() *slog.Logger {
	if c.IsReplaying() {
		return slog.New(slog.DiscardHandler)
	}
	if c.run.logger == nil {
		c.run.logger = c.run.log()
	}
	return c.run.logger
}
