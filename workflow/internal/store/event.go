package store

import (
	"context"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
)

// SendEvent is an event on its way.
type SendEvent struct {
	Fence            // the sending run; the zero Fence: sent from outside
	Position   int32 // of the command in the sender's history; 0: sent from outside
	Type       string
	Source     string
	EventID    string
	Attributes []byte // a JSON object of strings
	Data       []byte
	KeepMicros int64
}

// SentEvent is an event that is kept.
type SentEvent struct {
	ID   int64
	Type string
}

// SendEvents keeps events, unless one of the same source and id is kept and has not expired. done is called for every operation whose sender, if
// it is a run, is still owned: with held if another transaction has sent that event and is open; sent for every event.
func (s *Store) SendEvents(b *pgx.Batch, rows []SendEvent, done func(ord int, held bool), sent func(SentEvent)) {
	b.Queue(s.queries.Get("SendEvents"), eventArguments(rows)...).Query(func(found pgx.Rows) error {
		return scanEvents(found, done, sent)
	})
}

// SendEventTx does the same for one event in a caller's transaction. It waits for others that send it.
func (s *Store) SendEventTx(ctx context.Context, tx pgx.Tx, row SendEvent, sent func(SentEvent)) error {
	if _, err := tx.Exec(ctx, s.queries.Get("LockEvent"), row.Source, row.EventID); err != nil {
		return refusal.Public(err)
	}
	found, err := tx.Query(ctx, s.queries.Get("SendEvents"), eventArguments([]SendEvent{row})...)
	if err != nil {
		return refusal.Public(err)
	}
	defer found.Close()
	return refusal.Public(scanEvents(found, func(int, bool) {}, sent))
}

func eventArguments(rows []SendEvent) []any {
	return []any{
		column(rows, func(r SendEvent) *string { return orNull(r.ID) }),
		column(rows, func(r SendEvent) int64 { return r.Token }),
		column(rows, func(r SendEvent) *int32 { return orNull(r.Position) }),
		column(rows, func(r SendEvent) string { return r.Type }),
		column(rows, func(r SendEvent) string { return r.Source }),
		column(rows, func(r SendEvent) string { return r.EventID }),
		column(rows, func(r SendEvent) string { return string(r.Attributes) }),
		column(rows, func(r SendEvent) *string { return text(r.Data) }),
		column(rows, func(r SendEvent) int64 { return r.KeepMicros }),
		workerOf(rows),
	}
}

func scanEvents(rows pgx.Rows, done func(ord int, held bool), sent func(SentEvent)) error {
	var what string
	var ord, id *int64
	var eventType *string
	_, err := pgx.ForEachRow(rows, []any{&what, &ord, &id, &eventType}, func() error {
		if what == "sent" {
			sent(SentEvent{ID: *id, Type: *eventType})
		} else {
			done(int(*ord)-1, what == "held")
		}
		return nil
	})
	return err
}

// EventWait is what a run waits for that waits for an event.
type EventWait struct {
	Type       string
	Attributes []byte  // that the event must have: a JSON object of strings, "{}" for none
	Seen       []int64 // the events that the run has had
}

// WaitEvent is a run that has come to such a wait. Of the Wait, what is said of channels and Kind have no meaning.
type WaitEvent struct {
	Wait
	EventWait
}

// WakeEvent is a parked run in memory that may go on.
type WakeEvent struct {
	Fence
	EventWait

	Position int32
	Nudged   bool // the moment it wakes at is a nudge
}

// WaitEvents lets owned runs take an event, pass their deadline, or park. waited is called for each still owned.
func (s *Store) WaitEvents(b *pgx.Batch, rows []WaitEvent, waited func(ord int, result Waited)) {
	b.Queue(s.queries.Get("WaitEvents"),
		column(rows, func(r WaitEvent) string { return r.ID }),
		column(rows, func(r WaitEvent) int64 { return r.Token }),
		column(rows, func(r WaitEvent) int32 { return r.Position }),
		column(rows, func(r WaitEvent) string { return r.Type }),
		column(rows, func(r WaitEvent) string { return string(r.Attributes) }),
		column(rows, func(r WaitEvent) string { return idList(r.Seen) }),
		column(rows, func(r WaitEvent) *int32 { return orNull(r.TimerPosition) }),
		column(rows, func(r WaitEvent) *string { return orNull(r.TimerName) }),
		column(rows, func(r WaitEvent) *int64 { return r.delayMicros() }),
		column(rows, func(r WaitEvent) *int64 { return r.AtMicros }),
		column(rows, func(r WaitEvent) *int64 { return r.NudgeMicros }),
		column(rows, func(r WaitEvent) bool { return r.Stay }),
		column(rows, func(r WaitEvent) bool { return r.Heeds }),
		workerOf(rows),
	).Query(eachWaited(waited))
}

// WakeEvents makes their worker the owner of those parked runs whose event or deadline is there; woken is called for each that is
// still parked, also when neither is.
func (s *Store) WakeEvents(b *pgx.Batch, rows []WakeEvent, woken func(ord int, result Waited)) {
	b.Queue(s.queries.Get("WakeEvents"),
		column(rows, func(r WakeEvent) string { return r.ID }),
		column(rows, func(r WakeEvent) int64 { return r.Token }),
		column(rows, func(r WakeEvent) int32 { return r.Position }),
		column(rows, func(r WakeEvent) string { return r.Type }),
		column(rows, func(r WakeEvent) string { return string(r.Attributes) }),
		column(rows, func(r WakeEvent) string { return idList(r.Seen) }),
		workerOf(rows),
		column(rows, func(r WakeEvent) bool { return r.Nudged }),
	).Query(eachWaited(woken))
}

