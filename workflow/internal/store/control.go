package store

import (
	"context"
	"strconv"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
)

// Instance is a run as its row describes it.
type Instance struct {
	Run
	WorkerLabel   string // empty: no worker, or one that is gone
	ContinuedFrom string
	CreatedAt     time.Time
	EndedAt       *time.Time
	ErasedAt      *time.Time
	WakeAt        *time.Time
	WakeChannels  []string
	Priority      int16
	Deaths        int
	Interruptions int
}

// Entry is a row of history.
type Entry struct {
	Position   int32
	Kind       string
	Name       string
	Payload    []byte
	RecordedAt time.Time
}

// Attempt is a failed attempt of a step.
type Attempt struct {
	Position int32
	Number   int
	Error    []byte
	FailedAt time.Time
	NextAt   *time.Time
}

// Interruption is a time that a step was executed again.
type Interruption struct {
	Position int32
	Number   int
	Error    []byte
	At       time.Time
}

// GetInterruptions fetches the interruptions of one run.
func (s *Store) GetInterruptions(b *pgx.Batch, id string, into *[]Interruption) {
	b.Queue(s.queries.Get("GetInterruptions"), id).Query(func(rows pgx.Rows) (err error) {
		*into, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Interruption, error) {
			var interrupted Interruption
			var failure string
			err := row.Scan(&interrupted.Position, &interrupted.Number, &failure, &interrupted.At)
			interrupted.Error = []byte(failure)
			return interrupted, err
		})
		return err
	})
}

// GetRun fetches one run; it leaves into nil if there is none.
func (s *Store) GetRun(b *pgx.Batch, id string, into **Instance) {
	b.Queue(s.queries.Get("GetRun"), id).Query(func(rows pgx.Rows) error {
		*into = nil
		for rows.Next() {
			var found Instance
			var worker *int64
			var label, input, output, failure, continued *string
			if err := rows.Scan(&found.ID, &found.Workflow, &found.Status, &worker, &label, &input, &output, &failure,
				&continued, &found.CreatedAt, &found.EndedAt, &found.WakeAt, &found.WakeChannels,
				&found.Priority, &found.Deaths, &found.Interruptions, &found.ErasedAt); err != nil {
				return err
			}
			found.Input, found.Output, found.Error = bytes(input), bytes(output), bytes(failure)
			found.Worker, found.WorkerLabel = orZero(worker), orZero(label)
			found.ContinuedFrom = orZero(continued)
			*into = &found
		}
		return rows.Err()
	})
}

// HistoryPage is a part of what one run has recorded.
type HistoryPage struct {
	After   int32 // the position that it begins after: set it to ask
	Entries []Entry
	More    bool // there may be others
}

// GetHistory fetches a page of the history of one run, in order.
func (s *Store) GetHistory(b *pgx.Batch, id string, page *HistoryPage) {
	b.Queue(s.queries.Get("GetHistory"), id, page.After, portionRows, portionBytes).Query(func(rows pgx.Rows) error {
		var entry Entry
		var payload *string
		var total int
		page.Entries = nil
		_, err := pgx.ForEachRow(rows, []any{&entry.Position, &entry.Kind, &entry.Name, &payload, &entry.RecordedAt, &total}, func() error {
			entry.Payload = bytes(payload)
			page.Entries = append(page.Entries, entry)
			return nil
		})
		page.More = len(page.Entries) < total || total == portionRows
		return err
	})
}

// AttemptsPage is a part of the failed attempts of one run.
type AttemptsPage struct {
	After    Attempt // the last one before it: set its Position and Number to ask
	Attempts []Attempt
	More     bool // there may be others
}

