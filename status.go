package romancy

import (
	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/workflow"
)

// State is where an App is in its life.
type State string

// The states of an App.
const (
	StateNew      State = "new"      // not started, or its start failed
	StateRunning  State = "running"  // from the end of Start to the beginning of Shutdown
	StateStopping State = "stopping" // shutting down, or an earlier Shutdown ran out of time
	StateStopped  State = "stopped"  // for good
)

// Status is a snapshot of an App, of this process alone.
type Status struct {
	State    State
	Listener bus.Status            // the listening connection, the App's or that of WithListener
	Notifier bus.NotifierStatus    // the notifying connection, and how full the server's NOTIFY queue is
	Engine   workflow.EngineStatus // runs executing and parked here
	Leading  bool                  // River's leader is here, so the sweeps of the cluster are enqueued here
	Snapshot SnapshotStatus        // who keeps deleted rows of the database from being removed, at the last look
}

// Status returns a snapshot. Before Start and after Shutdown only State tells something. It asks memory only, not the
// database.
func (a *App) Status() Status {
	status := Status{State: a.currentState()}
	if r := a.running.Load(); r != nil {
		status.Listener = r.listener.Status()
		status.Notifier = r.notifier.Status()
		status.Engine = r.engine.Status()
		status.Leading = r.jobs.Leading()
		status.Snapshot = snapshotStatus(r.snapshots.Last())
	}
	return status
}
