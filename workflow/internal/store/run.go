package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
)

// Guard adds the settings that hold for the rest of the batch's transaction: index lookups only, and no wait for a lock
// longer than lockTimeout.
func (s *Store) Guard(b *pgx.Batch, lockTimeout time.Duration) {
	b.Queue(s.queries.Get("Guard"), fmt.Sprintf("%dms", lockTimeout.Milliseconds()))
}

// GuardSession makes the same settings for as long as conn lasts. It reports false, having set nothing, if conn leads to a
// pooler: what is set there would be somebody else's, too, and has to be set for each transaction.
func (s *Store) GuardSession(ctx context.Context, conn *pgx.Conn, lockTimeout time.Duration) (direct bool, err error) {
	rows, err := conn.Query(ctx, s.queries.Get("GuardSession"), fmt.Sprintf("%dms", lockTimeout.Milliseconds()), int64(conn.PgConn().PID()))
	if err != nil {
		return false, refusal.Public(err)
	}
	return refusal.Answer(pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool]))
}

// Start is a new run.
type Start struct {
	ID       string
	Workflow string
	Input    []byte
	Worker   int64  // its owner from the start; 0: ready for anyone
	Trace    []byte // the trace that it belongs to, as JSON; nil: none
	Priority int16
}

// Run names the run that it starts.
func (s Start) Run() string { return s.ID }

// StartRuns adds the runs whose ids are free; created is called with each of those.
func (s *Store) StartRuns(b *pgx.Batch, rows []Start, created func(id string)) {
	statement, arguments := s.starting(rows)
	b.Queue(statement, arguments...).Query(eachID(created))
}

// StartRunTx adds one run in a caller's transaction. It reports whether the id was free.
func (s *Store) StartRunTx(ctx context.Context, tx pgx.Tx, row Start) (bool, error) {
	statement, arguments := s.starting([]Start{row})
	tag, err := tx.Exec(ctx, statement, arguments...)
	return tag.RowsAffected() == 1, refusal.Public(err)
}

// starting returns the statement that starts rows, with its arguments.
func (s *Store) starting(rows []Start) (statement string, arguments []any) {
	if len(rows) == 1 {
		r := rows[0]
		return s.queries.Get("StartRun"), []any{r.ID, r.Workflow, text(r.Input), orNull(r.Worker), text(r.Trace), r.Priority}
	}
	return s.queries.Get("StartRuns"), []any{
		column(rows, func(r Start) string { return r.ID }),
		column(rows, func(r Start) string { return r.Workflow }),
		column(rows, func(r Start) *string { return text(r.Input) }),
		column(rows, func(r Start) *int64 { return orNull(r.Worker) }),
		column(rows, func(r Start) *string { return text(r.Trace) }),
		column(rows, func(r Start) int16 { return r.Priority }),
	}
}

// Run is the state of an instance.
type Run struct {
	ID       string
	Workflow string
	Status   string
	Worker   int64 // 0: none
	Token    int64
	Input    []byte
	Output   []byte
	Error    []byte
	Drained  bool // retention has begun to delete its history
	Erased   bool // it has neither input nor output nor history any more
}

// Querier is a pool, a connection or a transaction.
type Querier interface {
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
}

// FindRuns returns the runs with these ids that exist, in no particular order.
func (s *Store) FindRuns(ctx context.Context, db Querier, ids []string) ([]Run, error) {
	rows, err := db.Query(ctx, s.queries.Get("FindRuns"), ids)
	if err != nil {
		return nil, refusal.Public(err)
	}
	return refusal.Answer(pgx.CollectRows(rows, scanRun))
}

// QueueFindRuns does the same in a batch.
func (s *Store) QueueFindRuns(b *pgx.Batch, ids []string, into *[]Run) {
	b.Queue(s.queries.Get("FindRuns"), ids).Query(func(rows pgx.Rows) error {
		found, err := pgx.CollectRows(rows, scanRun)
		*into = found
		return err
	})
}

func scanRun(row pgx.CollectableRow) (Run, error) {
	var run Run
	var worker *int64
	var input, output, failure *string
	err := row.Scan(&run.ID, &run.Workflow, &run.Status, &worker, &run.Token, &input, &output, &failure, &run.Drained, &run.Erased)
	if worker != nil {
		run.Worker = *worker
	}
	run.Input, run.Output, run.Error = bytes(input), bytes(output), bytes(failure)
	return run, err
}

// Claimed is a run that this worker has just become the owner of.
type Claimed struct {
	ID       string
	Workflow string
	Token    int64
	Worker   int64
	Input    []byte
	Trace    []byte        // as it was started with
	Heir     bool          // it has continued another as new, and has the mail of their line
	Late     time.Duration // since it was due; of those that were parked
}

