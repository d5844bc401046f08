package store

import (
	"context"
	"errors"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// Append is a row of history, written by the run's owner.
type Append struct {
	Fence
	Position int32
	Kind     journal.Kind
	Name     string
	Payload  []byte
}

// Place names a row of history.
type Place struct {
	ID       string
	Position int32
}

// AppendHistory adds rows of history; written is called with each that was added. The others belong to runs that are not
// owned any more. A position that is taken fails the batch with a unique violation.
func (s *Store) AppendHistory(b *pgx.Batch, rows []Append, written func(Place)) {
	if len(rows) == 1 {
		b.Queue(s.queries.Get("AppendRecord"), rows[0].arguments()...).Query(eachPlace(written))
		return
	}
	b.Queue(s.queries.Get("AppendHistory"),
		column(rows, func(r Append) string { return r.ID }),
		column(rows, func(r Append) int64 { return r.Token }),
		column(rows, func(r Append) int32 { return r.Position }),
		column(rows, func(r Append) string { return string(r.Kind) }),
		column(rows, func(r Append) string { return r.Name }),
		column(rows, func(r Append) *string { return text(r.Payload) }),
		workerOf(rows),
	).Query(eachPlace(written))
}

// AppendInTransaction adds one row of history in a transactional activity's transaction. It reports false if the run is
// not owned any more, and a unique violation if the step has been recorded.
func (s *Store) AppendInTransaction(ctx context.Context, tx pgx.Tx, row Append) (bool, error) {
	tag, err := tx.Exec(ctx, s.queries.Get("AppendRecord"), row.arguments()...)
	return tag.RowsAffected() == 1, refusal.Public(err)
}

func (a Append) arguments() []any {
	return []any{a.ID, a.Token, a.Position, string(a.Kind), a.Name, text(a.Payload), a.Worker}
}

// Past is what history holds of a run.
type Past struct {
	Records  []journal.Record
	Attempts map[int32]journal.Attempts // failed ones, by position
	Cancel   []byte                     // why it is to be cancelled; nil: it is not
}

// PastPage is a part of the past of several runs.
type PastPage struct {
	// IDs are the runs whose past it is, the first of them from After on: set both to ask for it.
	IDs   []string
	After int32
	// Pasts is what was found. Only the first page of all has the attempts and cancellations.
	Pasts map[string]*Past
	// Next is the page that follows; nil: this is the last.
	Next *PastPage
}

// LoadHistory fetches a page of what history holds of runs: at most maxRows rows, and about maxBytes bytes as they are stored.
func (s *Store) LoadHistory(b *pgx.Batch, page *PastPage, maxRows, maxBytes int) {
	b.Queue(s.queries.Get("LoadHistory"), page.IDs, page.After, maxBytes, maxRows).Query(func(rows pgx.Rows) error {
		page.Pasts, page.Next = make(map[string]*Past, len(page.IDs)), nil
		for _, id := range page.IDs {
			page.Pasts[id] = &Past{Attempts: map[int32]journal.Attempts{}}
		}
		var id, kind string
		var record journal.Record
		var payload *string
		var found, total int
		_, err := pgx.ForEachRow(rows, []any{&id, &record.Position, &kind, &record.Name, &payload, &total}, func() error {
			record.Kind, record.Payload = journal.Kind(kind), bytes(payload)
			page.Pasts[id].Records = append(page.Pasts[id].Records, record)
			found++
			return nil
		})
		if found < total || total == maxRows {
			page.Next = &PastPage{IDs: page.IDs[slices.Index(page.IDs, id):], After: record.Position}
		}
		return err
	})
}

// LoadState fetches the attempts and cancellations of the runs of a page, which LoadHistory fetches in the same batch.
func (s *Store) LoadState(b *pgx.Batch, page *PastPage) {
	b.Queue(s.queries.Get("LoadAttempts"), page.IDs).Query(func(rows pgx.Rows) error {
		var id string
		var position int32
		var until, nextAt *int64
		var attempts journal.Attempts
		_, err := pgx.ForEachRow(rows, []any{&id, &position, &attempts.Failed, &attempts.Since, &until, &nextAt, &attempts.InDoubt}, func() error {
			attempts.Until, attempts.NextAt = orZero(until), orZero(nextAt)
			page.Pasts[id].Attempts[position] = attempts
			return nil
		})
		return err
	})
	b.Queue(s.queries.Get("LoadCancels"), page.IDs).Query(func(rows pgx.Rows) error {
		var id, why string
		_, err := pgx.ForEachRow(rows, []any{&id, &why}, func() error {
			page.Pasts[id].Cancel = []byte(why)
			return nil
		})
		return err
	})
}

// LoadCancel fetches why a run is to be cancelled; nil: it is not.
func (s *Store) LoadCancel(b *pgx.Batch, id string, into *[]byte) {
	b.Queue(s.queries.Get("LoadCancels"), []string{id}).Query(func(rows pgx.Rows) error {
		*into = nil
		var why string
		_, err := pgx.ForEachRow(rows, []any{&id, &why}, func() error { *into = []byte(why); return nil })
		return err
	})
}

// Retry is a failed attempt and the wait for the next.
type Retry struct {
	Fence
	Position    int32
	Attempt     int
	Error       []byte
	DelayMicros int64
	Stay        bool // do not park
	Heeds       bool // if the run is to be cancelled, say so
}

// RetrySteps records failed attempts and parks their runs, unless they stay.
func (s *Store) RetrySteps(b *pgx.Batch, rows []Retry, parked func(ord int, result Waited)) {
	b.Queue(s.queries.Get("RetrySteps"),
		column(rows, func(r Retry) string { return r.ID }),
		column(rows, func(r Retry) int64 { return r.Token }),
		column(rows, func(r Retry) int32 { return r.Position }),
		column(rows, func(r Retry) int32 { return int32(r.Attempt) }),
		column(rows, func(r Retry) *string { return text(r.Error) }),
		column(rows, func(r Retry) int64 { return r.DelayMicros }),
		column(rows, func(r Retry) bool { return r.Stay }),
		column(rows, func(r Retry) bool { return r.Heeds }),
		workerOf(rows),
	).Query(func(found pgx.Rows) error {
		var ord int
		var result Waited
		var fires, remaining int64
		_, err := pgx.ForEachRow(found, []any{&ord, &result.Outcome, &fires, &remaining}, func() error {
			result.FiresAtMicros, result.RemainingMicros = &fires, &remaining
			parked(ord-1, result.clone())
			return nil
		})
		return err
	})
}

// Fail is a run that begins to undo what it has done.
type Fail struct {
	Fence
	Position  int32
	Payload   []byte
	Cancelled bool // because it was asked to
}

// FailRuns records that runs begin to undo what they have done; written is called as by AppendHistory, and not for a run that is to be
// cancelled and does not know it yet.
func (s *Store) FailRuns(b *pgx.Batch, rows []Fail, written func(Place)) {
	b.Queue(s.queries.Get("FailRuns"),
		column(rows, func(r Fail) string { return r.ID }),
		column(rows, func(r Fail) int64 { return r.Token }),
		column(rows, func(r Fail) int32 { return r.Position }),
		column(rows, func(r Fail) *string { return text(r.Payload) }),
		workerOf(rows),
		column(rows, func(r Fail) bool { return r.Cancelled }),
	).Query(eachPlace(written))
}

func eachPlace(do func(Place)) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var place Place
		_, err := pgx.ForEachRow(rows, []any{&place.ID, &place.Position}, func() error { do(place); return nil })
		return err
	}
}

// IsRecorded reports whether err says that a position in history, or the number of a failed attempt, is taken. (Somebody's own unique
// key, in a trigger say, is no such thing.)
func IsRecorded(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == "23505" && (pgErr.ConstraintName == "history_pkey" || pgErr.ConstraintName == "attempts_pkey")
}
