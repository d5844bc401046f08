package workflow

// Status is the state of a run.
type Status string

// The states of a run. The last four are final.
const (
	StatusReady   Status = "ready"   // runnable, unowned
	StatusRunning Status = "running" // owned by a worker
	StatusWaiting Status = "waiting" // parked until a message or a deadline
	StatusStuck   Status = "stuck"   // its replay diverged, its history does not fit the types of the code, a step cannot be stored, or it kills its workers; history is untouched
	// StatusCompensating is shown instead of the first three while a run that failed, or is cancelled, undoes its steps.
	StatusCompensating Status = "compensating"
	StatusCompleted    Status = "completed" // ended with an output
	StatusFailed       Status = "failed"    // ended with an error, compensated
	StatusCancelled    Status = "cancelled" // ended from outside
	StatusContinued    Status = "continued" // ended by continuing as a new run
)

// Final reports whether a run in this state can never leave it.
func (s Status) Final() bool {
	switch s {
	case StatusCompleted, StatusFailed, StatusCancelled, StatusContinued:
		return true
	default:
		return false
	}
}

func (s Status) known() bool {
	switch s {
	case StatusReady, StatusRunning, StatusWaiting, StatusStuck, StatusCompensating:
		return true
	default:
		return s.Final()
	}
}

// EngineStatus is a snapshot of an Engine.
type EngineStatus struct {
	Worker     int64    // this worker's id; 0: it has none (client only, not started, or its lease is lost)
	Workflows  []string // executed here
	Executing  int      // runs executing here
	Parked     int      // runs parked in memory here
	Due        int      // of the parked: those that may go on and wait for room
	Full       []string // workflows of which runs may be waiting for room here, see Config.MaxConcurrentRuns
	Activities int      // activities whose bodies execute here
	HeldUp     int      // activities that wait for others to end, see Config.MaxConcurrentActivities
	Resumed    int64    // times a parked run went on in memory
	Replayed   int64    // times a run was rebuilt from history
	Evicted    int64    // parked runs dropped from memory to stay within CacheSize
	Commits    int64    // transactions of the committer
	Operations int64    // operations written in them
	Listening  bool     // notifications arrive
	// Unexecuted are runs that no living worker has the code for, as this process has found them at its last search. Of all workers
	// the oldest searches; while there is none, every process does that only starts runs.
	Unexecuted []UnexecutedRuns
}

// Status returns a snapshot. On a nil engine it is the zero value.
func (e *Engine) Status() EngineStatus {
	if e == nil {
		return EngineStatus{}
	}
	commits, operations := e.committer.Stats()
	heldUp, _ := e.admission.heldUp("")
	e.mu.Lock()
	defer e.mu.Unlock()
	return EngineStatus{
		Worker: e.lease.ID(), Workflows: e.names,
		Executing: e.cache.executing, Parked: len(e.cache.runs) - e.cache.executing,
		Due: e.cache.slots.Waiting(), Full: e.cache.slots.Full(), Activities: int(e.admission.executing.Load()), HeldUp: heldUp,
		Resumed: e.cache.resumed, Replayed: e.cache.replayed, Evicted: e.cache.evicted,
		Commits: commits, Operations: operations,
		Listening: e.config.Listener.Healthy(), Unexecuted: e.unexecuted.last(),
	}
}