// LookForEvents calls found with the index of each of the parked runs for which there is an event.
func (s *Store) LookForEvents(b *pgx.Batch, rows []WakeEvent, found func(ord int)) {
	b.Queue(s.queries.Get("LookForEvents"),
		column(rows, func(r WakeEvent) string { return r.Type }),
		column(rows, func(r WakeEvent) string { return string(r.Attributes) }),
		column(rows, func(r WakeEvent) string { return idList(r.Seen) }),
	).Query(func(rows pgx.Rows) error {
		var ord int
		_, err := pgx.ForEachRow(rows, []any{&ord}, func() error { found(ord - 1); return nil })
		return err
	})
}

// idList writes ids as an array's text: the rows of a batch have lists of different lengths.
func idList(ids []int64) string {
	var list strings.Builder
	list.WriteByte('{')
	for i, id := range ids {
		if i > 0 {
			list.WriteByte(',')
		}
		list.WriteString(strconv.FormatInt(id, 10))
	}
	list.WriteByte('}')
	return list.String()
}

// MatchEvents fetches the parked runs in worker's memory that wait for one of these events.
func (s *Store) MatchEvents(b *pgx.Batch, events []int64, worker int64, into *[]string) {
	b.Queue(s.queries.Get("MatchEvents"), events, worker).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectRows(rows, pgx.RowTo[string])
		return err
	})
}

// EventPage is where a sweep through the events has come to.
type EventPage struct {
	Last  int64 // the last event looked at
	Mark  int64 // the last that is so old that none will come before it; 0: there was none
	Full  bool  // there may be more
	Again bool  // more runs may wait for the events of this page
}

// SweepEvents makes up to runs parked runs ready for which there is an event, looking at limit events after page.Last.
func (s *Store) SweepEvents(b *pgx.Batch, page *EventPage, limit, runs int, grace, margin time.Duration, into *[]Named) {
	b.Queue(s.queries.Get("SweepEvents"), page.Last, limit, grace.Microseconds(), runs, margin.Microseconds()).Query(func(rows pgx.Rows) error {
		*into = (*into)[:0]
		var last, mark *int64
		var events, found int
		var id, workflow *string
		_, err := pgx.ForEachRow(rows, []any{&last, &events, &mark, &found, &id, &workflow}, func() error {
			if id != nil {
				*into = append(*into, Named{ID: *id, Workflow: *workflow})
			}
			return nil
		})
		if last != nil {
			page.Last = *last
		}
		page.Mark, page.Full, page.Again = orZero(mark), events == limit, found == runs
		return err
	})
}

// SweepEventsFor does the same for these events and those runs that are in no listening worker's memory.
// first: the lowest of the events that are there; 0: none is. again: there may be more of them. held: some
// stay as they are, because their rows are held at the moment.
func (s *Store) SweepEventsFor(b *pgx.Batch, events []int64, runs int, into *[]Named, first *int64, again, held *bool) {
	b.Queue(s.queries.Get("SweepEventsFor"), events, runs).Query(func(rows pgx.Rows) error {
		*into = (*into)[:0]
		var found, skipped int
		var id, workflow *string
		var lowest *int64
		_, err := pgx.ForEachRow(rows, []any{&lowest, &found, &skipped, &id, &workflow}, func() error {
			*first = orZero(lowest)
			if id != nil {
				*into = append(*into, Named{ID: *id, Workflow: *workflow})
			}
			return nil
		})
		*again, *held = found == runs && skipped < found, skipped > 0
		return err
	})
}

// LastEvent stores the last event sent longer than margin ago; 0: there is none.
func (s *Store) LastEvent(b *pgx.Batch, margin time.Duration, into *int64) {
	b.Queue(s.queries.Get("LastEvent"), margin.Microseconds()).QueryRow(func(row pgx.Row) error {
		var last *int64
		err := row.Scan(&last)
		*into = orZero(last)
		return err
	})
}

// WaitPage is where a sweep through those who wait for events has come to.
type WaitPage struct {
	Last string // the last run looked at
	Full bool   // there may be more
}

// SweepEventWaits makes parked runs ready for which there is an event, looking at limit of them after page.Last.
func (s *Store) SweepEventWaits(b *pgx.Batch, page *WaitPage, limit int, grace time.Duration, into *[]Named) {
	b.Queue(s.queries.Get("SweepEventWaits"), page.Last, limit, grace.Microseconds()).Query(func(rows pgx.Rows) error {
		*into = (*into)[:0]
		var last, id, workflow *string
		var count int
		_, err := pgx.ForEachRow(rows, []any{&last, &count, &id, &workflow}, func() error {
			if id != nil {
				*into = append(*into, Named{ID: *id, Workflow: *workflow})
			}
			return nil
		})
		if last != nil {
			page.Last = *last
		}
		page.Full = count == limit
		return err
	})
}

// DiscardEvents removes up to limit events that have expired. It reports in more whether there may be others.
func (s *Store) DiscardEvents(b *pgx.Batch, limit int, removed *int, more *bool) {
	b.Queue(s.queries.Get("DiscardEvents"), limit, portionBytes).QueryRow(func(row pgx.Row) error { return row.Scan(removed, more) })
}
