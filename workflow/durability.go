package workflow

import (
	"context"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/internal/sqlfile"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// durability is what this process knows of the server that it writes to.
type durability struct {
	warned sync.Once

	mu      sync.Mutex
	started int64 // when the server was started, in microseconds since 1970; 0: not known
	epoch   int64 // how often it has become another one, or was started again
}

var readServer = sqlfile.MustPin("select current_setting('synchronous_commit'), (extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint")

// noteServer notes which server the engine writes to, before it does. One that has been started since the last time may have lost its last
// commits. Either way it warns, once, when the server answers commits that a crash may undo. (local and remote_write are fine: what is
// lost with them is lost in a failover alone, which only a standby that is always waited for rules out.)
func (e *Engine) noteServer(ctx context.Context, conn *pgx.Conn) error {
	var setting string
	var started int64
	// By the simple protocol, so that nothing is prepared for it.
	if err := conn.QueryRow(ctx, readServer, pgx.QueryExecModeSimpleProtocol).Scan(&setting, &started); err != nil {
		return refusal.Public(err)
	}
	d := &e.durability
	d.mu.Lock()
	another := d.started != 0 && d.started != started
	d.started = started
	if another {
		d.epoch++
	}
	d.mu.Unlock()
	if another {
		e.logger.InfoContext(ctx, "the database server was started again, or another has taken its place: the runs in memory here are compared with what it knows")
		e.held.tooMany()
		e.orphans.give()
	}
	if setting == "off" {
		d.warned.Do(func() {
			e.logger.WarnContext(ctx, "synchronous_commit is off for the engine's connections: a crash of the database loses what it has answered last, "+
				"so starts, messages and cancellations that were acknowledged may be gone, and steps are executed again whose results were recorded",
				"remedy", "alter role ... set synchronous_commit = on, and see docs/operations.md")
		})
	}
	return nil
}

// serverEpoch returns a number that grows when the database may have lost its last commits. A run that was parked under a smaller one is
// not resumed in memory when it is claimed, because others may have had it under the same tokens.
func (e *Engine) serverEpoch() int64 {
	e.durability.mu.Lock()
	defer e.durability.mu.Unlock()
	return e.durability.epoch
}

// dropForgottenLocked drops a parked run of which the database says, lastingly, that it executes here: it does not know any more that the
// run was parked, and what it holds of its history may be less as well. The caller holds the engine's mutex.
func (e *Engine) dropForgottenLocked(fence store.Fence) {
	if r := e.cache.runs[fence.ID]; r != nil && r.phase == parked && !r.reasons.polling && r.fence() == fence {
		e.sayForgotten(fence, r.definition.Name(), []store.Run{{Token: fence.Token}})
		e.dropLocked(r)
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
	if !e.reports.forgotten.Pass(workflow, "workflow", workflow, "last", fence.ID) {
		return
	}
	e.about(fence.ID, workflow).Warn("the database knows less of this run than this worker does, as after losing its last commits; the run is left to what it knows",
		"token here", fence.Token, "token there", there)
}
