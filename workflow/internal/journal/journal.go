// Package journal is the memory of one run: the commands its workflow has issued, in order, and what came of them.
//
// A position is the place of a command in that order, counted from 1. Replaying a workflow issues the same commands at the
// same positions; the journal answers them from history and notices when a command is not the one recorded. It knows no
// time, no database and no goroutine.
package journal

import (
	"errors"
	"fmt"
)

// Kind says what sort of command a record belongs to.
type Kind string

// The kinds of commands, as stored in history.kind.
const (
	Activity     Kind = "activity"
	Compensation Kind = "compensation"
	Timer        Kind = "timer"
	Receive      Kind = "receive"
	Publish      Kind = "publish"
	Send         Kind = "send"
	Subscribe    Kind = "subscribe"
	Unsubscribe  Kind = "unsubscribe"
	SideEffect   Kind = "side_effect"
	// SideEffectFailed is a SideEffect that has failed. Its payload is the failure.
	SideEffectFailed Kind = "side_effect_failed"
	Select           Kind = "select"
	ReceiveMore      Kind = "receive_more"
	WaitEvent        Kind = "wait_event"
	SendEvent        Kind = "send_event"
	Failing          Kind = "failing"
	// Cancelled is where the workflow learnt that its run is cancelled. It stands in for whatever command was issued there.
	Cancelled Kind = "cancelled"
)

// Record is one row of history.
type Record struct {
	Position int32
	Kind     Kind
	Name     string
	Payload  []byte // JSON; nil where the command has no result
}

// DivergenceError says that a replayed workflow issued another command than the one recorded at that position: its code
// changed, or it is not deterministic.
type DivergenceError struct {
	Position            int32
	WantKind, GotKind   Kind
	WantName, GotName   string
	EndedWithoutIssuing bool // the workflow returned although history holds more commands
}

// ErrDiverged is what every DivergenceError is.
var ErrDiverged = errors.New("the history does not fit the code")

// Is reports whether target is ErrDiverged.
func (*DivergenceError) Is(target error) bool { return target == ErrDiverged }

func (e *DivergenceError) Error() string {
	if e.EndedWithoutIssuing {
		return fmt.Sprintf("replay diverged at position %d: history holds %s %q, the workflow ended instead; deploy the code that wrote this history", e.Position, e.WantKind, e.WantName)
	}
	return fmt.Sprintf("replay diverged at position %d: history holds %s %q, the workflow issued %s %q; deploy the code that wrote this history", e.Position, e.WantKind, e.WantName, e.GotKind, e.GotName)
}

// Journal is used by one goroutine at a time.
type Journal struct {
	records  []Record // by position - 1; those of position 0 are missing: see Launch
	issued   int32
	attempts map[int32]Attempts
	notes    map[int32]notes // by the position of the step; nil: none
	last     int32           // the last position that history knows of, by a record or a note
}

// Attempts are the failed attempts of a step so far.
type Attempts struct {
	Failed int
	// In microseconds: how long ago the first of them failed, and how long until the next may begin, when history was
	// read; and that moment by the database's clock, since 1970.
	Since, Until, NextAt int64

	InDoubt bool // an attempt came before these of which nobody knows how it ended
}

// New returns a journal over the rows of history, which may come in any order, and the failed attempts of the steps that
// were still being retried. A position may be missing, because steps may execute beside others. It returns an error if one is there twice.
func New(records []Record, attempts map[int32]Attempts) (*Journal, error) {
	var last int32
	noted, err := collectNotes(records)
	if err != nil {
		return nil, err
	}
	for _, record := range records {
		last = max(last, record.Position)
	}
	if int(last) > maxGap*(len(records)+1) {
		return nil, fmt.Errorf("history is damaged: it reaches to position %d with %d records", last, len(records))
	}
	placed := make([]Record, last)
	for _, record := range records {
		if record.Position < 1 {
			continue
		}
		if placed[record.Position-1].Position != 0 {
			return nil, fmt.Errorf("history is damaged: position %d is there twice", record.Position)
		}
		placed[record.Position-1] = record
	}
	for position := range noted {
		last = max(last, position)
	}
	return &Journal{records: placed, attempts: attempts, notes: noted, last: last}, nil
}

// maxGap bounds what a damaged position can make New allocate: more steps than this at a time for each recorded one are beyond reason.
const maxGap = 10_000

// Issue takes the next position for a command. If history has it, the record is returned and recorded is true; a record of
// another kind or name gives a *DivergenceError, unless it is one of kind Cancelled. A command that blocks the workflow is
// recorded before the next is issued, so it is an error if history lacks it and goes on.
func (j *Journal) Issue(kind Kind, name string) (position int32, record Record, recorded bool, err error) {
	position, record, recorded, err = j.Launch(kind, name)
	if err == nil && !recorded && j.Replaying() {
		j.issued--
		return position, record, false, fmt.Errorf("history is damaged: position %d, %s %q, is missing although later ones are there", position, kind, name)
	}
	return position, record, recorded, err
}

// Launch is Issue for what history may go on without: a step that executes beside the workflow, or one that undoes another and
// is to be attempted again although later ones have succeeded.
func (j *Journal) Launch(kind Kind, name string) (position int32, record Record, recorded bool, err error) {
	position = j.issued + 1
	if int(position) <= len(j.records) {
		record = j.records[position-1]
		recorded = record.Position != 0
	}
	if about := j.notes[position]; !recorded && about.begun && (kind != Activity || name != about.name) {
		return position, record, false, &DivergenceError{Position: position, WantKind: Activity, WantName: about.name, GotKind: kind, GotName: name}
	}
	if recorded && !record.answers(kind, name) {
		return position, record, true, &DivergenceError{Position: position, WantKind: record.Kind, WantName: record.Name, GotKind: kind, GotName: name}
	}
	j.issued = position
	return position, record, recorded, nil
}

// answers reports whether the record can be that of such a command.
func (r Record) answers(kind Kind, name string) bool {
	switch r.Kind {
	case Cancelled:
		return true
	case SideEffectFailed:
		return kind == SideEffect && r.Name == name
	default:
		return r.Kind == kind && r.Name == name
	}
}

// Replaying reports whether history goes on after the last command.
func (j *Journal) Replaying() bool { return j.issued < j.last }

// Next returns the first record after the last command; ok is false at the end of history.
func (j *Journal) Next() (record Record, ok bool) {
	for i := int(j.issued); i < len(j.records); i++ {
		if j.records[i].Position != 0 {
			return j.records[i], true
		}
	}
	return Record{}, false
}

// Issued returns the position of the last command.
func (j *Journal) Issued() int32 { return j.issued }

// Attempts returns the failed attempts of the step at position so far.
func (j *Journal) Attempts(position int32) Attempts { return j.attempts[position] }

// End checks that the workflow, which has returned, issued every command that is recorded or noted.
func (j *Journal) End() error {
	record, more := j.Next()
	if !more {
		return j.EndOfNotes()
	}
	return &DivergenceError{Position: record.Position, WantKind: record.Kind, WantName: record.Name, EndedWithoutIssuing: true}
}

// Withdraw gives back the position of the last command, which was not carried out and left no record.
func (j *Journal) Withdraw() { j.issued-- }
