package schema

import "strings"

// What the engines of a schema tell each other on channels of their own. Each only says where to look.
const (
	ended     = "_workflow_ended"     // runs that have ended
	cancelled = "_workflow_cancelled" // runs that are to be cancelled
	left      = "_worker_left"        // a worker has shut down
	later     = "_run_later"          // runs that begin at a moment were started by who executes none
)

// EndedChannel is the channel on which the ends of runs are told.
func EndedChannel(schema string) string { return schema + ended }

// CancelledChannel is the channel on which the workers of cancelled runs are told.
func CancelledChannel(schema string) string { return schema + cancelled }

// LeftChannel is the channel on which workers that shut down say so.
func LeftChannel(schema string) string { return schema + left }

// LaterChannel is the channel on which whoever cannot keep the moment at which a run begins says that there is one.
func LaterChannel(schema string) string { return schema + later }

// PrivateChannel reports whether the engines of some schema use the channel among themselves.
func PrivateChannel(name string) bool {
	return strings.HasSuffix(name, ended) || strings.HasSuffix(name, cancelled) || strings.HasSuffix(name, left) || strings.HasSuffix(name, later)
}
