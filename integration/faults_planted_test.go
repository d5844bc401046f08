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
	planted.LostFlushFailsStream: {faultsStatement{"AppendRecord", " engine"}, "CutBefore", "want 1 at most"},
	planted.RecordGivenUp:        {faultsStatement{"AppendRecord", " engine"}, "LongDiskFull", "want 1 at most"},
	planted.FenceWithoutWorker:   {faultsStatement{"GetRun", ""}, "DiskFull", "recorded by the first"},
	planted.WakeForgotten:        {faultsStatement{"WakeRun", ""}, "LongDiskFull", "deadline exceeded"},
}

// A matrix that cannot fail proves nothing: it passes as the engine is, and finds each defect that is planted in it. The
// defects are the process's, so this test is not parallel.
func TestFaultMatrixFindsPlantedDefects(t *testing.T) { //nolint:paralleltest // see above
	defects := planted.All()
	for _, defect := range defects[:pgtest.Soak(len(defects), 1)] {
		plant := faultsPlants[defect]
		column := faultsColumns[slices.IndexFunc(faultsColumns, func(c faultsColumn) bool { return c.Name == plant.column })]
		t.Run(defect.String(), func(t *testing.T) {
			t.Run("without it", func(t *testing.T) {
				w := newFaultsWorld(t)
				w.complain(w.sufferCell(plant.row, column))
			})
			t.Run("with it", func(t *testing.T) {
				w := newFaultsWorld(t)
				uproot := planted.Plant(defect)
				defer uproot() // also when the world cannot be opened
				wrong := w.sufferCell(plant.row, column)
				shown := uproot()
				if shown == 0 {
					t.Errorf("%s never showed: the engine has no place for it", defect)
				}
				if !slices.ContainsFunc(wrong, func(what string) bool { return strings.Contains(what, plant.want) }) {
					t.Errorf("%s was not found, want %q in\n%s", defect, plant.want, strings.Join(wrong, "\n"))
				}
			})
		})
	}
}
