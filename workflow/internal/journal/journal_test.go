package journal_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

func TestIssueAnswersFromHistoryThenRecordsNewCommands(t *testing.T) {
	t.Parallel()
	j, err := journal.New([]journal.Record{
		{Position: 2, Kind: journal.Timer, Name: "sleep"},
		{Position: 1, Kind: journal.Activity, Name: "charge", Payload: []byte("1")},
	}, map[int32]journal.Attempts{3: {Failed: 2}})
	if err != nil {
		t.Fatal(err)
	}
	position, record, recorded, err := j.Issue(journal.Activity, "charge")
	if err != nil || position != 1 || !recorded || string(record.Payload) != "1" || !j.Replaying() {
		t.Fatalf("first command: %d, %+v, %v, %v", position, record, recorded, err)
	}
	if next, ok := j.Next(); !ok || next.Name != "sleep" {
		t.Fatalf("next is %+v, %v", next, ok)
	}
	if err := j.End(); err == nil {
		t.Fatal("the workflow may end before its history does")
	}
	if _, _, recorded, err = j.Issue(journal.Timer, "sleep"); err != nil || !recorded || j.Replaying() {
		t.Fatalf("second command: %v, %v", recorded, err)
	}
	if err := j.End(); err != nil {
		t.Fatal(err)
	}
	position, _, recorded, err = j.Issue(journal.Activity, "ship")
	if err != nil || position != 3 || recorded || j.Attempts(position).Failed != 2 || j.Issued() != 3 {
		t.Fatalf("third command: %d, %v, %v, %d attempts", position, recorded, err, j.Attempts(position).Failed)
	}
	j.Withdraw()
	if position, _, _, _ = j.Issue(journal.Activity, "ship again"); position != 3 {
		t.Fatalf("a withdrawn command left its position taken: %d", position)
	}
}

func TestDivergenceNamesPositionExpectedAndGot(t *testing.T) {
	t.Parallel()
	j, err := journal.New([]journal.Record{{Position: 1, Kind: journal.Activity, Name: "charge"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, issued := range []struct {
		kind journal.Kind
		name string
	}{{journal.Activity, "refund"}, {journal.Timer, "charge"}} {
		_, _, _, err := j.Issue(issued.kind, issued.name)
		if _, diverged := errors.AsType[*journal.DivergenceError](err); !diverged {
			t.Fatalf("%v: got %v", issued, err)
		}
		for _, said := range []string{"position 1", `activity "charge"`, string(issued.kind) + ` "` + issued.name + `"`} {
			if !strings.Contains(err.Error(), said) {
				t.Errorf("%q does not say %s", err, said)
			}
		}
		if j.Issued() != 0 {
			t.Error("a diverging command took its position")
		}
	}
	if err := j.End(); err == nil || !strings.Contains(err.Error(), "ended instead") {
		t.Errorf("ended before history: %v", err)
	}
}

func TestDamagedHistoryIsRefused(t *testing.T) {
	t.Parallel()
	for name, records := range map[string][]journal.Record{
		"twice":  {{Position: 1}, {Position: 1}},
		"start":  {{Position: 0}},
		"beyond": {{Position: 1}, {Position: 2_000_000_000}},
	} {
		if _, err := journal.New(records, nil); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestOnlyLaunchedStepsMayBeMissing(t *testing.T) {
	t.Parallel()
	remembered := func() *journal.Journal {
		j, err := journal.New([]journal.Record{{Position: 2, Kind: journal.Activity, Name: "b"}, {Position: 4, Kind: journal.Cancelled}}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	j := remembered()
	if position, _, recorded, err := j.Launch(journal.Activity, "a"); err != nil || recorded || position != 1 || !j.Replaying() {
		t.Fatalf("launched into a gap: %d, %v, %v", position, recorded, err)
	}
	if _, _, recorded, err := j.Launch(journal.Activity, "b"); err != nil || !recorded {
		t.Fatalf("launched onto a record: %v, %v", recorded, err)
	}
	if _, _, _, err := j.Issue(journal.Timer, "sleep"); err == nil || j.Issued() != 2 {
		t.Fatalf("a blocking command may not be missing in the middle of history; issued %d", j.Issued())
	}
	if _, _, _, err := j.Launch(journal.Activity, "c"); err != nil {
		t.Fatal(err)
	}
	if _, record, recorded, err := j.Issue(journal.Receive, "mail"); err != nil || !recorded || record.Kind != journal.Cancelled {
		t.Fatalf("cancelled in place of a receive: %+v, %v, %v", record, recorded, err)
	}
}

func FuzzJournalReplaysWhatItIssued(f *testing.F) {
	f.Add([]byte{0, 1, 2, 3}, []byte{0, 1, 2, 3})
	f.Add([]byte{0, 1}, []byte{0, 2, 1})
	kinds := []journal.Kind{journal.Activity, journal.Timer, journal.Receive, journal.Send}
	f.Fuzz(func(t *testing.T, recorded, issued []byte) {
		var records []journal.Record
		for i, b := range recorded {
			records = append(records, journal.Record{Position: int32(i) + 1, Kind: kinds[b%4], Name: string(rune('a' + b/4))})
		}
		j, err := journal.New(records, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i, b := range issued {
			position, record, fromHistory, err := j.Issue(kinds[b%4], string(rune('a'+b/4)))
			if int(position) != i+1 {
				t.Fatalf("command %d got position %d", i+1, position)
			}
			same := i < len(recorded) && recorded[i] == b
			switch {
			case i >= len(recorded):
				if err != nil || fromHistory {
					t.Fatalf("beyond history: %v, %v", fromHistory, err)
				}
			case same:
				if err != nil || record.Position != position {
					t.Fatalf("the recorded command is refused: %v", err)
				}
			default:
				if err == nil {
					t.Fatal("another command than the recorded one is accepted")
				}
				return
			}
		}
		if ended := j.End() == nil; ended != (len(issued) >= len(recorded)) {
			t.Fatalf("%d of %d commands issued, and End says %v", len(issued), len(recorded), ended)
		}
	})
}

func TestFailedSideEffectAnswersThatSideEffectAlone(t *testing.T) {
	t.Parallel()
	j, err := journal.New([]journal.Record{{Position: 1, Kind: journal.SideEffectFailed, Name: "draw"}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	for kind, name := range map[journal.Kind]string{journal.SideEffect: "other", journal.Activity: "draw"} {
		if _, _, _, err := j.Issue(kind, name); err == nil {
			t.Errorf("it answers %s %q", kind, name)
		}
	}
	if _, record, recorded, err := j.Issue(journal.SideEffect, "draw"); err != nil || !recorded || record.Kind != journal.SideEffectFailed {
		t.Errorf("%+v, %v, %v", record, recorded, err)
	}
}
