package commit

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// A connection that is lost may take an answer with it: what was asked for has happened, or has not, or will, while the server is
// still busy with it. An operation of a run is repeated then, and its own traces say that it need not be: its row of history, the
// state in which it has left the run. They are looked for before it is repeated, and once more if the repetition is refused
// because the run is not as it was.

// traces returns where op leaves traces, if it does.
func (op *operation) traces() store.Trace {
	switch ask := op.ask.(type) {
	case store.Append:
		return store.Trace{Fence: ask.Fence, Position: ask.Position}
	case store.Fail:
		return store.Trace{Fence: ask.Fence, Position: ask.Position}
	case store.Deliver:
		return store.Trace{Fence: ask.Fence, Position: ask.Position}
	case store.SendEvent:
		return store.Trace{Fence: ask.Fence, Position: ask.Position}
	case store.Subscribe:
		return store.Trace{Fence: ask.Fence, Position: ask.Position}
	case store.More:
		return store.Trace{Fence: ask.Fence, Position: ask.Position}
	case store.Retry:
		return store.Trace{Fence: ask.Fence, Position: ask.Position, Attempt: ask.Attempt}
	case store.Wait:
		return store.Trace{Fence: ask.Fence, Position: ask.Position, TimerPosition: ask.TimerPosition}
	case store.WaitEvent:
		return store.Trace{Fence: ask.Fence, Position: ask.Position, TimerPosition: ask.TimerPosition}
	case store.Finish:
		return store.Trace{Fence: ask.Fence}
	case store.Continue:
		return store.Trace{Fence: ask.Fence}
	default:
		return store.Trace{}
	}
}

// recognise answers op by the traces that it has left. It reports false if there are none.
func (op *operation) recognise(found store.Traces) bool {
	switch ask := op.ask.(type) {
	case store.Append, store.Fail:
		op.result = nil
		return found.Recorded
	case store.Deliver:
		receivers := 1
		if found.Record != nil { // it says that there was none
			receivers = 0
		}
		op.result = store.Delivered{Receivers: receivers}
		return found.Recorded
	case store.SendEvent:
		op.result = false
		return found.Recorded
	case store.Subscribe:
		var record struct {
			Taken string `json:"taken"`
		}
		op.result = ""
		if found.Recorded && json.Unmarshal(found.Record, &record) == nil {
			op.result = record.Taken
		}
		return found.Recorded
	case store.More:
		op.result = store.Mail{Messages: found.Record, Left: true} // perhaps
		return found.Recorded
	case store.Retry:
		return op.recogniseRetry(found)
	case store.Wait:
		again, done := op.recogniseWait(ask, found)
		op.ask = again
		return done
	case store.WaitEvent:
		again, done := op.recogniseWait(ask.Wait, found)
		ask.Wait = again
		op.ask = ask
		return done
	case store.Finish:
		op.result = nil
		return found.Status == ask.Status
	case store.Continue:
		var record struct {
			ContinuedAs string `json:"continued_as"`
		}
		op.result = nil
		return found.Output != nil && json.Unmarshal(found.Output, &record) == nil && record.ContinuedAs == ask.NextID
	default:
		return false
	}
}

func (op *operation) recogniseRetry(found store.Traces) bool {
	if found.NextAtMicros == nil {
		return false
	}
	remaining := *found.NextAtMicros - found.NowMicros
	retried := store.Waited{Outcome: store.Nothing, FiresAtMicros: found.NextAtMicros, RemainingMicros: &remaining}
	if isParked(found) {
		retried.Outcome = store.Parked
	}
	op.result = retried
	return isParked(found) || found.Status == "running"
}

// recogniseWait returns what is left to ask for if only the deadline was recorded.
func (op *operation) recogniseWait(ask store.Wait, found store.Traces) (again store.Wait, done bool) {
	if found.FiresAtMicros != nil {
		ask.TimerPosition, ask.TimerName, ask.DelayMicros, ask.AtMicros = 0, "", nil, found.FiresAtMicros
	}
	waited := store.Waited{FiresAtMicros: ask.AtMicros, NowMicros: found.NowMicros, Answered: found.Answered}
	if ask.AtMicros != nil {
		remaining := *ask.AtMicros - found.NowMicros
		waited.RemainingMicros = &remaining
	}
	var record struct {
		Timeout bool `json:"timeout"`
	}
	switch {
	case found.Recorded && json.Unmarshal(found.Record, &record) == nil && record.Timeout:
		waited.Outcome = store.Due
	case found.Recorded:
		waited.Outcome, waited.Message = store.GotMessage, found.Record
	case isParked(found):
		waited.Outcome = store.Parked
		if found.WakeAtMicros != nil {
			waited.RemainingMicros = found.RemainingMicros
		}
	default:
		return ask, false
	}
	op.result = waited
	return ask, true
}

