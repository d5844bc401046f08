package commit

import (
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// kind orders the statements of a flush: what a run did before what it does next.
type kind int

const (
	kindStart kind = iota
	kindAppend
	kindFail
	kindDeliver
	kindSendEvent
	kindSubscribe
	kindRetry
	kindInterrupt
	kindWait
	kindWaitEvent
	kindTakeMore
	kindLook
	kindLookEvent
	kindWake
	kindWakeEvent
	kindFinish
	kindContinue
	kindRelease
	kindLetGo
	kindCustom
	kinds
)

// opGroup is the operations of one kind in a flush: one statement.
type opGroup struct {
	kind kind
	ops  []*operation
	sent []store.Sent

	events []store.SentEvent
}

func group(ops []*operation) []*opGroup {
	var byKind [kinds]*opGroup
	for _, op := range ops {
		if byKind[op.kind] == nil {
			byKind[op.kind] = &opGroup{kind: op.kind}
		}
		byKind[op.kind].ops = append(byKind[op.kind].ops, op)
	}
	var groups []*opGroup
	for _, g := range byKind {
		if g != nil {
			groups = append(groups, g)
		}
	}
	return groups
}

func asks[T any](ops []*operation) []T {
	rows := make([]T, len(ops))
	for i, op := range ops {
		rows[i] = op.ask.(T) //nolint:forcetypeassert // the kind decides the type
	}
	return rows
}

// fence answers every operation with ErrFenced until the statement says otherwise.
func (g *opGroup) fence() {
	for _, op := range g.ops {
		op.err = ErrFenced
	}
}

func (g *opGroup) grant(ord int, result any) {
	g.ops[ord].result, g.ops[ord].err = result, nil
}

func (g *opGroup) queue(s *store.Store, batch *pgx.Batch) {
	switch g.kind {
	case kindStart:
		g.queueStart(s, batch)
	case kindAppend, kindFail, kindInterrupt:
		g.queueRecords(s, batch)
	case kindDeliver:
		g.queueDeliver(s, batch)
	case kindSubscribe:
		g.fence()
		s.SubscribeRuns(batch, asks[store.Subscribe](g.ops), func(ord int, taken string) { g.grant(ord, taken) })
	case kindRetry:
		g.fence()
		s.RetrySteps(batch, asks[store.Retry](g.ops), func(ord int, parked store.Waited) { g.grant(ord, parked) })
	case kindWait:
		g.fence()
		s.WaitRuns(batch, asks[store.Wait](g.ops), func(ord int, waited store.Waited) { g.grant(ord, waited) })
	case kindTakeMore:
		g.queueTakeMore(s, batch)
	case kindLook:
		for i := range g.ops {
			g.grant(i, false)
		}
		s.LookForMail(batch, asks[store.Wake](g.ops), func(ord int) { g.grant(ord, true) })
	case kindWake:
		g.queueWake(s, batch)
	case kindSendEvent, kindWaitEvent, kindLookEvent, kindWakeEvent:
		g.queueEvents(s, batch)
	case kindFinish, kindContinue, kindRelease:
		g.queueEnd(s, batch)
	case kindLetGo:
		s.LetGo(batch, asks[store.Fence](g.ops))
	case kindCustom:
		for _, op := range g.ops {
			op.custom(batch)
		}
	case kinds:
	}
}

// queueStart leaves those that found their ids taken without a result.
func (g *opGroup) queueStart(s *store.Store, batch *pgx.Batch) {
	first := map[string]*operation{} // the first of two starts of one id makes it
	for _, op := range g.ops {
		if first[op.run] == nil {
			first[op.run] = op
		}
	}
	s.StartRuns(batch, asks[store.Start](g.ops), func(id string) { first[id].result = Started{Created: true} })
}

// queueRecords queues what makes one row for each operation, and says of which it has made one.
func (g *opGroup) queueRecords(s *store.Store, batch *pgx.Batch) {
	g.fence()
	byPlace := make(map[store.Place]int, len(g.ops))
	for i, op := range g.ops {
		byPlace[op.place()] = i
	}
	done := func(place store.Place) { g.grant(byPlace[place], nil) }
	switch g.kind {
	case kindAppend:
		s.AppendHistory(batch, asks[store.Append](g.ops), done)
	case kindFail:
		s.FailRuns(batch, asks[store.Fail](g.ops), done)
	default:
		s.InterruptRuns(batch, asks[store.Interrupt](g.ops), func(place store.Place, number int) { g.grant(byPlace[place], number) })
	}
}

// place returns the row that the operation makes.
func (op *operation) place() store.Place {
	switch ask := op.ask.(type) {
	case store.Append:
		return store.Place{ID: ask.ID, Position: ask.Position}
	case store.Fail:
		return store.Place{ID: ask.ID, Position: ask.Position}
	case store.Interrupt:
		return store.Place{ID: ask.ID, Position: ask.Position}
	default:
		return store.Place{}
	}
}

// queueTakeMore: each has a statement of its own, whose answer may be large.
func (g *opGroup) queueTakeMore(s *store.Store, batch *pgx.Batch) {
	g.fence()
	for i, ask := range asks[store.More](g.ops) {
		s.TakeMore(batch, ask, func(mail store.Mail) { g.grant(i, mail) })
	}
}

func (g *opGroup) queueDeliver(s *store.Store, batch *pgx.Batch) {
	g.fence()
	s.DeliverMessages(batch, asks[store.Deliver](g.ops),
		func(ord int, result store.Delivered) { g.grant(ord, result) },
		func(sent store.Sent) { g.sent = append(g.sent, sent) })
}

func (g *opGroup) queueWake(s *store.Store, batch *pgx.Batch) {
	g.fence()
	s.WakeRuns(batch, asks[store.Wake](g.ops), func(ord int, waited store.Waited) { g.grant(ord, waited) })
}

func (g *opGroup) queueEnd(s *store.Store, batch *pgx.Batch) {
	g.fence()
	switch g.kind {
	case kindFinish:
		rows := asks[store.Finish](g.ops)
		ends := places(rows, func(row store.Finish) string { return row.ID })
		s.FinishRuns(batch, rows, func(id string) { g.grant(ends[id], nil) })
	case kindContinue:
		rows := asks[store.Continue](g.ops)
		ends := places(rows, func(row store.Continue) string { return row.ID })
		s.ContinueRuns(batch, rows, func(id string) { g.grant(ends[id], nil) })
	default:
		rows := asks[store.Fence](g.ops)
		ends := places(rows, func(row store.Fence) string { return row.ID })
		s.ReleaseRuns(batch, rows, func(run store.Named) { g.grant(ends[run.ID], run) })
	}
}

// places returns the index of each row by its run.
func places[T any](rows []T, id func(T) string) map[string]int {
	byID := make(map[string]int, len(rows))
	for i, row := range rows {
		byID[id(row)] = i
	}
	return byID
}

// Started is what became of a start.
type Started struct {
	Created bool
	Run     store.Run // the run of that id, unless this call created it
}
