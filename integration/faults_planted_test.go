package integration_test

import (
	"slices"
	"strings"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/planted"
)

// faultsPlants says which cell finds a planted defect, and by what.
var faultsPlants = map[planted.Defect]struct {
	row    faultsStatement
	column string
	want   string // part of what is wrong
}{
	planted.LostFlushFailsStream: {faultsStatement{"AppendRecord", " engine"}, "LongCut", "want 1 at most"}, // of many flushes one has both
	planted.RecordGivenUp:        {faultsStatement{"AppendRecord", " engine"}, "LongDiskFull", "want 1 at most"},
	planted.FenceWithoutWorker:   {want: "recorded by the first"},                                               // by driveFence
	planted.WakeForgotten:        {faultsStatement{"WakeRun", ""}, "LongDiskFull", faultsPal + " has received"}, // and then no more
}

// sufferPlant drives the world to where a plant must show.
func (w *faultsWorld) sufferPlant(defect planted.Defect) []string {
	w.t.Helper()
	plant := faultsPlants[defect]
	if plant.column == "" {
		return w.sufferFence()
	}
	return w.sufferCell(plant.row, faultsColumns[slices.IndexFunc(faultsColumns, func(c faultsColumn) bool { return c.Name == plant.column })])
}

func (w *faultsWorld) sufferFence() []string {
	w.t.Helper()
	w.desk = w.startDesk()
	if err := w.driveFence(); err != nil {
		return []string{err.Error()}
	}
	return nil
}

// After commits that were lost (a failover to an asynchronous standby, a restore) another worker can have a run under the
// token that its former owner knows.
func TestAnotherWorkersRunIsNotWrittenUnderTheSameToken(t *testing.T) {
	t.Parallel()
	w := newFaultsWorld(t)
	w.complain(w.sufferFence())
}

// A matrix that cannot fail proves nothing: it passes as the engine is, and finds each defect that is planted in it. The
// defects are the process's, so this test is not parallel.
func TestFaultMatrixFindsPlantedDefects(t *testing.T) { //nolint:paralleltest // see above
	defects := planted.All()
	for _, defect := range defects[:pgtest.Soak(len(defects), 1)] {
		want := faultsPlants[defect].want
		t.Run(defect.String(), func(t *testing.T) {
			if pgtest.Soak(1, 0) == 1 { // else the undisturbed world and those of all statements tell
				t.Run("without it", func(t *testing.T) {
					w := newFaultsWorld(t)
					w.complain(w.sufferPlant(defect))
				})
			}
			t.Run("with it", func(t *testing.T) {
				w := newFaultsWorldFor(t, faultsPatience/3) // in vain with some
				uproot := planted.Plant(defect)
				defer uproot() // also when the world cannot be opened
				wrong := w.sufferPlant(defect)
				if uproot() == 0 {
					t.Errorf("%s never showed: the engine has no place for it", defect)
				}
				if !slices.ContainsFunc(wrong, func(what string) bool { return strings.Contains(what, want) }) {
					t.Errorf("%s was not found, want %q in\n%s", defect, want, strings.Join(wrong, "\n"))
				}
			})
		})
	}
}
