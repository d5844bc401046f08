// Package journal is the memory of one run: the commands its workflow has issued, in order, and what came of them.
//
// A position is the place of a command in that order, counted from 1. Replaying a workflow issues the same commands at the
// same positions; the journal answers them from history and notices when a command is not the one recorded. It knows no
// time, no database and no goroutine.
package journal

import (
	"fmt"
	"sort"
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
	Failing      Kind = "failing"
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

func (e *DivergenceError) Error() string {
	if e.EndedWithoutIssuing {
		return fmt.Sprintf("replay diverged at position %d: history holds %s %q, the workflow ended instead; deploy the code that wrote this history", e.Position, e.WantKind, e.WantName)
	}
	return fmt.Sprintf("replay diverged at position %d: history holds %s %q, the workflow issued %s %q; deploy the code that wrote this history", e.Position, e.WantKind, e.WantName, e.GotKind, e.GotName)
}

// Journal is used by one goroutine at a time.
type Journal struct {
	records  []Record
	issued   int32
	attempts map[int32]int
}

// New returns a journal over the rows of history, which may come in any order, and the number of failed attempts of the
// steps that were still being retried. It returns an error if a position is missing or there twice.
func New(records []Record, attempts map[int32]int) (*Journal, error) {
	sorted := append([]Record(nil), records...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Position < sorted[j].Position })
	for i, record := range sorted {
		if record.Position != int32(i)+1 {
			return nil, fmt.Errorf("history is damaged: position %d found where %d belongs", record.Position, i+1)
		}
	}
	return &Journal{records: sorted, attempts: attempts}, nil
}

// Issue takes the next position for a command. If history has it, the record is returned and recorded is true; a record of
// another kind or name gives a *DivergenceError.
func (j *Journal) Issue(kind Kind, name string) (position int32, record Record, recorded bool, err error) {
	position = j.issued + 1
	if int(position) > len(j.records) {
		j.issued = position
		return position, Record{}, false, nil
	}
	record = j.records[position-1]
	if record.Kind != kind || record.Name != name {
		return position, record, true, &DivergenceError{Position: position, WantKind: record.Kind, WantName: record.Name, GotKind: kind, GotName: name}
	}
	j.issued = position
	return position, record, true, nil
}

// Replaying reports whether the next command is answered from history.
func (j *Journal) Replaying() bool { return int(j.issued) < len(j.records) }

// Peek returns the record of the next command without issuing it; ok is false at the end of history.
func (j *Journal) Peek() (record Record, ok bool) {
	if !j.Replaying() {
		return Record{}, false
	}
	return j.records[j.issued], true
}

// Issued returns the position of the last command.
func (j *Journal) Issued() int32 { return j.issued }

// Attempts returns how many attempts of the step at position have failed so far.
func (j *Journal) Attempts(position int32) int { return j.attempts[position] }

// End checks that the workflow, which has returned, issued every recorded command.
func (j *Journal) End() error {
	record, more := j.Peek()
	if !more {
		return nil
	}
	return &DivergenceError{Position: record.Position, WantKind: record.Kind, WantName: record.Name, EndedWithoutIssuing: true}
}

// Withdraw gives back the position of the last command, which was not carried out and left no record.
func (j *Journal) Withdraw() { j.issued-- }
