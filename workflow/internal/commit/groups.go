package commit

import (
	"context"
	"fmt"

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
	kindWait
	kindWaitEvent
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
	seen map[string]bool // starts: ids created
	done map[store.Place]bool
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
		g.seen = map[string]bool{}
		s.StartRuns(batch, asks[store.Start](g.ops), func(id string) { g.seen[id] = true })
	case kindAppend:
		g.done = map[store.Place]bool{}
		s.AppendHistory(batch, asks[store.Append](g.ops), func(place store.Place) { g.done[place] = true })
	case kindFail:
		g.done = map[store.Place]bool{}
		s.FailRuns(batch, asks[store.Fail](g.ops), func(place store.Place) { g.done[place] = true })
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

// complete answers, after the commit, what the statement itself could not: whether a start found an earlier run, and
// whether an append that was refused had been carried out by this owner before a reply was lost.
func (g *opGroup) complete(ctx context.Context, s *store.Store, conn *pgx.Conn) error {
	switch g.kind {
	case kindStart:
		return g.completeStart(ctx, s, conn)
	case kindAppend, kindFail:
		return g.completeAppend(ctx, s, conn)
	default:
		return nil
	}
}

// Started is what became of a start.
type Started struct {
	Created bool
	Run     store.Run // the run of that id, unless this call created it
}

func (g *opGroup) completeStart(ctx context.Context, s *store.Store, conn *pgx.Conn) error {
	var missing []string
	pending := map[string][]*operation{}
	for _, op := range g.ops {
		id := op.ask.(store.Start).ID //nolint:forcetypeassert // the kind decides the type
		if g.seen[id] {
			op.result = Started{Created: true}
			delete(g.seen, id) // the first of two starts of one id made it
			continue
		}
		missing = append(missing, id)
		pending[id] = append(pending[id], op)
	}
	if len(missing) == 0 {
		return nil
	}
	found, err := s.FindRuns(ctx, conn, missing)
	if err != nil {
		return err
	}
	for _, run := range found {
		for _, op := range pending[run.ID] {
			op.result = Started{Run: run}
		}
		delete(pending, run.ID)
	}
	for id, ops := range pending {
		for _, op := range ops {
			op.err = fmt.Errorf("start run %q: the id was taken, but its run is gone: start it again", id)
		}
	}
	return nil
}

func (g *opGroup) completeAppend(ctx context.Context, s *store.Store, conn *pgx.Conn) error {
	var missing []*operation
	for _, op := range g.ops {
		ask := op.record()
		if !g.done[store.Place{ID: ask.ID, Position: ask.Position}] {
			op.err = ErrFenced
			missing = append(missing, op)
		}
	}
	if len(missing) == 0 {
		return nil
	}
	own, err := s.OwnRecords(ctx, conn, records(missing))
	if err != nil {
		return err
	}
	for _, ord := range own {
		missing[ord].err = nil
	}
	return nil
}

// record returns the row of history that the operation writes.
func (op *operation) record() store.Append {
	if fail, ok := op.ask.(store.Fail); ok {
		return store.Append{Fence: fail.Fence, Position: fail.Position}
	}
	return op.ask.(store.Append) //nolint:forcetypeassert // the kind decides the type
}

func records(ops []*operation) []store.Append {
	rows := make([]store.Append, len(ops))
	for i, op := range ops {
		rows[i] = op.record()
	}
	return rows
}
