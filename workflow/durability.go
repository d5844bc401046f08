package workflow

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/store"
)

// checkDurability warns, once, when the database answers commits that a crash may undo. (local and remote_write are fine: what is
// lost with them is lost in a failover alone, which only a standby that is always waited for rules out.)
func (e *Engine) checkDurability(ctx context.Context, conn *pgx.Conn) {
	var setting string
	// By the simple protocol, so that nothing is prepared for it.
	if err := conn.QueryRow(ctx, "show synchronous_commit", pgx.QueryExecModeSimpleProtocol).Scan(&setting); err != nil {
		return // whatever follows on this connection says why
	}
	if setting == "off" {
		e.durability.Do(func() {
			e.logger.WarnContext(ctx, "synchronous_commit is off for the engine's connections: a crash of the database loses what it has answered last, "+
				"so starts, messages and cancellations that were acknowledged may be gone, and steps are executed again whose results were recorded",
				"remedy", "alter role ... set synchronous_commit = on, and see docs/operations.md")
		})
	}
}

// refused finds out why a write was refused of a run that this worker has to own for all it knows. That another worker has taken the run
// over is said elsewhere; that the database knows less of it than this worker is not.
func (e *Engine) refused(fence store.Fence, workflow string) {
	var rows []store.Run
	e.committer.Do(true, func(b *pgx.Batch) { e.store.QueueFindRuns(b, []string{fence.ID}, &rows) }, func(_ struct{}, err error) {
		if err == nil && (len(rows) == 0 || forgotten(fence, rows[0])) {
			e.sayForgotten(fence, workflow, rows)
		}
	})
}

// forgotten reports whether the database, in row, knows less of a run than the worker that has it, or gives it to another under the same
// token: it has lost its last commits.
func forgotten(fence store.Fence, row store.Run) bool {
	return row.Token < fence.Token || row.Token == fence.Token && row.Worker != 0 && row.Worker != fence.Worker
}

// sayForgotten says that a run is dropped here because the database has lost its last commits.
func (e *Engine) sayForgotten(fence store.Fence, workflow string, rows []store.Run) {
	there := int64(-1) // it does not know the run at all
	if len(rows) > 0 {
		there = rows[0].Token
	}
	e.about(fence.ID, workflow).Warn("the database knows less of this run than this worker does, as after losing its last commits; the run is left to what it knows",
		"token here", fence.Token, "token there", there)
}
