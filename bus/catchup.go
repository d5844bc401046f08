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
)

// pendingQueries names the query that reads the schema's view of each event.
var pendingQueries = map[Event]string{
	EventWorkflowResumable: "PendingWorkflowResumable",
	EventTimerExpired:      "PendingTimerExpired",
	EventChannelMessage:    "PendingChannelMessage",
	EventOutboxPending:     "PendingOutboxPending",
}

// catchUp reads what lost notifications would have said, and remembers what of it was delivered. The memory holds what
// passes have read in the tables and nothing else. That a notification said the same before proves nothing: anybody may
// have sent it, before the row was there, and the one that followed the row may be lost. So what was notified and is still
// pending at the next pass is delivered once more.
//
// Delivered is as good as acknowledged: a topic delivers what it has let out until it is acknowledged, and when the topic
// ends, its memory ends with it.
type catchUp struct {
	pool    *pgxpool.Pool
	query   string
	batch   int
	settled map[string]state // of each pending item that a pass has delivered
	cost    time.Duration    // what reading took in the last pass
}

func newCatchUp(pool *pgxpool.Pool, queries sqlfile.Queries, event Event, batch int) *catchUp {
	return &catchUp{pool: pool, query: queries.Get(pendingQueries[event]), batch: batch, settled: map[string]state{}}
}

// pendingItem is a row of such a view.
type pendingItem struct {
	at      pgtype.Timestamptz // an infinite one is possible
	item    string
	version int64
	payload string
}

// state tells an item from a later one of the same name: an event that was relayed and is added again, or the next timer
// of a run, may have the version of the one before.
type state struct {
	at       int64 // in microseconds
	infinity pgtype.InfinityModifier
	version  int64
}

func (i pendingItem) state() state {
	if i.at.InfinityModifier != pgtype.Finite {
		return state{infinity: i.at.InfinityModifier, version: i.version}
	}
	return state{at: i.at.Time.UnixMicro(), version: i.version}
}

// delivered reports whether an earlier pass has delivered what item says.
func (c *catchUp) delivered(item pendingItem) bool {
	before, known := c.settled[item.item]
	return known && before == item.state()
}

// pass delivers, in the view's order, everything pending that no pass has delivered before in the same state. No connection
// is held while deliver runs. If deliver reports false, the pass ends.
func (c *catchUp) pass(ctx context.Context, deliver func(payload string) bool) error {
	last := pendingItem{at: pgtype.Timestamptz{InfinityModifier: pgtype.NegativeInfinity, Valid: true}}
	settled := map[string]state{}
	limit := c.batch
	c.cost = 0
	for {
		began := time.Now()
		page, err := c.page(ctx, last, limit)
		took := time.Since(began)
		c.cost += took
		if err != nil {
			return err
		}
		slow := took > slowPage
		fresh := false
		for _, item := range page {
			if !c.delivered(item) {
				fresh = true
				if !deliver(item.payload) {
					return ctx.Err()
				}
				c.settled[item.item] = item.state() // also if the pass is cut short
			}
			settled[item.item] = item.state()
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
