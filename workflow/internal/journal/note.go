package journal

import "fmt"

// The kinds of notes: rows of history about a step that executes beside the workflow and can be undone. Its own position is
// kept for its result, so a note has a negative one, see [NoteAt]. Builds that know no notes load none.
const (
	// Begun says that an attempt of the step may have been under way.
	Begun Kind = "begun"
	// GivenUp says that the last attempt has returned without success after another case of a Select was chosen.
	GivenUp Kind = "given_up"
)

// NoteAt returns the position of a note, of kind Begun or GivenUp, about the step at position.
func NoteAt(kind Kind, position int32) int32 {
	if kind == GivenUp {
		return -2*position - 1
	}
	return -2 * position
}

// Noted returns which step a row is a note about; ok is false if it is none.
func (r Record) Noted() (position int32, ok bool) {
	position = -r.Position / 2
	return position, position > 0 && (r.Kind == Begun || r.Kind == GivenUp) && NoteAt(r.Kind, position) == r.Position
}

type notes struct {
	name           string // of the activity
	begun, givenUp bool
}

// collectNotes returns what is noted about steps, by their positions.
func collectNotes(records []Record) (collected map[int32]notes, err error) {
	for _, record := range records {
		if record.Position > 0 {
			continue
		}
		position, ok := record.Noted()
		if !ok {
			return nil, fmt.Errorf("history is damaged: there is a position %d of kind %s", record.Position, record.Kind)
		}
		if collected == nil {
			collected = map[int32]notes{}
		}
		about := collected[position]
		about.begun = about.begun || record.Kind == Begun
		about.givenUp = about.givenUp || record.Kind == GivenUp
		about.name = record.Name
		collected[position] = about
	}
	return collected, nil
}

// Begun reports whether it is noted that the step at position has begun.
func (j *Journal) Begun(position int32) bool { return j.notes[position].begun }

// EndOfNotes checks that the workflow, which has returned, issued every step of which it is noted that it has begun.
func (j *Journal) EndOfNotes() error {
	first := int32(0)
	for position := range j.notes {
		if position > j.issued && (first == 0 || position < first) {
			first = position
		}
	}
	if first == 0 {
		return nil
	}
	return &DivergenceError{Position: first, WantKind: Activity, WantName: j.notes[first].name, EndedWithoutIssuing: true}
}

// Unsettled reports whether the step at position may have had an effect that nobody knows of: it has begun, has neither a record nor was
// given up, and is not known to wait for its next attempt after one that failed.
func (j *Journal) Unsettled(position int32) bool {
	return j.InDoubt(position) || j.open(position) && j.attempts[position].Until <= 0
}

// InDoubt reports whether it is not only the time that has passed since a failed attempt which leaves the step at position unsettled: an attempt
// has begun, or was about to, of which no failure is recorded.
func (j *Journal) InDoubt(position int32) bool {
	past := j.attempts[position]
	return j.open(position) && (past.Failed == 0 || past.InDoubt)
}

// open reports whether the step at position has begun and is not over.
func (j *Journal) open(position int32) bool {
	about := j.notes[position]
	recorded := int(position) <= len(j.records) && j.records[position-1].Position != 0
	return about.begun && !about.givenUp && !recorded
}
