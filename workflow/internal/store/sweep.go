package store

import (
	"context"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/internal/refusal"
)

// GuardLeaseSession makes the settings of a lease's session for as long as conn lasts: see GuardLease. It reports false, having set
// nothing, if conn leads to a pooler that lends one server connection to many.
func (s *Store) GuardLeaseSession(ctx context.Context, conn *pgx.Conn, lockTimeout, statementTimeout time.Duration) (direct bool, err error) {
	rows, err := conn.Query(ctx, s.queries.Get("GuardLease"), milliseconds(lockTimeout), milliseconds(statementTimeout), int64(conn.PgConn().PID()))
	if err != nil {
		return false, refusal.Public(err)
	}
	return refusal.Answer(pgx.CollectExactlyOneRow(rows, pgx.RowTo[bool]))
}

// GuardLease adds the same settings for the rest of a transaction: a lock is waited for lockTimeout at most, a statement ends after
// statementTimeout, and what the role or the database sets of such things does not count.
func (s *Store) GuardLease(b *pgx.Batch, lockTimeout, statementTimeout time.Duration) {
	b.Queue(s.queries.Get("GuardLease"), milliseconds(lockTimeout), milliseconds(statementTimeout), int64(0))
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%dms", max(d.Milliseconds(), 1)) }

// RegisterWorker adds a worker of these workflows with a lease under an id of its own choice. now is told the time, and until is when the lease ends, both
// by the database's clock in microseconds since 1970.
func (s *Store) RegisterWorker(b *pgx.Batch, label string, listening bool, lease time.Duration, id int64, workflows []string, now func(micros int64), until *int64) {
	b.Queue(s.queries.Get("RegisterWorker"), label, listening, lease.Microseconds(), id, workflows).QueryRow(func(row pgx.Row) error {
		var micros int64
		if err := row.Scan(&micros, until); err != nil {
			return err
		}
		now(micros)
		return nil
	})
}

// Beat is the answer to a heartbeat.
type Beat struct {
	Until      *int64         // when the lease ends now, in microseconds since 1970; nil: it had run out
	NextExpiry *time.Duration // until the first lease of another worker ends, which may have ended; nil when there is no other
	Others     int            // workers beside this one
}

// Heartbeat renews a lease. now is told the time, in microseconds since 1970.
func (s *Store) Heartbeat(b *pgx.Batch, worker int64, listening bool, lease time.Duration, beat *Beat, now func(micros int64)) {
	b.Queue(s.queries.Get("Heartbeat"), worker, lease.Microseconds(), listening).QueryRow(func(row pgx.Row) error {
		var clock int64
		var micros *int64
		if err := row.Scan(&beat.Until, &micros, &beat.Others, &clock); err != nil {
			return err
		}
		now(clock)
		beat.NextExpiry = nil
		if micros != nil {
			expiry := bounds.Micros(*micros)
			beat.NextExpiry = &expiry
		}
		return nil
	})
}

// LeaveWorker removes a worker that owns nothing any more. One that still owns runs is noted as having left, and theirs until its
// lease ends.
func (s *Store) LeaveWorker(b *pgx.Batch, worker int64) {
	b.Queue(s.queries.Get("LeaveWorker"), worker)
}

// SayLived notes of workers that have lost their leases that they did not die.
func (s *Store) SayLived(b *pgx.Batch, workers []int64) {
	b.Queue(s.queries.Get("SayLived"), workers)
}

// Lost is a run that a worker had when it lost its lease.
type Lost struct {
	Fence
	UntilMicros int64 // when the lease ended, by the database's clock, since 1970
}

// TakenBack is a run that was taken from a worker that lived.
type TakenBack struct {
	Named
	Skipped bool // its row was held by another transaction: ask again
	Counted bool // a death had been counted
	Freed   bool // it was stuck for that, and is ready now
}

// TakeBackDeaths has no death counted for runs that were taken from workers which lived. SayLived must have been committed.
func (s *Store) TakeBackDeaths(b *pgx.Batch, rows []Lost, into *[]TakenBack) {
	b.Queue(s.queries.Get("TakeBackDeaths"),
		column(rows, func(r Lost) string { return r.ID }),
		column(rows, func(r Lost) int64 { return r.Token }),
		column(rows, func(r Lost) int64 { return r.Worker }),
		column(rows, func(r Lost) int64 { return r.UntilMicros }),
	).Query(func(found pgx.Rows) error {
		*into = nil
		var run TakenBack
		var workflow *string
		_, err := pgx.ForEachRow(found, []any{&run.ID, &workflow, &run.Counted, &run.Freed}, func() error {
			run.Workflow, run.Skipped = "", workflow == nil
			if workflow != nil {
				run.Workflow = *workflow
			}
			*into = append(*into, run)
			return nil
		})
		return err
	})
}

// TakenOver is a run whose worker has died.
type TakenOver struct {
	Named
	Token int64
	Stuck bool           // too many have
	Until *time.Duration // it waits for so long, because several have; nil: it is ready, or stuck
}

// TakeOver makes up to limit runs of each dead worker ready and removes dead workers that own nothing. A full look finds the
// runs of workers that nothing else is known of, too. A run with which the maxDeaths-th worker in a row has died, having
// recorded nothing, becomes stuck because of cause; from the second on it waits before it is executed again. Workers that have left or
// have said that they lived count for nothing.
func (s *Store) TakeOver(b *pgx.Batch, limit int, full bool, maxDeaths int, cause []byte, into *[]TakenOver) {
	b.Queue(s.queries.Get("TakeOver"), limit, full, maxDeaths, string(cause)).Query(func(rows pgx.Rows) error {
		*into = (*into)[:0]
		var run TakenOver
		var micros *int64
		_, err := pgx.ForEachRow(rows, []any{&run.ID, &run.Workflow, &run.Token, &run.Stuck, &micros}, func() error {
			run.Until = nil
			if micros != nil {
				until := bounds.Micros(*micros)
				run.Until = &until
			}
			*into = append(*into, run)
			return nil
		})
		return err
	})
	b.Queue(s.queries.Get("BuryWorkers"))
}

// Page is where a sweep through the mailbox has come to.
type Page struct {
	First int64 // the first message looked at; 0: there was none
	Last  int64 // the last message looked at
	Full  bool  // there may be more
}

// Roused is what a look at mail has found.
type Roused struct {
	Runs      []Named  // made ready
	Held      []string // runs that were not, because their rows are held at the moment
	HeldOn    []string // the channels on which they have messages, as far as it is said
	Forwarded []Sent   // sent to a run that has continued as new, by an older build, and for its successor now
	Heirs     []string // what the runs that were asked about have continued as, where that lives
	More      bool     // there may be others, which a sweep through the mailbox finds
}

// SweepMail makes parked runs with mail ready, and has mail follow runs that continued as new, looking at limit messages after
// page.Last.
func (s *Store) SweepMail(b *pgx.Batch, page *Page, limit int, grace time.Duration, into *Roused) {
	b.Queue(s.queries.Get("SweepMail"), page.Last, limit, grace.Microseconds()).Query(func(rows pgx.Rows) error {
		*into = Roused{}
		var first, last *int64
		var count int64
		var found rousedRow
		_, err := pgx.ForEachRow(rows, append([]any{&first, &last, &count}, found.fields()...), func() error {
			if last != nil {
				page.First, page.Last = *first, *last
			}
			page.Full = count == int64(limit)
			into.add(found)
			return nil
		})
		return err
	})
}

// SweepMailFor does the same for these runs and the subscribers of these channels, up to limit of each, those in a listening
// worker's memory left out. since: where the messages for whoever competes begin, for each channel.
func (s *Store) SweepMailFor(b *pgx.Batch, runs, channels []string, since []int64, limit int, into *Roused) {
	b.Queue(s.queries.Get("SweepMailFor"), runs, channels, since, limit).Query(func(rows pgx.Rows) error {
		*into = Roused{}
		var found rousedRow
		var heir *bool
		_, err := pgx.ForEachRow(rows, append([]any{&into.More, &heir}, found.fields()...), func() error {
			if heir != nil && *heir {
				into.Heirs = append(into.Heirs, *found.id)
				return nil
			}
			into.add(found)
			return nil
		})
		return err
	})
}

// rousedRow is a run that was made ready, or a message that was forwarded to a run.
type rousedRow struct {
	id, workflow *string
	message      *int64
	channel      *string
}

func (r *rousedRow) fields() []any { return []any{&r.id, &r.workflow, &r.message, &r.channel} }

func (r *Roused) add(row rousedRow) {
	switch {
	case row.message != nil:
		r.Forwarded = append(r.Forwarded, Sent{ID: *row.message, Channel: *row.channel, Receiver: *row.id, Direct: true})
	case row.id != nil && row.workflow == nil:
		r.Held = append(r.Held, *row.id)
		if row.channel != nil {
			r.HeldOn = append(r.HeldOn, *row.channel)
		}
	case row.id != nil:
		r.Runs = append(r.Runs, Named{ID: *row.id, Workflow: *row.workflow})
	}
}

// Overdue is a run whose deadline a sweep has found.
type Overdue struct {
	Named
	Late time.Duration
}

// SweepDeadlines makes up to limit parked runs ready whose deadline has passed: those that wait for messages, or those that
// wait for time alone. It begins at mark; seen is where it has come to, margin before now at most.
func (s *Store) SweepDeadlines(b *pgx.Batch, receiving bool, limit int, grace time.Duration, mark int64, margin time.Duration, seen *int64, into *[]Overdue) {
	b.Queue(s.queries.Get("SweepDeadlines"), receiving, limit, grace.Microseconds(), mark, margin.Microseconds()).Query(func(rows pgx.Rows) error {
		*into = (*into)[:0]
		var id, workflow *string
		var lateMicros *int64
		_, err := pgx.ForEachRow(rows, []any{seen, &id, &workflow, &lateMicros}, func() error {
			if id != nil {
				*into = append(*into, Overdue{Named{ID: *id, Workflow: *workflow}, bounds.Micros(*lateMicros)})
			}
			return nil
		})
		return err
	})
}

// Deadline is when a parked run is due.
type Deadline struct {
	Fence
	Until time.Duration
}

// ColdDeadlines fetches up to limit deadlines within horizon of parked runs of these workflows that no live worker holds in
// memory, from mark on.
func (s *Store) ColdDeadlines(b *pgx.Batch, workflows []string, horizon time.Duration, limit int, mark int64, into *[]Deadline) {
	b.Queue(s.queries.Get("ColdDeadlines"), workflows, horizon.Microseconds(), limit, mark).Query(func(rows pgx.Rows) error {
		*into = (*into)[:0]
		var due Deadline
		var micros int64
		_, err := pgx.ForEachRow(rows, []any{&due.ID, &due.Token, &micros}, func() error {
			due.Until = bounds.Micros(micros)
			*into = append(*into, due)
			return nil
		})
		return err
	})
}

// Glance is what there may be for sweeps to do.
type Glance struct {
	Dead    bool // workers whose lease has run out
	Running bool // runs that somebody executes
	Ready   bool // runs that this worker could claim
	Mail    bool // messages that were not received
	// EventWaits: parked runs that wait for events.
	EventWaits bool
	// Until is the time until the first deadline of a parked run; nil: none has one.
	Until *time.Duration

	NowMicros int64     // the database's time then, since 1970; 0: nobody has looked
	Answered  time.Time // by this process's clock
}

// Everything is a glance of nobody: there may be anything.
func Everything() Glance {
	return Glance{Dead: true, Running: true, Ready: true, Mail: true, EventWaits: true, Until: new(time.Duration)}
}

// Within reports whether there is a deadline within a span.
func (g Glance) Within(span time.Duration) bool { return g.Until != nil && *g.Until <= span }

// Glance looks whether there is anything for sweeps, or for a claim of runs of the workflows, to find.
func (s *Store) Glance(b *pgx.Batch, workflows []string, into *Glance) {
	b.Queue(s.queries.Get("Glance"), workflows).QueryRow(func(row pgx.Row) error {
		var micros *int64
		if err := row.Scan(&into.Dead, &into.Running, &into.Ready, &into.Mail, &into.EventWaits, &micros, &into.NowMicros); err != nil {
			return err
		}
		into.Until, into.Answered = nil, time.Now()
		if micros != nil {
			until := bounds.Micros(*micros)
			into.Until = &until
		}
		return nil
	})
}

// NextDeadline stores the time until the earliest deadline of any parked run, from mark on; nil when none has one.
func (s *Store) NextDeadline(b *pgx.Batch, mark int64, into **time.Duration) {
	b.Queue(s.queries.Get("NextDeadline"), mark).Query(func(rows pgx.Rows) error {
		*into = nil
		var micros int64
		_, err := pgx.ForEachRow(rows, []any{&micros}, func() error {
			until := bounds.Micros(micros)
			*into = &until
			return nil
		})
		return err
	})
}

// DiscardOrphanedMail removes mail that nobody receives any more, looking at up to limit messages after page.Last.
func (s *Store) DiscardOrphanedMail(b *pgx.Batch, page *Page, limit int, removed *int) {
	b.Queue(s.queries.Get("DiscardOrphanedMail"), page.Last, limit, portionBytes).QueryRow(func(row pgx.Row) error {
		var last *int64
		err := row.Scan(&last, &page.Full, removed)
		if last != nil {
			page.Last = *last
		}
		return err
	})
}