// Fence names the run as its new owner knows it.
func (c Claimed) Fence() Fence { return Fence{ID: c.ID, Token: c.Token, Worker: c.Worker} }

// Look is the answer to a claim of ready runs.
type Look struct {
	Claimed  []Claimed
	Priority []int16 // of each of them
	ReadyAt  []int64 // since when each of them was ready, in microseconds since 1970
	Mark     int64   // margin before the statement, in microseconds since 1970
	Took     time.Duration
}

// Offer is the room for ready runs.
type Offer struct {
	Workflows []string // who is behind in getting room first
	Allowed   []int    // of each of them, at most
	Limit     int      // in all, at most
}

// Since is where a look for the ready runs of one priority begins, or of a range of them that has no mark.
type Since struct {
	Workflow string
	Priority int16
	Mark     *int64 // microseconds since 1970; nil: all, of the priorities down to Lowest
	Lowest   int16
}

// ClaimReady makes worker the owner of ready runs, of each workflow the most urgent and oldest first. The order of Claimed
// is none.
func (s *Store) ClaimReady(b *pgx.Batch, worker int64, offer Offer, margin time.Duration, into *Look) {
	b.Queue(s.queries.Get("ClaimReady"), offer.Workflows, worker, offer.Allowed, offer.Limit, margin.Microseconds()).Query(scanLook(worker, into))
}

// ClaimReadyFrom does the same among the runs that have become ready since the marks, which are in the order of urgency.
func (s *Store) ClaimReadyFrom(b *pgx.Batch, worker int64, offer Offer, marks []Since, margin time.Duration, into *Look) {
	b.Queue(s.queries.Get("ClaimReadyFrom"), offer.Workflows, worker, offer.Allowed, offer.Limit, margin.Microseconds(),
		column(marks, func(m Since) string { return m.Workflow }),
		column(marks, func(m Since) int16 { return m.Priority }),
		column(marks, func(m Since) *int64 { return m.Mark }),
		column(marks, func(m Since) int16 { return m.Lowest }),
	).Query(scanLook(worker, into))
}

func scanLook(worker int64, into *Look) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		*into = Look{}
		for rows.Next() {
			var took int64
			var id, workflow, input, trace *string
			var token, readyAt *int64
			var priority *int16
			var heir *bool
			if err := rows.Scan(&into.Mark, &took, &id, &workflow, &token, &input, &priority, &readyAt, &trace, &heir); err != nil {
				return err
			}
			into.Took = bounds.Micros(took)
			if id != nil {
				into.Claimed = append(into.Claimed, Claimed{ID: *id, Workflow: *workflow, Token: *token, Worker: worker, Input: bytes(input), Trace: bytes(trace), Heir: orZero(heir)})
				into.Priority = append(into.Priority, *priority)
				into.ReadyAt = append(into.ReadyAt, *readyAt)
			}
		}
		return rows.Err()
	}
}

// DueRuns is the answer to a claim of runs that are parked.
type DueRuns struct {
	Claimed []Claimed
	Left    []Deadline // not due yet, or their rows are held at the moment
}

// ClaimWaiting makes worker the owner of those of the runs that are parked and due.
func (s *Store) ClaimWaiting(b *pgx.Batch, ids []string, worker int64, into *DueRuns) {
	b.Queue(s.queries.Get("ClaimWaiting"), ids, worker).Query(func(rows pgx.Rows) error {
		*into = DueRuns{}
		run := Claimed{Worker: worker}
		var input, trace *string
		var lateMicros, untilMicros *int64
		var heir *bool
		_, err := pgx.ForEachRow(rows, []any{&run.ID, &run.Workflow, &run.Token, &input, &trace, &lateMicros, &untilMicros, &heir}, func() error {
			if untilMicros != nil {
				left := Deadline{Fence: Fence{ID: run.ID, Token: run.Token}, Until: bounds.Micros(*untilMicros)}
				into.Left = append(into.Left, left)
				return nil
			}
			run.Input, run.Trace, run.Late = bytes(input), bytes(trace), time.Duration(orZero(lateMicros))*time.Microsecond
			run.Heir = orZero(heir)
			into.Claimed = append(into.Claimed, run)
			return nil
		})
		return err
	})
}

// Fence names a run as its owner knows it. What a worker writes of a run is written only if the database says the same of its
// owner: token and worker. The token alone does not do: a database that has lost its last commits gives a token out again.
type Fence struct {
	ID     string
	Token  int64
	Worker int64
}

// Owner returns the worker that has the run.
func (f Fence) Owner() int64 { return f.Worker }