// GetAttempts fetches a page of the failed attempts of one run, in order.
func (s *Store) GetAttempts(b *pgx.Batch, id string, page *AttemptsPage) {
	b.Queue(s.queries.Get("GetAttempts"), id, page.After.Position, page.After.Number, portionRows).Query(func(rows pgx.Rows) (err error) {
		page.Attempts, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Attempt, error) {
			var attempt Attempt
			var failure string
			err := row.Scan(&attempt.Position, &attempt.Number, &failure, &attempt.FailedAt, &attempt.NextAt)
			attempt.Error = []byte(failure)
			return attempt, err
		})
		page.More = len(page.Attempts) == portionRows
		return err
	})
}

// Filter chooses runs. Zero fields choose all.
type Filter struct {
	Statuses      []string
	Workflows     []string
	CreatedFrom   *time.Time // inclusive
	CreatedBefore *time.Time
	EndedFrom     *time.Time // inclusive
	InputPath     *string    // a jsonpath that finds something in the input
}

// Listed is a run in a list.
type Listed struct {
	ID            string
	Workflow      string
	Status        string
	CreatedAt     time.Time
	EndedAt       *time.Time
	ErasedAt      *time.Time
	WakeAt        *time.Time
	ContinuedFrom string
}

// Looked is where a look at many runs has got to.
type Looked struct {
	Last string // the last run looked at
	More bool   // there may be others
}

// ListRuns looks at up to depth runs from the one below the id given (empty: from the top), downwards by id, and fetches up to limit of those
// that match.
func (s *Store) ListRuns(b *pgx.Batch, below string, depth, limit int, filter Filter, into *[]Listed, looked *Looked) {
	b.Queue(s.queries.Get("ListRuns"), orNull(below), depth, limit,
		filter.Statuses, filter.Workflows, filter.CreatedFrom, filter.CreatedBefore, filter.EndedFrom, filter.InputPath,
	).Query(func(rows pgx.Rows) error {
		*into, *looked = nil, Looked{}
		for rows.Next() {
			var run Listed
			var workflow, status, continued *string
			var created *time.Time
			if err := rows.Scan(&run.ID, &workflow, &status, &created, &run.EndedAt, &run.WakeAt, &continued, &run.ErasedAt); err != nil {
				return err
			}
			if workflow == nil {
				*looked = Looked{Last: run.ID, More: true}
				continue
			}
			run.Workflow, run.Status, run.CreatedAt, run.ContinuedFrom = *workflow, orZero(status), orZero(created), orZero(continued)
			*into = append(*into, run)
		}
		return rows.Err()
	})
}

// LimitTime has the server give up each of the statements that follow in the transaction after limit.
func (s *Store) LimitTime(b *pgx.Batch, limit time.Duration) {
	b.Queue(s.queries.Get("LimitTime"), strconv.FormatInt(limit.Milliseconds(), 10))
}

// CheckPath asks the server to parse a jsonpath: a mistake in it is the error of this statement.
func (s *Store) CheckPath(b *pgx.Batch, path string) { b.Queue(s.queries.Get("CheckPath"), path) }

// Later is a run to begin at a moment of its own: after a delay, or at a time.
type Later struct {
	Start
	DelayMicros *int64
	AtMicros    *int64
}

// StartedLater is when a run created by StartLater begins.
type StartedLater struct {
	AtMicros        int64 // of the Unix epoch, by the database's clock
	RemainingMicros int64
}

// StartLater adds the runs whose ids are free; created is called with each of those.
func (s *Store) StartLater(b *pgx.Batch, rows []Later, created func(id string, when StartedLater)) {
	b.Queue(s.queries.Get("StartLater"), laterArguments(rows)...).Query(func(found pgx.Rows) error {
		return scanLater(found, created)
	})
}

func laterArguments(rows []Later) []any {
	return []any{
		column(rows, func(r Later) string { return r.ID }),
		column(rows, func(r Later) string { return r.Workflow }),
		column(rows, func(r Later) *string { return text(r.Input) }),
		column(rows, func(r Later) *int64 { return r.DelayMicros }),
		column(rows, func(r Later) *int64 { return r.AtMicros }),
		column(rows, func(r Later) *string { return text(r.Trace) }),
		column(rows, func(r Later) int16 { return r.Priority }),
	}
}

