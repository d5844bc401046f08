// Package planted has defects that tests put into the engine on purpose, to prove that they would be found. In a program
// that no test has planted anything in, each place costs one load of a nil pointer.
//
// A place asks where the code would go wrong if it had the defect:
//
//	if planted.Has(planted.WakeForgotten) {
//		return // as if the reason to wake were lost
//	}
//
// The places, each of which needs one such line in what is now the code for it:
//
//   - LostFlushFailsStream: in workflow/internal/commit, where a flush is answered whose connection was lost: its appends
//     are repeated, and what follows them in their runs' streams is failed instead of being repeated behind them.
//   - RecordGivenUp: in workflow/internal/commit, where a record that was refused for a reason which may pass is put back
//     into the queue: it is answered with the refusal at once instead, so that its run is dropped and executed again.
//   - FenceWithoutWorker: in workflow/internal/store, where a fence becomes the arguments of a statement: the worker is
//     taken from the run's row instead of being the writer's, so that run and token alone decide.
//   - WakeForgotten: in workflow (wake.go), where a poll for a parked run was not answered: what it was for is forgotten and
//     the poll is not repeated, so that only a sweep finds it.
package planted

import (
	"fmt"
	"sync/atomic"
)

// Defect is one of the defects that can be planted.
type Defect int

// The defects, as the package's documentation describes them.
const (
	LostFlushFailsStream Defect = iota + 1
	RecordGivenUp
	FenceWithoutWorker
	WakeForgotten
)

// All returns all defects.
func All() []Defect {
	return []Defect{LostFlushFailsStream, RecordGivenUp, FenceWithoutWorker, WakeForgotten}
}

// String returns the defect's name.
func (d Defect) String() string {
	switch d {
	case LostFlushFailsStream:
		return "LostFlushFailsStream"
	case RecordGivenUp:
		return "RecordGivenUp"
	case FenceWithoutWorker:
		return "FenceWithoutWorker"
	case WakeForgotten:
		return "WakeForgotten"
	default:
		return fmt.Sprintf("Defect(%d)", int(d))
	}
}

// plant is a defect and how often it has shown.
type plant struct {
	defect Defect
	shown  atomic.Int64
}

var planted atomic.Pointer[plant]

// Has reports whether the defect is planted.
func Has(defect Defect) bool {
	p := planted.Load()
	if p == nil || p.defect != defect {
		return false
	}
	p.shown.Add(1)
	return true
}

// Plant plants a defect in this process until uproot is called, which returns how often the defect has shown. It is for
// tests alone, and for those that run while no others do: it panics if a defect is planted already.
func Plant(defect Defect) (uproot func() int64) {
	p := &plant{defect: defect}
	if !planted.CompareAndSwap(nil, p) {
		panic(fmt.Sprintf("%s is planted while another defect is: the test must not be parallel", defect))
	}
	return func() int64 {
		planted.CompareAndSwap(p, nil)
		return p.shown.Load()
	}
}
