package workflow

import (
	"time"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// markAgain is when a run is executed again that could not even be marked as stuck, because the database refuses the mark as a value:
// a trigger of somebody's does that.
const markAgain = time.Minute

// finishStuck marks a run as stuck.
func (e *Engine) finishStuck(owned store.Claimed, cause error) {
	finish := store.Finish{
		Fence: owned.Fence(), Status: string(StatusStuck), Error: describe(cause).encode(),
	}
	e.committer.Finish(nil, finish, func(_ struct{}, err error) {
		switch {
		case err == nil:
			e.tellEnded(store.Run{ID: owned.ID, Workflow: owned.Workflow, Status: finish.Status, Error: finish.Error})
		case refusal.Of(err) == refusal.Value:
			e.about(owned.ID, owned.Workflow).Error("run cannot be marked as stuck; it will be executed again in a while", "error", err, "after", markAgain)
			time.AfterFunc(markAgain, e.orphans.give)
		default:
			e.about(owned.ID, owned.Workflow).Warn("run could not be marked as stuck; it will be executed again", "error", err)
			e.orphans.give()
		}
	})
}