func scanLater(rows pgx.Rows, created func(id string, when StartedLater)) error {
	var id string
	var when StartedLater
	_, err := pgx.ForEachRow(rows, []any{&id, &when.AtMicros, &when.RemainingMicros}, func() error {
		created(id, when)
		return nil
	})
	return err
}

// Revive is a run that has stopped and is to go on.
type Revive struct {
	Fence               // as it stopped
	Forget      []int32 // the positions whose records and failed attempts are deleted
	Resubscribe bool    // it gets the subscriptions back that its history has
}

// Revived is what RetryRun did: nothing if there is no Workflow, for a reason that is given or because the run is not in that state any more.
type Revived struct {
	Taken    string // nothing, because this channel is in use in another mode
	Drained  bool   // nothing, because retention has begun to delete its history
	Workflow string // of the run, which goes on
}

// RetryRun makes a run ready again that has stopped.
func (s *Store) RetryRun(b *pgx.Batch, ask Revive, into *Revived) {
	b.Queue(s.queries.Get("LockRun"), ask.ID)
	b.Queue(s.queries.Get("RetryRun"), ask.ID, ask.Token, ask.Forget, ask.Resubscribe).Query(func(rows pgx.Rows) error {
		*into = Revived{}
		var taken, workflow *string
		_, err := pgx.ForEachRow(rows, []any{&taken, &workflow, &into.Drained}, func() error {
			into.Taken, into.Workflow = orZero(taken), orZero(workflow)
			return nil
		})
		return err
	})
}

// CancelledRun is what CancelRun found and did.
type CancelledRun struct {
	Status       string // before; empty: there is no such run
	Workflow     string
	Compensating bool // it undoes its steps already
	Ended        bool // it is cancelled
	Asked        bool // it will undo its steps and end
	AskedBefore  bool
	Heir         string // the run that it has become by continuing as new, if it has
}

// CancelRun cancels a run, or asks it to undo its steps and end.
func (s *Store) CancelRun(b *pgx.Batch, id string, why []byte, compensate bool, into *CancelledRun) {
	b.Queue(s.queries.Get("LockRun"), id)
	b.Queue(s.queries.Get("CancelRun"), id, text(why), compensate).Query(func(rows pgx.Rows) error {
		*into = CancelledRun{}
		var did string
		var heir *string
		_, err := pgx.ForEachRow(rows, []any{&into.Status, &into.Workflow, &into.Compensating, &did, &into.AskedBefore, &heir}, func() error {
			into.Ended, into.Asked, into.Heir = did == "ended", did == "asked", orZero(heir)
			return nil
		})
		return err
	})
}

// FindCancel fetches why a run is to be cancelled that is still owned as fence says; nil: it is not, or not owned any more.
func (s *Store) FindCancel(b *pgx.Batch, fence Fence, into *[]byte) {
	b.Queue(s.queries.Get("FindCancel"), fence.ID, fence.Token, fence.Worker).Query(func(rows pgx.Rows) error {
		*into = nil
		var why string
		_, err := pgx.ForEachRow(rows, []any{&why}, func() error { *into = []byte(why); return nil })
		return err
	})
}

func orZero[T any](value *T) T {
	if value == nil {
		var zero T
		return zero
	}
	return *value
}

// StartLaterTx adds one run in a caller's transaction. It reports whether the id was free.
func (s *Store) StartLaterTx(ctx context.Context, tx pgx.Tx, row Later) (created bool, when StartedLater, err error) {
	rows, err := tx.Query(ctx, s.queries.Get("StartLater"), laterArguments([]Later{row})...)
	if err != nil {
		return false, when, refusal.Public(err)
	}
	err = scanLater(rows, func(_ string, at StartedLater) { created, when = true, at })
	return created, when, refusal.Public(err)
}
