package store

import (
	"context"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
)

// Trace says where an operation of a run leaves traces.
type Trace struct {
	Fence
	Position      int32 // of the record; 0: it makes none
	TimerPosition int32 // of its deadline; 0: it records none
	Attempt       int   // the failed attempt that it records at Position; 0: none
}

// Traces is what the database has of an operation that may have been carried out.
type Traces struct {
	Status          string // of the run, if its row is still as this owner has left it; empty: it is not
	Output          []byte // of a run that has continued
	WakeAtMicros    *int64 // of a run that is parked, since 1970
	RemainingMicros *int64
	Recorded        bool   // this owner has recorded something at Position
	Record          []byte // its payload
	FiresAtMicros   *int64 // the deadline that this owner has recorded at TimerPosition
	NextAtMicros    *int64 // when the attempt after Attempt is due, if that is recorded
	NowMicros       int64
	Answered        time.Time
}

// Recall returns what is there of each of the operations, in their order. All of them are of one worker.
func (s *Store) Recall(ctx context.Context, db Querier, asks []Trace) ([]Traces, error) {
	statement, arguments := s.recalling(asks)
	rows, err := db.Query(ctx, statement, arguments...)
	if err != nil {
		return nil, refusal.Public(err)
	}
	return refusal.Answer(scanTraces(rows, len(asks)))
}

// RecallLocked adds two statements to a batch: one that waits until no other transaction has the run of ask, and Recall of it.
func (s *Store) RecallLocked(b *pgx.Batch, ask Trace, into *Traces) {
	b.Queue(s.queries.Get("LockRun"), ask.ID)
	statement, arguments := s.recalling([]Trace{ask})
	b.Queue(statement, arguments...).Query(func(rows pgx.Rows) error {
		found, err := scanTraces(rows, 1)
		if err == nil {
			*into = found[0]
		}
		return err
	})
}

func (s *Store) recalling(asks []Trace) (statement string, arguments []any) {
	return s.queries.Get("Recall"), []any{
		column(asks, func(a Trace) string { return a.ID }),
		column(asks, func(a Trace) int64 { return a.Token }),
		column(asks, func(a Trace) *int32 { return orNull(a.Position) }),
		column(asks, func(a Trace) *int32 { return orNull(a.TimerPosition) }),
		column(asks, func(a Trace) *int32 { return orNull(int32(a.Attempt)) }),
		workerOf(asks),
	}
}

func scanTraces(rows pgx.Rows, count int) ([]Traces, error) {
	all := make([]Traces, count)
	for rows.Next() {
		var ord int
		var status, output, record *string
		found := Traces{Answered: time.Now()}
		if err := rows.Scan(&ord, &status, &output, &found.WakeAtMicros, &found.RemainingMicros,
			&found.Recorded, &record, &found.FiresAtMicros, &found.NextAtMicros, &found.NowMicros); err != nil {
			return nil, err
		}
		found.Status, found.Output, found.Record = orZero(status), bytes(output), bytes(record)
		all[ord-1] = found
	}
	return all, rows.Err()
}

// Interrupt is a step that is executed again because the database has refused what it had done.
type Interrupt struct {
	Fence
	Position int32
	Error    []byte
}

// InterruptRuns records interruptions. done is called for each run that is still owned, with how often its step has been
// interrupted by now.
func (s *Store) InterruptRuns(b *pgx.Batch, rows []Interrupt, done func(place Place, number int)) {
	b.Queue(s.queries.Get("InterruptRuns"),
		column(rows, func(r Interrupt) string { return r.ID }),
		column(rows, func(r Interrupt) int64 { return r.Token }),
		column(rows, func(r Interrupt) int32 { return r.Position }),
		column(rows, func(r Interrupt) *string { return text(r.Error) }),
		workerOf(rows),
	).Query(func(found pgx.Rows) error {
		var place Place
		var number int
		_, err := pgx.ForEachRow(found, []any{&place.ID, &place.Position, &number}, func() error { done(place, number); return nil })
		return err
	})
}
