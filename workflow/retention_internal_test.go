package workflow

import (
	"testing"
	"time"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// After a sweep that stepped over much, sweeps begin where it ended, and for the time given only: then one looks at all again.
func TestRetentionBeginsWhereADearSweepEnded(t *testing.T) {
	t.Parallel()
	mark := &retainedMark{}
	now := time.Now()
	first, second := store.EndedPage{Ended: now.Add(-2 * time.Hour), IDs: []string{"a"}}, store.EndedPage{Ended: now.Add(-time.Hour), IDs: []string{"b"}}
	begins := func(at time.Time, want store.EndedPage, wantWhole bool) {
		t.Helper()
		got, whole := mark.begin(at)
		if whole != wantWhole || !got.Ended.Equal(want.Ended) || len(got.IDs) != len(want.IDs) || len(got.IDs) > 0 && got.IDs[0] != want.IDs[0] {
			t.Errorf("begins at %s %q, whole %t; want %s %q, %t", got.Ended, got.IDs, whole, want.Ended, want.IDs, wantWhole)
		}
	}
	begins(now, store.EndedPage{}, true)
	mark.rise(now, first, false)
	begins(now, store.EndedPage{}, true)
	mark.rise(now, first, true)
	begins(now, first, false)
	mark.rise(now, second, false)
	begins(now.Add(keptInterval-time.Second), second, false)
	begins(now.Add(keptInterval), store.EndedPage{}, true)
}
