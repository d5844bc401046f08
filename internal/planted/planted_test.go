package planted_test

import (
	"testing"

	"github.com/romancy-go/romancy/internal/planted"
)

func TestADefectIsThereUntilItIsUprooted(t *testing.T) {
	if planted.Has(planted.WakeForgotten) {
		t.Fatal("a defect is there that nobody has planted")
	}
	uproot := planted.Plant(planted.WakeForgotten)
	if !planted.Has(planted.WakeForgotten) || planted.Has(planted.RecordGivenUp) {
		t.Error("not what was planted is there")
	}
	if shown := uproot(); shown != 1 {
		t.Errorf("it has shown %d times, want once", shown)
	}
	if planted.Has(planted.WakeForgotten) {
		t.Error("it is there although it was uprooted")
	}
}

func TestNoTwoDefectsAtATime(t *testing.T) {
	defer planted.Plant(planted.RecordGivenUp)()
	defer func() {
		if recover() == nil {
			t.Error("a second defect can be planted")
		}
	}()
	planted.Plant(planted.WakeForgotten)
}

func TestDefectsHaveNames(t *testing.T) {
	names := map[string]bool{}
	for _, defect := range planted.All() {
		names[defect.String()] = true
	}
	if len(names) != len(planted.All()) {
		t.Errorf("%d defects have the names %v", len(planted.All()), names)
	}
	if got := planted.Defect(99).String(); got != "Defect(99)" {
		t.Errorf("an unknown defect is called %s", got)
	}
}

func BenchmarkHas(b *testing.B) {
	for b.Loop() {
		if planted.Has(planted.WakeForgotten) {
			b.Fatal("planted")
		}
	}
}