// workerOf returns the one worker that rows are written by; rows from outside, without a run, name none.
func workerOf[Row interface{ Owner() int64 }](rows []Row) int64 {
	for _, row := range rows {
		if worker := row.Owner(); worker != 0 {
			return worker
		}
	}
	return 0
}

// Run names the run.
func (f Fence) Run() string { return f.ID }

// Named is a run and its workflow.
type Named struct {
	ID       string
	Workflow string
}

// ReleaseRuns gives owned runs back: they are ready for anyone. released is called with each that was still owned.
func (s *Store) ReleaseRuns(b *pgx.Batch, rows []Fence, released func(Named)) {
	b.Queue(s.queries.Get("ReleaseRuns"),
		column(rows, func(r Fence) string { return r.ID }),
		column(rows, func(r Fence) int64 { return r.Token }),
		workerOf(rows),
	).Query(eachNamed(released))
}

// LetGo notes that this worker no longer holds these parked runs in memory.
func (s *Store) LetGo(b *pgx.Batch, rows []Fence) {
	b.Queue(s.queries.Get("LetGo"),
		column(rows, func(r Fence) string { return r.ID }),
		column(rows, func(r Fence) int64 { return r.Token }),
		workerOf(rows))
}

func eachNamed(do func(Named)) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var run Named
		_, err := pgx.ForEachRow(rows, []any{&run.ID, &run.Workflow}, func() error { do(run); return nil })
		return err
	}
}

// Finish is the end of a run.
type Finish struct {
	Fence
	Status string
	Output []byte
	Error  []byte
}

// FinishRuns ends owned runs; ended is called with the id of each that was still owned.
func (s *Store) FinishRuns(b *pgx.Batch, rows []Finish, ended func(id string)) {
	if len(rows) == 1 {
		r := rows[0]
		b.Queue(s.queries.Get("FinishRun"), r.ID, r.Token, r.Status, text(r.Output), text(r.Error), r.Worker).Query(eachID(ended))
		return
	}
	b.Queue(s.queries.Get("FinishRuns"),
		column(rows, func(r Finish) string { return r.ID }),
		column(rows, func(r Finish) int64 { return r.Token }),
		column(rows, func(r Finish) string { return r.Status }),
		column(rows, func(r Finish) *string { return text(r.Output) }),
		column(rows, func(r Finish) *string { return text(r.Error) }),
		workerOf(rows),
	).Query(eachID(ended))
}

// Continue is a run that ends and goes on as a new one.
type Continue struct {
	Fence
	NextID string
	Input  []byte
}

// ContinueRuns ends owned runs and adds those that they go on as; ended is called with the id of each that was still owned.
func (s *Store) ContinueRuns(b *pgx.Batch, rows []Continue, ended func(id string)) {
	b.Queue(s.queries.Get("ContinueRuns"),
		column(rows, func(r Continue) string { return r.ID }),
		column(rows, func(r Continue) int64 { return r.Token }),
		column(rows, func(r Continue) string { return r.NextID }),
		column(rows, func(r Continue) *string { return text(r.Input) }),
		workerOf(rows),
	).Query(eachID(ended))
}

// Held is a run in memory that should not be there, or not like this.
type Held struct {
	Fence
	Status string
	Cancel []byte // why it is to be cancelled; nil: it is not
}

// HeldRuns finds, of the runs that a worker has in memory, those that are to be cancelled, have ended or belong to others.
func (s *Store) HeldRuns(b *pgx.Batch, rows []Fence, into *[]Held) {
	b.Queue(s.queries.Get("HeldRuns"),
		column(rows, func(r Fence) string { return r.ID }),
		column(rows, func(r Fence) int64 { return r.Token }),
		workerOf(rows),
	).Query(func(found pgx.Rows) error {
		*into = nil
		var held Held
		var cancel *string
		_, err := pgx.ForEachRow(found, []any{&held.ID, &held.Status, &held.Token, &held.Worker, &cancel}, func() error {
			held.Cancel = bytes(cancel)
			*into = append(*into, held)
			return nil
		})
		return err
	})
}

// OwnedRuns lists the runs that the database says worker owns, with their workflows.
func (s *Store) OwnedRuns(b *pgx.Batch, worker int64, into map[Fence]string) {
	b.Queue(s.queries.Get("OwnedRuns"), worker).Query(func(rows pgx.Rows) error {
		clear(into)
		fence := Fence{Worker: worker}
		var workflow string
		_, err := pgx.ForEachRow(rows, []any{&fence.ID, &fence.Token, &workflow}, func() error {
			into[fence] = workflow
			return nil
		})
		return err
	})
}

// eachID calls do with the id in each row.
func eachID(do func(id string)) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		var id string
		_, err := pgx.ForEachRow(rows, []any{&id}, func() error { do(id); return nil })
		return err
	}
}
