package commit

import (
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// SendEvent keeps an event, for a run (with its stream) or from outside (stream nil). SentEvents receives the events of the
// whole flush, once. held: nothing was done yet, because another transaction has sent the event and is open.
func (c *Committer) SendEvent(stream *Stream, ask store.SendEvent, then func(held bool, err error)) {
	// From outside it may be sent again: it is not there twice.
	submit(c, &operation{kind: kindSendEvent, stream: stream, ask: ask, repeat: ask.Position == 0}, then)
}

// WaitEvent lets a run take its event, pass its deadline, or park.
func (c *Committer) WaitEvent(stream *Stream, ask store.WaitEvent, then func(store.Waited, error)) {
	submit(c, &operation{kind: kindWaitEvent, stream: stream, ask: ask}, then)
}

// LookEvent reports whether there is an event for a parked run.
func (c *Committer) LookEvent(ask store.WakeEvent, then func(bool, error)) {
	submit(c, &operation{kind: kindLookEvent, ask: ask, repeat: true}, then)
}

// WakeEvent lets a parked run go on under worker if its event or deadline is there. Its errors and answers are those of Wake.
func (c *Committer) WakeEvent(ask store.WakeEvent, then func(store.Waited, error), committed func(error)) {
	submit(c, &operation{kind: kindWakeEvent, ask: ask, committed: committed}, then)
}

func (g *opGroup) queueEvents(s *store.Store, batch *pgx.Batch) {
	switch g.kind { //nolint:exhaustive // the others are not about events
	case kindSendEvent:
		g.fence()
		s.SendEvents(batch, asks[store.SendEvent](g.ops),
			func(ord int, held bool) { g.grant(ord, held) },
			func(sent store.SentEvent) { g.events = append(g.events, sent) })
	case kindWaitEvent:
		g.fence()
		s.WaitEvents(batch, asks[store.WaitEvent](g.ops), func(ord int, waited store.Waited) { g.grant(ord, waited) })
	case kindLookEvent:
		for i := range g.ops {
			g.grant(i, false)
		}
		s.LookForEvents(batch, asks[store.WakeEvent](g.ops), func(ord int) { g.grant(ord, true) })
	case kindWakeEvent:
		g.fence()
		s.WakeEvents(batch, asks[store.WakeEvent](g.ops), func(ord int, waited store.Waited) { g.grant(ord, waited) })
	}
}
