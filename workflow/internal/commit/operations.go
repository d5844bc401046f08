package commit

import (
	"context"
	"fmt"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Every method queues one operation and returns at once. then is called once with its outcome, from a goroutine of the
// committer's: it must not block. [Await] turns any of them into a blocking call.

// Start creates a run, or finds the one that has its id.
func (c *Committer) Start(ask store.Start, then func(Started, error)) {
	submit(c, &operation{kind: kindStart, ask: ask, repeat: true}, then)
}

// Append records a step.
func (c *Committer) Append(stream *Stream, ask store.Append, then func(struct{}, error)) {
	submit(c, &operation{kind: kindAppend, stream: stream, ask: ask, repeat: true}, then)
}

// Deliver sends a message, for a run (with its stream) or from outside (stream nil). Sent receives the messages of the
// whole flush, once. A message with a key may be sent again: it is not there twice.
func (c *Committer) Deliver(stream *Stream, ask store.Deliver, then func(store.Delivered, error)) {
	submit(c, &operation{kind: kindDeliver, stream: stream, ask: ask, repeat: ask.Key != "" && ask.Position == 0}, then)
}

// Subscribe subscribes or unsubscribes a run; the result is the mode in which the channel is in use, if that is another.
func (c *Committer) Subscribe(stream *Stream, ask store.Subscribe, then func(string, error)) {
	submit(c, &operation{kind: kindSubscribe, stream: stream, ask: ask}, then)
}

// Fail records that a run begins to undo what it has done.
func (c *Committer) Fail(stream *Stream, ask store.Fail, then func(struct{}, error)) {
	submit(c, &operation{kind: kindFail, stream: stream, ask: ask, repeat: true}, then)
}

// Retry records a failed attempt and parks the run until the next, unless it stays.
func (c *Committer) Retry(stream *Stream, ask store.Retry, then func(store.Waited, error)) {
	submit(c, &operation{kind: kindRetry, stream: stream, ask: ask}, then)
}

// Interrupt records that a step is executed again because the database has refused what it had done; the result is how often it
// has been by now.
func (c *Committer) Interrupt(ask store.Interrupt, then func(int, error)) {
	submit(c, &operation{kind: kindInterrupt, ask: ask}, then)
}

// TakeMore takes the messages that are there for a run.
func (c *Committer) TakeMore(stream *Stream, ask store.More, then func(store.Mail, error)) {
	submit(c, &operation{kind: kindTakeMore, stream: stream, ask: ask}, then)
}

// Wait lets a run take its message, pass its deadline, or park, unless it stays.
func (c *Committer) Wait(stream *Stream, ask store.Wait, then func(store.Waited, error)) {
	submit(c, &operation{kind: kindWait, stream: stream, ask: ask}, then)
}

// Look reports whether a parked run has mail.
func (c *Committer) Look(ask store.Wake, then func(bool, error)) {
	submit(c, &operation{kind: kindLook, ask: ask, repeat: true}, then)
}

// Wake lets a parked run go on under its worker if its message or deadline is there. ErrFenced: it is not parked under that
// token, somebody is busy with it, or that worker's lease has run out. then may be called before the outcome is committed; if it
// was told no error, committed follows and says whether it was, or ErrOutcomeUnknown.
func (c *Committer) Wake(ask store.Wake, then func(store.Waited, error), committed func(error)) {
	submit(c, &operation{kind: kindWake, ask: ask, committed: committed}, then)
}

// Finish ends a run.
func (c *Committer) Finish(stream *Stream, ask store.Finish, then func(struct{}, error)) {
	submit(c, &operation{kind: kindFinish, stream: stream, ask: ask}, then)
}

// Continue ends a run, which goes on as a new one.
func (c *Committer) Continue(stream *Stream, ask store.Continue, then func(struct{}, error)) {
	submit(c, &operation{kind: kindContinue, stream: stream, ask: ask}, then)
}

// Release makes an owned run ready for anyone.
func (c *Committer) Release(ask store.Fence, then func(store.Named, error)) {
	submit(c, &operation{kind: kindRelease, ask: ask, repeat: true}, then)
}

// LetGo notes that a parked run is not in this worker's memory any more.
func (c *Committer) LetGo(ask store.Fence, then func(struct{}, error)) {
	submit(c, &operation{kind: kindLetGo, ask: ask, repeat: true}, then)
}

// Do adds statements of the caller's to a flush. repeat: they may be sent again although they may have been committed. They
// come in no order with the operations of runs that are under way.
func (c *Committer) Do(repeat bool, statements func(*pgx.Batch), then func(struct{}, error)) {
	c.DoSized(0, repeat, statements, then)
}

// DoSized is Do for statements that bring so many bytes.
func (c *Committer) DoSized(bytes int, repeat bool, statements func(*pgx.Batch), then func(struct{}, error)) {
	submit(c, &operation{kind: kindCustom, custom: statements, repeat: repeat, bytes: bytes}, then)
}

// DoApart is Do for statements that are likely to wait for somebody's lock: they flush apart from what is not, and are answered
// with ErrLocked soon.
func (c *Committer) DoApart(repeat bool, statements func(*pgx.Batch), then func(struct{}, error)) {
	submit(c, &operation{kind: kindCustom, custom: statements, repeat: repeat, suspect: true}, then)
}

// StartApart is Start of a run whose id another transaction has held a moment ago.
func (c *Committer) StartApart(ask store.Start, then func(Started, error)) {
	submit(c, &operation{kind: kindStart, ask: ask, repeat: true, suspect: true}, then)
}

func submit[T any](c *Committer, op *operation, then func(T, error)) {
	op.answer = func(result any, err error) {
		value, _ := result.(T) // nil for an operation that failed, or has no result
		then(value, err)
	}
	c.submit(op)
}

// Await queues an operation and waits for its outcome, or for ctx: then the operation may still be carried out, and the error is
// ErrOutcomeUnknown as well.
func Await[T any](ctx context.Context, queue func(then func(T, error))) (T, error) {
	type outcome struct {
		value T
		err   error
	}
	answered := make(chan outcome, 1)
	queue(func(value T, err error) { answered <- outcome{value, err} })
	select {
	case got := <-answered:
		return got.value, got.err
	case <-ctx.Done():
		var zero T
		return zero, fmt.Errorf("%w: %w", ErrOutcomeUnknown, ctx.Err())
	}
}
