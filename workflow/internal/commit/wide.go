package commit

import (
	"context"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// A message that is published to more subscribers than one statement makes messages for is wide: it has a transaction of its own, in
// which as many statements follow each other as it takes. One such is under way at a time, and the others use the other lane.

// putOff reports whether nothing was done of op yet, because what it publishes has too many receivers for the flush.
func (op *operation) putOff() bool {
	delivered, _ := op.result.(store.Delivered)
	return op.err == nil && delivered.Later
}

// widen notes which of those that were put off do not fit any flush. The caller holds the mutex.
func widen(unfinished []*operation) {
	for _, op := range unfinished {
		if delivered, _ := op.result.(store.Delivered); delivered.Wide {
			op.wide = true
		}
	}
}

// aside reports whether op keeps none of those of no run from being taken meanwhile.
func (op *operation) aside() bool { return op.wide && op.run == "" }

// chooseWide removes the first wide operation from the queue that may be attempted. The caller holds the mutex.
func (c *Committer) chooseWide() []*operation {
	now := time.Now()
	passed := map[string]struct{}{} // runs of which an earlier operation comes first
	for i, op := range c.queue {
		_, busy := c.busy[op.run]
		_, waits := passed[op.run]
		if op.wide && !busy && !waits && c.wides.worth() && !c.caution.due(op).After(now) {
			c.queue = slices.Delete(c.queue, i, i+1)
			return []*operation{op}
		}
		if op.run != "" {
			passed[op.run] = struct{}{}
		}
	}
	return nil
}

// publish delivers what op publishes in a transaction, and stores its result in op.
func (l *lane) publish(ctx context.Context, op *operation) (*opGroup, error) {
	g := &opGroup{kind: op.kind, ops: []*operation{op}}
	op.result = nil
	g.fence()
	err := l.publishTo(ctx, g)
	if err != nil {
		return g, l.rollback(ctx, err)
	}
	return g, nil
}

func (l *lane) publishTo(ctx context.Context, g *opGroup) error {
	ask, statements := g.ops[0].ask.(store.Deliver), l.committer.config.Store //nolint:forcetypeassert // no other is wide
	sent := func(sent store.Sent) { g.sent = append(g.sent, sent) }
	batch := &pgx.Batch{}
	batch.Queue(l.begin())
	l.guard(g.ops, batch)
	err := l.inTime(ctx, func(ctx context.Context) error { return refusal.Public(l.conn.SendBatch(ctx, batch).Close()) })
	if err != nil {
		return err
	}
	var rest *store.Rest
	err = l.inTime(ctx, func(ctx context.Context) (err error) {
		rest, err = statements.DeliverFirst(ctx, l.conn, ask, func(result store.Delivered) { g.grant(0, result) }, sent)
		return err
	})
	for err == nil && rest != nil {
		err = l.inTime(ctx, func(ctx context.Context) (err error) {
			rest, err = statements.DeliverMore(ctx, l.conn, *rest, sent)
			return err
		})
	}
	if err != nil {
		return err
	}
	return l.inTime(ctx, func(ctx context.Context) error {
		_, err := l.conn.Exec(ctx, "commit")
		return refusal.Public(err)
	})
}

// inTime gives one statement the time of a flush.
func (l *lane) inTime(ctx context.Context, statement func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, l.committer.config.FlushTimeout)
	defer cancel()
	return statement(ctx)
}
