package store

import (
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// portionRows bounds what a sweep deletes of each kind of row in one statement.
	portionRows = 1000
	// portionBytes bounds what they weigh, as they are stored: a row can weigh thousands of others.
	portionBytes = 16 << 20
)

// EndedPage is where retention has come to among the runs that have ended.
type EndedPage struct {
	Ended   time.Time // when the last run looked at ended; zero: none was
	IDs     []string  // those that were looked at and ended then
	Full    bool      // there may be more
	Deleted int       // of this page
	Kept    int       // of this page: they continued as runs that are there
	Former  []string  // runs that continued as one of the deleted
	Filled  []string  // of this page: something is left of them, so they are not deleted yet
}

// DrainEnded removes a portion of what runs have left that ended longer than age ago: records, failed attempts, interruptions and
// messages. removed: how many rows that were.
func (s *Store) DrainEnded(b *pgx.Batch, ids []string, age time.Duration, removed *int) {
	b.Queue(s.queries.Get("DrainEnded"), ids, age.Microseconds(), portionRows, portionBytes).QueryRow(func(row pgx.Row) error {
		return row.Scan(removed)
	})
}

// DeleteEnded removes runs that ended longer than age ago and have nothing left, looking at limit more than page has.
func (s *Store) DeleteEnded(b *pgx.Batch, age time.Duration, limit int, page *EndedPage) {
	var from *time.Time
	if !page.Ended.IsZero() {
		from = &page.Ended
	}
	seen := append([]string{}, page.IDs...) // an array without elements, not null
	b.Queue(s.queries.Get("DeleteEnded"), age.Microseconds(), limit, from, seen).QueryRow(func(row pgx.Row) error {
		var looked int
		var last *time.Time
		var ids []string
		if err := row.Scan(&page.Deleted, &looked, &page.Kept, &last, &ids, &page.Former, &page.Filled); err != nil {
			return err
		}
		switch page.Full = looked == limit; {
		case last == nil:
		case from != nil && last.Equal(*from):
			page.IDs = slices.Concat(seen, ids)
		default:
			page.Ended, page.IDs = *last, ids
		}
		return nil
	})
}

// FormerRuns are runs that continued as ones which are deleted.
type FormerRuns struct {
	Deleted int
	Next    []string // those before the ones looked at
	Filled  []string // something is left of them, so they are not deleted yet
}

// DeleteFormer removes those of the runs former that have nothing left, which continued as runs that are deleted, and those before
// them, looking at up to limit.
func (s *Store) DeleteFormer(b *pgx.Batch, former []string, limit int, into *FormerRuns) {
	b.Queue(s.queries.Get("DeleteFormer"), former, limit).QueryRow(func(row pgx.Row) error {
		return row.Scan(&into.Deleted, &into.Next, &into.Filled)
	})
}

// UnreceivedPage is how far the messages of a run have been looked at.
type UnreceivedPage struct {
	Channel string // of the last message
	ID      int64
	More    bool // there may be others
}

// DiscardUnreceived removes messages of a run that has ended, which it must not receive if it goes on again, looking at those after
// page.
func (s *Store) DiscardUnreceived(b *pgx.Batch, id string, page *UnreceivedPage) {
	b.Queue(s.queries.Get("DiscardUnreceived"), id, page.Channel, page.ID, portionRows, portionBytes).QueryRow(func(row pgx.Row) error {
		var channel *string
		var last int64
		var cut bool // some of these are still there
		if err := row.Scan(&channel, &last, &page.More, &cut); err != nil {
			return err
		}
		if channel != nil && !cut {
			page.Channel, page.ID = *channel, last
		}
		return nil
	})
}
