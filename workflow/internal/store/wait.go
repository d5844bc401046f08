package store

import (
	"encoding/json"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/bounds"
	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// What becomes of a run that waits, or of an attempt to wake it.
const (
	GotMessage = "message"   // it has the message and goes on
	Due        = "due"       // its deadline has passed and it goes on
	Parked     = "parked"    // it waits
	Nothing    = "nothing"   // it was not to park, and there is nothing for it
	Nudged     = "nudged"    // it goes on for a reason that is not recorded
	Cancelled  = "cancelled" // it is to be cancelled, and goes on to hear of it
	Landed     = "landed"    // a step that executes beside it has ended, which the database is not asked about
)

// Wait is a run that has come to a wait.
type Wait struct {
	Fence
	Position      int32  // where the outcome is recorded; 0: a sleep, which has none
	Channel       string // empty: waits for time alone
	Competing     bool   // subscribed to Channel in competing mode
	TimerPosition int32  // where the new deadline is recorded; 0: it is not new, or there is none
	TimerName     string
	DelayMicros   *int64 // the deadline, from Asked
	AtMicros      *int64 // the deadline, since 1970
	Since         int64  // competing: where the messages for whoever competes begin

	Asked time.Time // when it came to the wait, by this process's clock; zero: when this is written

	Kind        journal.Kind // of the record at Position
	Channels    []string     // all that it listens to when parked, if that is more than Channel
	NudgeMicros *int64       // when to wake it besides, since 1970, without a record
	Stay        bool         // do not park
	Heeds       bool         // if it is to be cancelled, say so
	Heir        bool         // the run has the mail of a line
}

// delayMicros is what is left of the delay: the time in which the wait was queued to be written counts.
func (w Wait) delayMicros() *int64 {
	if w.DelayMicros == nil || w.Asked.IsZero() {
		return w.DelayMicros
	}
	left := *w.DelayMicros - time.Since(w.Asked).Microseconds()
	return &left
}

// Waited is what came of it.
type Waited struct {
	Outcome         string
	Message         []byte // the receive record
	FiresAtMicros   *int64 // the deadline, since 1970; nil: none
	RemainingMicros *int64 // until the deadline, or until it is nudged
	Shared          int64  // the message was one for whoever competes: its id

	NowMicros int64     // when that was said, by the database's clock, since 1970; 0 of a retry
	Answered  time.Time // when the answer had come, by this process's clock
}

func (w Waited) clone() Waited {
	if w.FiresAtMicros != nil {
		fires, remaining := *w.FiresAtMicros, *w.RemainingMicros
		w.FiresAtMicros, w.RemainingMicros = &fires, &remaining
	}
	return w
}

// WaitRuns lets owned runs take their message, pass their deadline, or park. waited is called for each still owned.
func (s *Store) WaitRuns(b *pgx.Batch, rows []Wait, waited func(ord int, result Waited)) {
	if len(rows) == 1 && !rows[0].Competing && !rows[0].Heir {
		r := rows[0]
		b.Queue(s.queries.Get("WaitRun"), r.ID, r.Token, orNull(r.Position), orNull(r.Channel), orNull(r.TimerPosition), orNull(r.TimerName),
			r.delayMicros(), r.AtMicros, string(r.Kind), list(r.Channels), r.NudgeMicros, r.Stay, r.Heeds, r.Worker).Query(eachWaited(waited))
		return
	}
	b.Queue(s.queries.Get("WaitRuns"),
		column(rows, func(r Wait) string { return r.ID }),
		column(rows, func(r Wait) int64 { return r.Token }),
		column(rows, func(r Wait) *int32 { return orNull(r.Position) }),
		column(rows, func(r Wait) *string { return orNull(r.Channel) }),
		column(rows, func(r Wait) bool { return r.Competing }),
		column(rows, func(r Wait) *int32 { return orNull(r.TimerPosition) }),
		column(rows, func(r Wait) *string { return orNull(r.TimerName) }),
		column(rows, Wait.delayMicros),
		column(rows, func(r Wait) *int64 { return r.AtMicros }),
		column(rows, func(r Wait) int64 { return r.Since }),
		column(rows, func(r Wait) string { return string(r.Kind) }),
		column(rows, func(r Wait) *string { return list(r.Channels) }),
		column(rows, func(r Wait) *int64 { return r.NudgeMicros }),
		column(rows, func(r Wait) bool { return r.Stay }),
		column(rows, func(r Wait) bool { return r.Heeds }),
		workerOf(rows),
	).Query(eachWaited(waited))
}

// Wake is a parked run in memory that may go on.
type Wake struct {
	Fence
	Position  int32
	Channel   string
	Competing bool
	Since     int64 // competing: where the messages for whoever competes begin
	Kind      journal.Kind
	Nudged    bool // the moment it wakes at is a nudge
	Heir      bool // the run has the mail of a line
}

// WakeRuns makes their worker the owner of those parked runs whose message or deadline is there; woken is called for each that
// is still parked, also when neither is.
func (s *Store) WakeRuns(b *pgx.Batch, rows []Wake, woken func(ord int, result Waited)) {
	if len(rows) == 1 && !rows[0].Competing && !rows[0].Heir {
		r := rows[0]
		b.Queue(s.queries.Get("WakeRun"), r.ID, r.Token, orNull(r.Position), orNull(r.Channel), r.Worker, string(r.Kind), r.Nudged).Query(eachWaited(woken))
		return
	}
	b.Queue(s.queries.Get("WakeRuns"),
		column(rows, func(r Wake) string { return r.ID }),
		column(rows, func(r Wake) int64 { return r.Token }),
		column(rows, func(r Wake) *int32 { return orNull(r.Position) }),
		column(rows, func(r Wake) *string { return orNull(r.Channel) }),
		column(rows, func(r Wake) bool { return r.Competing }),
		workerOf(rows),
		column(rows, func(r Wake) int64 { return r.Since }),
		column(rows, func(r Wake) string { return string(r.Kind) }),
		column(rows, func(r Wake) bool { return r.Nudged }),
	).Query(eachWaited(woken))
}

func eachWaited(do func(ord int, result Waited)) func(pgx.Rows) error {
	return func(rows pgx.Rows) error {
		for rows.Next() {
			var ord int
			result := Waited{Answered: time.Now()}
			var message *string
			var shared *int64
			if err := rows.Scan(&ord, &result.Outcome, &message, &result.FiresAtMicros, &result.RemainingMicros, &shared, &result.NowMicros); err != nil {
				return err
			}
			if shared != nil {
				result.Shared = *shared
			}
			result.Message = bytes(message)
			do(ord-1, result)
		}
		return rows.Err()
	}
}

// LookForMail calls found with the index of each of the parked runs that has mail.
func (s *Store) LookForMail(b *pgx.Batch, rows []Wake, found func(ord int)) {
	b.Queue(s.queries.Get("LookForMail"),
		column(rows, func(r Wake) string { return r.ID }),
		column(rows, func(r Wake) string { return r.Channel }),
		column(rows, func(r Wake) bool { return r.Competing }),
		column(rows, func(r Wake) int64 { return r.Since }),
		column(rows, func(r Wake) bool { return r.Heir }),
	).Query(func(rows pgx.Rows) error {
		var ord int
		_, err := pgx.ForEachRow(rows, []any{&ord}, func() error { found(ord - 1); return nil })
		return err
	})
}

// ParkedRun is what has become of a run that a worker has, or had, parked in memory.
type ParkedRun struct {
	Fence
	Status string
	Until  *time.Duration // until it is due; nil: it has no deadline
}

// ParkedRuns fetches what has become of runs; those that are gone are left out.
func (s *Store) ParkedRuns(b *pgx.Batch, ids []string, into *[]ParkedRun) {
	b.Queue(s.queries.Get("ParkedRuns"), ids).Query(func(rows pgx.Rows) error {
		*into = nil
		var found ParkedRun
		var micros *int64
		_, err := pgx.ForEachRow(rows, []any{&found.ID, &found.Status, &found.Token, &found.Worker, &micros}, func() error {
			found.Until = nil
			if micros != nil {
				until := bounds.Micros(*micros)
				found.Until = &until
			}
			*into = append(*into, found)
			return nil
		})
		return err
	})
}

// RouseRuns makes parked runs ready that their worker has, or had, in memory. held: the ids of those that stay as they are because
// their rows are held at the moment.
func (s *Store) RouseRuns(b *pgx.Batch, rows []Fence, ready *[]Named, held *[]string) {
	b.Queue(s.queries.Get("RouseRuns"),
		column(rows, func(r Fence) string { return r.ID }),
		column(rows, func(r Fence) int64 { return r.Token }),
		workerOf(rows),
	).Query(func(found pgx.Rows) error {
		*ready, *held = nil, nil
		var id string
		var workflow *string
		_, err := pgx.ForEachRow(found, []any{&id, &workflow}, func() error {
			if workflow == nil {
				*held = append(*held, id)
			} else {
				*ready = append(*ready, Named{ID: id, Workflow: *workflow})
			}
			return nil
		})
		return err
	})
}

// list returns names as a JSON array; none is NULL.
func list(names []string) *string {
	if len(names) == 0 {
		return nil
	}
	text, err := json.Marshal(names)
	if err != nil {
		panic(err) // strings always encode
	}
	value := string(text)
	return &value
}

// More asks for the messages that are there besides one just received.
type More struct {
	Fence
	Position  int32
	Channel   string
	Limit     int
	Bytes     int // in all
	Competing bool
	Since     int64
}

// Mail is what a run takes at once: a JSON list of messages, and the highest id among those for whoever competes.
type Mail struct {
	Messages []byte
	Shared   int64
	Left     bool // some for whoever competes were held for a moment and are left
}

// TakeMore takes what is there for one run. took is called if that is still owned.
func (s *Store) TakeMore(b *pgx.Batch, ask More, took func(Mail)) {
	b.Queue(s.queries.Get("TakeMore"), ask.ID, ask.Token, ask.Position, ask.Channel, ask.Limit, ask.Competing, ask.Since, ask.Bytes, ask.Worker).Query(func(rows pgx.Rows) error {
		var messages string
		var shared *int64
		var left bool
		_, err := pgx.ForEachRow(rows, []any{&messages, &shared, &left}, func() error {
			took(Mail{Messages: []byte(messages), Shared: orZero(shared), Left: left})
			return nil
		})
		return err
	})
}
