package workflow

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"

	"github.com/romancy-go/romancy/workflow/internal/journal"
)

// Whatever is recorded, of failures, other kinds and former versions, too: an input is found elsewhere exactly if another step of the same
// activity was recorded with it.
func TestInputsAreFoundExactlyWhereTheyAreRecorded(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type given struct {
			kind     journal.Kind
			name, in string
		}
		past := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) given {
			return given{
				rapid.SampledFrom([]journal.Kind{journal.Activity, journal.Compensation, journal.SideEffect, ""}).Draw(t, "kind"),
				rapid.SampledFrom([]string{"charge", "ship"}).Draw(t, "name"), rapid.SampledFrom([]string{"", "1", "2", "3"}).Draw(t, "in"),
			}
		}), 0, 8).Draw(t, "past")
		var records []journal.Record
		for i, was := range past {
			done := stepRecord{Input: was.in}
			if i%3 == 0 {
				done.Error = &failure{Type: "declined"}
			}
			if was.kind != "" { // a step beside the workflow that has not ended
				records = append(records, journal.Record{Position: int32(i + 1), Kind: was.kind, Name: was.name, Payload: done.encode()})
			}
		}
		replayed, err := journal.New(records, nil)
		if err != nil {
			t.Fatal(err)
		}
		var compared inputs
		for range 3 {
			position := rapid.Int32Range(1, 9).Draw(t, "position")
			ask := input{rapid.SampledFrom([]string{"charge", "ship"}).Draw(t, "asked name"), rapid.SampledFrom([]string{"1", "2", "3"}).Draw(t, "asked in")}
			want := int32(0)
			for i, was := range past {
				if at := int32(i + 1); want == 0 && at != position && was.kind == journal.Activity && was.name == ask.activity && was.in == ask.digest {
					want = at
				}
			}
			if got := compared.elsewhere(replayed.Records(), position, ask); got != want {
				t.Fatalf("%+v of position %d was found at %d, want %d, among %+v", ask, position, got, want, past)
			}
		}
	})
}

// Digests tell inputs apart, are the same in every process, and are missing for what cannot be encoded.
func TestDigestsTellInputsApart(t *testing.T) {
	t.Parallel()
	if got := digestOf(7); got != "qkwpYpeW" {
		t.Errorf("the digest of 7 is %q: records of former builds do not match any more", got)
	}
	seen := map[string]int{}
	for n := range 10_000 {
		digest := digestOf(n)
		if before, known := seen[digest]; known || len(digest) != 8 {
			t.Fatalf("%d and %d have the digest %q", before, n, digest)
		}
		seen[digest] = n
	}
	for _, in := range []any{make(chan int), func() {}, panicking{}, map[string]any{"f": func() {}}} {
		if got := digestOf(in); got != "" {
			t.Errorf("%T has the digest %q", in, got)
		}
	}
}

type panicking struct{}

func (panicking) MarshalJSON() ([]byte, error) { panic("not this") }

func TestWhatWasSaidIsNotSaidAgain(t *testing.T) {
	t.Parallel()
	var s said
	for n := range 2 * maxSaid {
		if what := fmt.Sprint(n); !s.first(what) || s.first(what) {
			t.Fatalf("%s was not said exactly once", what)
		}
	}
	if len(s.what) > maxSaid {
		t.Errorf("%d are remembered", len(s.what))
	}
}

type order struct {
	ID       string
	Customer string
	Cents    int64
	Items    []string
}

func BenchmarkDigest(b *testing.B) {
	for name, in := range map[string]any{
		"int": 7, "order": order{"order-1", "c-42", 4200, []string{"a", "b", "c"}}, "1 MB": string(make([]byte, 1<<20)),
	} {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				digestOf(in)
			}
		})
	}
}

func BenchmarkTurn(b *testing.B) {
	r := &run{}
	sleep := func() (err error) {
		before, err := r.enter(commandSleep)
		if err != nil {
			return err
		}
		defer r.complete(before, &err)
		return nil
	}
	for b.Loop() {
		_ = sleep()
	}
}
