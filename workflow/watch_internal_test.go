package workflow

import (
	"testing"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// What a look has found answers those alone who waited when it began: a run may have been retried, or started, since.
func TestALookAnswersWhoWaitedWhenItBegan(t *testing.T) {
	t.Parallel()
	w := newWatch(nil)
	early := w.enter("run")
	newest := w.newest()
	late := w.enter("run")
	w.tell("run", watched{run: store.Run{ID: "run", Status: string(StatusFailed)}}, newest)
	if len(early) != 1 || len(late) != 0 {
		t.Errorf("told: early %t, late %t", len(early) == 1, len(late) == 1)
	}
	w.tell("run", watched{run: store.Run{ID: "run", Status: string(StatusCompleted)}}, everybody)
	if got := <-early; got.run.Status != string(StatusFailed) { // the first word stands
		t.Errorf("who waited was told that the run is %s", got.run.Status)
	}
	if got := <-late; got.run.Status != string(StatusCompleted) {
		t.Errorf("who came later was told that the run is %s", got.run.Status)
	}
}
