package store

import "github.com/jackc/pgx/v5"

// Erasable is a run that may be erased.
type Erasable struct {
	ID            string
	Status        string
	Ended         bool
	Line          string // the first run of its line; empty: it is the first itself
	ContinuedFrom string // empty: none
}

// FindErasable fetches one run and those that it continues, the last first, up to limit.
func (s *Store) FindErasable(b *pgx.Batch, id string, limit int, into *[]Erasable) {
	b.Queue(s.queries.Get("FindErasable"), id, limit).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (found Erasable, err error) {
			var line, continued *string
			err = row.Scan(&found.ID, &found.Status, &found.Ended, &line, &continued)
			found.Line, found.ContinuedFrom = orZero(line), orZero(continued)
			return found, err
		})
		return err
	})
}

// ErasedRecords is what a portion of EraseRecords found and did.
type ErasedRecords struct {
	Deleted int      // rows
	Living  []string // of the runs: they have not ended
}

// EraseRecords removes a portion of what runs that have ended have recorded. From the first portion on they cannot be retried.
func (s *Store) EraseRecords(b *pgx.Batch, ids []string, into *ErasedRecords) {
	b.Queue(s.queries.Get("EraseRecords"), ids, portionRows, portionBytes).QueryRow(func(row pgx.Row) error {
		return row.Scan(&into.Deleted, &into.Living)
	})
}

// MailPage is how far all messages have been looked at.
type MailPage struct {
	Last int64
	More bool // there may be others
}

// walkRows is how many messages one statement looks at.
const walkRows = 5000

// EraseMail removes unread messages that the runs have sent, or that were published to them, and those that were sent to receivers,
// looking at those after page.
func (s *Store) EraseMail(b *pgx.Batch, runs, receivers []string, page *MailPage) {
	after := page.Last
	b.Queue(s.queries.Get("EraseMail"), runs, receivers, after, walkRows, portionBytes).QueryRow(func(row pgx.Row) error {
		var last *int64
		if err := row.Scan(&last, &page.More); err != nil {
			return err
		}
		if page.Last = after; last != nil {
			page.Last = *last
		}
		return nil
	})
}

// EraseRuns has the rows of runs that have ended, and have nothing left, say nothing of the application's data any more.
func (s *Store) EraseRuns(b *pgx.Batch, ids []string) { b.Queue(s.queries.Get("EraseRuns"), ids) }
