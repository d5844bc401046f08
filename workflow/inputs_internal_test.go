package workflow

import (
	"fmt"
	"testing"

	"pgregory.net/rapid"
)

// A swap is found as soon as one is proved, and never else: a step is given what is recorded for another of its activity, which is given
// something else itself.
func TestSwapsAreFoundExactlyWhenTheyAreProved(t *testing.T) {
	t.Parallel()
	rapid.Check(t, func(t *rapid.T) {
		type replayed struct{ given, recorded input }
		steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) replayed {
			activity := rapid.SampledFrom([]string{"charge", "ship"}).Draw(t, "activity")
			digest := rapid.SampledFrom([]string{"1", "2", "3", "4"})
			return replayed{input{activity, digest.Draw(t, "given")}, input{activity, digest.Draw(t, "recorded")}}
		}), 0, 8).Draw(t, "steps")
		proves := func(to, of replayed) bool {
			return to.given == of.recorded && to.given != to.recorded && of.given != of.recorded
		}
		var compared inputs
		for i, step := range steps {
			if step.given == step.recorded {
				continue
			}
			want := false
			for _, before := range steps[:i] {
				want = want || proves(step, before) || proves(before, step)
			}
			to, of := compared.differ(int32(i+1), step.given, step.recorded)
			if found := to != 0; found != want || found && !proves(steps[to-1], steps[of-1]) {
				t.Fatalf("step %d: found %d given what is at %d, want one: %t, among %+v", i+1, to, of, want, steps[:i+1])
			}
			if want {
				return // the run is stuck
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
