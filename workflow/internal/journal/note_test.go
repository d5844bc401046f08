package journal_test

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// Notes come in any order among records, have positions of their own, and tell exactly which steps have begun and are not settled.
func TestNotesTellWhichStepsAreUnsettled(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type step struct{ recorded, begun, givenUp bool }
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
			begun := rapid.Bool().Draw(t, "begun")
			return step{rapid.Bool().Draw(t, "recorded"), begun, begun && rapid.Bool().Draw(t, "given up")}
		}), 1, 12).Draw(t, "steps")
		var records []journal.Record
		last := 0
		for i, s := range steps {
			position := int32(i + 1)
			for kind, present := range map[journal.Kind]bool{journal.Begun: s.begun, journal.GivenUp: s.givenUp} {
				if present {
					records = append(records, journal.Record{Position: journal.NoteAt(kind, position), Kind: kind, Name: "book"})
				}
			}
			if s.recorded {
				records = append(records, journal.Record{Position: position, Kind: journal.Activity, Name: "book"})
			}
			if s.recorded || s.begun {
				last = i + 1
			}
		}
		records = rapid.Permutation(records).Draw(t, "records")
		j, err := journal.New(records, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, s := range steps {
			position := int32(i + 1)
			if j.Replaying() != (i < last) {
				t.Fatalf("before position %d it is replaying: %v; the last known is %d", position, j.Replaying(), last)
			}
			if _, _, recorded, err := j.Launch(journal.Activity, "book"); err != nil || recorded != s.recorded {
				t.Fatalf("position %d: %v, %v", position, recorded, err)
			}
			if j.Begun(position) != s.begun || j.Unsettled(position) != (s.begun && !s.givenUp && !s.recorded) {
				t.Fatalf("position %d, %+v: begun %v, unsettled %v", position, s, j.Begun(position), j.Unsettled(position))
			}
			known := slices.ContainsFunc(steps[i+1:], func(s step) bool { return s.recorded || s.begun })
			if err := j.End(); (err != nil) != known {
				t.Fatalf("the workflow may end after position %d: %v", position, err)
			}
		}
	})
}

func TestNotedStepThatIsAnotherDiverges(t *testing.T) {
	t.Parallel()
	j, err := journal.New([]journal.Record{{Position: journal.NoteAt(journal.Begun, 1), Kind: journal.Begun, Name: "book"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, name := range map[journal.Kind]string{journal.Activity: "cancel", journal.Timer: "book"} {
		_, _, _, err := j.Launch(kind, name)
		if diverged, ok := errors.AsType[*journal.DivergenceError](err); !ok || diverged.Position != 1 || diverged.WantName != "book" || diverged.GotName != name {
			t.Errorf("%s %q: %v", kind, name, err)
		}
	}
	if _, _, recorded, err := j.Issue(journal.Activity, "book"); err != nil || recorded {
		t.Errorf("the step that has begun: %v, %v", recorded, err)
	}
}

func TestRowThatIsNoNoteIsDamage(t *testing.T) {
	t.Parallel()
	for _, record := range []journal.Record{
		{Position: -1, Kind: journal.Begun},
		{Position: -1, Kind: journal.GivenUp},
		{Position: -2, Kind: journal.GivenUp},
		{Position: -3, Kind: journal.Begun},
		{Position: -2, Kind: journal.Activity},
	} {
		if _, err := journal.New([]journal.Record{record}, nil); err == nil {
			t.Errorf("%+v was taken", record)
		}
	}
}

// A failed attempt whose next is not due leaves nothing in doubt, unless an attempt came before it of which nobody knows how it ended.
func TestFailedAttemptSettlesAStepUntilTheNextIsDue(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		past               journal.Attempts
		unsettled, inDoubt bool
	}{
		"none":              {journal.Attempts{}, true, true},
		"not due":           {journal.Attempts{Failed: 2, Until: 1}, false, false},
		"due":               {journal.Attempts{Failed: 2, Until: -1}, true, false},
		"not due, in doubt": {journal.Attempts{Failed: 2, Until: 1, InDoubt: true}, true, true},
		"due, in doubt":     {journal.Attempts{Failed: 2, Until: -1, InDoubt: true}, true, true},
	} {
		records := []journal.Record{{Position: journal.NoteAt(journal.Begun, 1), Kind: journal.Begun, Name: "book"}}
		for over, extra := range map[string][]journal.Record{
			"":           nil,
			", recorded": {{Position: 1, Kind: journal.Activity, Name: "book"}},
			", given up": {{Position: journal.NoteAt(journal.GivenUp, 1), Kind: journal.GivenUp, Name: "book"}},
		} {
			j, err := journal.New(append(slices.Clone(records), extra...), map[int32]journal.Attempts{1: test.past})
			if err != nil {
				t.Fatal(err)
			}
			unsettled, inDoubt := test.unsettled && extra == nil, test.inDoubt && extra == nil
			if j.Unsettled(1) != unsettled || j.InDoubt(1) != inDoubt {
				t.Errorf("%s%s: unsettled %v, in doubt %v; want %v, %v", name, over, j.Unsettled(1), j.InDoubt(1), unsettled, inDoubt)
			}
		}
	}
}
