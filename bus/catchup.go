package bus

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

const (
	// pageTimeout bounds the reading of a page, the wait for a connection of the pool included.
	pageTimeout = 10 * time.Second
	// slowPage is a page that took too long for its size: the server had to sort all that is pending.
	slowPage = 50 * time.Millisecond
	// pageGrowth is how many times the batch size a page may grow to, while pages are slow or bring nothing new.
	pageGrowth = 64
	// maxHeard is how many notified payloads are remembered between two passes. Beyond it, what is still pending at the
	// next pass is repeated.
	maxHeard = 10_000
)

// pendingQueries names the query that reads the schema's view of each event.
var pendingQueries = map[Event]string{
	EventWorkflowResumable: "PendingWorkflowResumable",
	EventTimerExpired:      "PendingTimerExpired",
	EventChannelMessage:    "PendingChannelMessage",
	EventOutboxPending:     "PendingOutboxPending",
}

// catchUp reads what lost notifications would have said, and remembers what of it was delivered. The memory holds what is
// pending, and what was notified since the last pass up to maxHeard.
//
// Delivered is as good as acknowledged: a topic delivers what it has let out until it is acknowledged, and when the topic
// ends, its memory ends with it.
type catchUp struct {
	pool    *pgxpool.Pool
	event   Event
	query   string
	batch   int
	settled map[string]int64    // the version of each pending item that was delivered
	heard   map[string]struct{} // what notifications have said since the last pass, see announced
}

func newCatchUp(pool *pgxpool.Pool, queries sqlfile.Queries, event Event, batch int) *catchUp {
	return &catchUp{
		pool: pool, event: event, query: queries.Get(pendingQueries[event]), batch: batch,
		settled: map[string]int64{}, heard: map[string]struct{}{},
	}
}

// hear notes that a notification's payload was delivered, so that the next pass need not repeat it.
func (c *catchUp) hear(payload string) {
	if text := announced(c.event, payload, 0); text != "" && len(c.heard) < maxHeard {
		c.heard[text] = struct{}{}
	}
}

// delivered reports whether what item says was delivered, by an earlier pass or by a notification.
func (c *catchUp) delivered(item pendingItem) bool {
	if version, known := c.settled[item.item]; known && version == item.version {
		return true
	}
	if len(c.heard) == 0 {
		return false
	}
	_, known := c.heard[announced(c.event, item.payload, item.version)]
	return known
}

// announced returns the one form of a payload by which to recognise that a notification has said what a row says. It is
// empty if that cannot be known, because the payload leaves open which version of the row it speaks of: a run can become
// ready many times, and an event of the outbox is pending again after each failed attempt, though announced at its first.
func announced(event Event, payload string, version int64) string {
	switch event {
	case EventTimerExpired:
		if timer, err := decode[TimerRegistered]("", []byte(payload)); err == nil {
			timer.ExpiresAt = timer.ExpiresAt.Truncate(time.Microsecond) // which is all that the table keeps
			return Encode(timer)
		}
	case EventChannelMessage:
		if message, err := decode[ChannelMessage]("", []byte(payload)); err == nil && message.MessageID != 0 {
			return Encode(message)
		}
	case EventOutboxPending:
		if pending, err := decode[OutboxPending]("", []byte(payload)); err == nil && version == 0 {
			return Encode(pending)
		}
	case EventWorkflowResumable:
	}
	return ""
}

// pendingItem is a row of such a view.
type pendingItem struct {
	at      pgtype.Timestamptz // an infinite one is possible
	item    string
	version int64
	payload string
}

// pass delivers, in the view's order, everything pending that was not delivered before in the same version. No connection
// is held while deliver runs. If deliver reports false, the pass ends. Nothing may be heard during a pass.
func (c *catchUp) pass(ctx context.Context, deliver func(payload string) bool) error {
	last := pendingItem{at: pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}}
	settled := map[string]int64{}
	limit := c.batch
	for {
		began := time.Now()
		page, err := c.page(ctx, last, limit)
		if err != nil {
			return err
		}
		slow := time.Since(began) > slowPage
		fresh := false
		for _, item := range page {
			if !c.delivered(item) {
				fresh = true
				if !deliver(item.payload) {
					return ctx.Err()
				}
				c.settled[item.item] = item.version // also if the pass is cut short
			}
			settled[item.item] = item.version
		}
		if len(page) < limit {
			break
		}
		last = page[len(page)-1]
		if slow || !fresh {
			limit = min(2*limit, pageGrowth*c.batch)
		} else {
			limit = c.batch
		}
	}
	c.settled = settled // what is no longer pending is forgotten
	clear(c.heard)      // it was committed before the pass, which has therefore met all of it that is still pending
	return nil
}

// page reads up to limit rows after last.
func (c *catchUp) page(ctx context.Context, last pendingItem, limit int) ([]pendingItem, error) {
	ctx, cancel := context.WithTimeout(ctx, pageTimeout)
	defer cancel()
	rows, err := c.pool.Query(ctx, c.query, last.at, last.item, limit)
	if err != nil {
		return nil, fmt.Errorf("catch up: %w", refusal.Public(err))
	}
	page, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (pendingItem, error) {
		var item pendingItem
		err := row.Scan(&item.at, &item.item, &item.version, &item.payload)
		return item, err
	})
	if err != nil {
		return nil, fmt.Errorf("catch up: %w", refusal.Public(err))
	}
	return page, nil
}