// isParked reports whether the run has been parked, and may have been made ready since.
func isParked(found store.Traces) bool { return found.Status == "waiting" || found.Status == "ready" }

// recall answers those of ops that have been carried out although their answers were lost, and returns the others.
func (l *lane) recall(ctx context.Context, ops []*operation) (rest []*operation, err error) {
	var lost []*operation
	for _, op := range ops {
		if op.sent && op.traces().ID != "" {
			lost = append(lost, op)
		}
	}
	if len(lost) == 0 {
		return ops, nil
	}
	found, err := l.find(ctx, lost)
	if err != nil {
		return ops, err
	}
	for _, op := range ops {
		if traces, ok := found[op]; ok && op.recognise(traces) {
			l.recognised(op)
			continue
		}
		rest = append(rest, op)
	}
	return rest, nil
}

// recallOrFence follows operations that were refused because the run is not as they expect it, which may be their own doing.
func (l *lane) recallOrFence(ctx context.Context, ops []*operation) (unfinished []*operation) {
	if len(ops) == 0 {
		return nil
	}
	found, err := l.find(ctx, ops)
	for _, op := range ops {
		before := op.traces()
		switch {
		case err != nil:
			op.sent = true
			unfinished = append(unfinished, l.committer.keep(ctx, op, err)...)
		case op.recognise(found[op]):
			l.recognised(op)
		case op.traces() != before: // something of it was carried out, and the rest is to be
			unfinished = append(unfinished, op)
		default:
			op.err = ErrFenced
			l.committer.settle(op)
		}
	}
	return unfinished
}

func (l *lane) find(ctx context.Context, ops []*operation) (map[*operation]store.Traces, error) {
	if l.conn == nil {
		return nil, errors.New("the connection is lost")
	}
	ctx, cancel := context.WithTimeout(ctx, l.committer.config.FlushTimeout)
	defer cancel()
	asks := make([]store.Trace, len(ops))
	for i, op := range ops {
		asks[i] = op.traces()
	}
	traces, err := l.committer.config.Store.Recall(ctx, l.conn, asks)
	if err != nil {
		if l.conn.IsClosed() {
			l.hangUp()
		}
		return nil, fmt.Errorf("find out what became of a write whose answer was lost: %w", err)
	}
	found := make(map[*operation]store.Traces, len(ops))
	for i, op := range ops {
		found[op] = traces[i]
	}
	return found, nil
}

// recognised answers an operation that was carried out before. Whoever it was for has not been told yet.
func (l *lane) recognised(op *operation) {
	op.err = nil
	l.committer.hint(op)
	l.committer.settle(op)
}

// hint has those looked at whom a message or an event may be for that was sent, perhaps, by a statement without an answer. Under which
// number is not known.
func (c *Committer) hint(op *operation) {
	switch ask := op.ask.(type) {
	case store.Deliver:
		if c.config.Sent != nil {
			c.config.Sent([]store.Sent{{Channel: ask.Channel, Receiver: ask.Target, Direct: ask.Target != ""}})
		}
	case store.SendEvent:
		if c.config.SentEvents != nil {
			c.config.SentEvents([]store.SentEvent{{Type: ask.Type}})
		}
	}
}

// findStarted answers starts whose ids were taken with the runs that have them.
func (l *lane) findStarted(ctx context.Context, ops []*operation) (unfinished []*operation) {
	if len(ops) == 0 {
		return nil
	}
	ids := make([]string, len(ops))
	for i, op := range ops {
		ids[i] = op.run
	}
	found := map[string]store.Run{}
	runs, err := l.committer.config.Store.FindRuns(ctx, l.conn, ids)
	if err != nil && l.conn.IsClosed() {
		l.hangUp()
	}
	for _, run := range runs {
		found[run.ID] = run
	}
	for _, op := range ops {
		run, ok := found[op.run]
		switch {
		case err != nil && op.losses < maxLosses:
			op.losses++
			unfinished = append(unfinished, op) // to start it again finds it again
			continue
		case err != nil:
			op.err = err
		case ok:
			op.result = Started{Run: run}
		default:
			op.err = fmt.Errorf("start run %q: the id was taken, but its run is gone: start it again", op.run)
		}
		l.committer.settle(op)
	}
	return unfinished
}
