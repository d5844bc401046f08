package commit

import (
	"time"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// defaultHoldLimit is how long a record waits for what its run does next: longer than a workflow takes from one command to the
// next, and less than anybody notices.
const defaultHoldLimit = time.Millisecond

// AppendWithNext records a step together with what its stream does next, so that a workflow which ends or waits after a step
// takes one commit for both. It is queued by itself if Hurry is called before, or after a millisecond.
func (c *Committer) AppendWithNext(stream *Stream, ask store.Append, then func(struct{}, error)) {
	c.hold(prepare(&operation{kind: kindAppend, stream: stream, ask: ask, repeat: true}, then))
}

// Hurry queues what AppendWithNext holds of stream, if anything.
func (c *Committer) Hurry(stream *Stream) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.letGo(stream)
}

// hold is submit for what waits for the next operation of its stream.
func (c *Committer) hold(op *operation) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.letGo(op.stream)
	op.stream.held = op
	op.stream.limit = time.AfterFunc(c.holdLimit, func() { c.Hurry(op.stream) })
}

// letGo queues what stream holds. The caller holds the mutex.
func (c *Committer) letGo(stream *Stream) {
	if stream.held == nil {
		return
	}
	stream.limit.Stop()
	c.enqueue(stream.held)
	stream.held, stream.limit = nil, nil
}
