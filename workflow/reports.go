package workflow

import (
	"log/slog"

	"github.com/romancy-go/romancy/internal/outage"
)

// reports says what goes wrong, and that it works again, without a line for each attempt. Each part that can fail by itself has a
// reporter of its own.
type reports struct {
	failures  *outage.Flood // of runs
	forgotten *outage.Flood // runs of which the database knows less
	foreign   *outage.Flood // payloads

	claims, coldClaims       *outage.Reporter
	loads, releases, orphans *outage.Reporter
	evictions, traces        *outage.Reporter
	messages, events, waits  *outage.Reporter
	sweeps, deaths, timers   *outage.Reporter
	results, readyCount      *outage.Reporter
	unexecuted               *outage.Reporter
	cancelled, rousing       *outage.Reporter
}

func newReports(logger *slog.Logger) *reports {
	of := func(fails, over string) *outage.Reporter { return outage.New(logger, fails, over) }
	return &reports{
		failures:   outage.NewFlood(logger, "more runs failed in the last minute than are logged", failureLines),
		forgotten:  outage.NewFlood(logger, "more runs of which the database knows less than this worker does", failureLines),
		foreign:    outage.NewFlood(logger, "more foreign payloads came in the last minute than are logged", 1).Once(),
		claims:     of("claiming runs failed, will be tried again", "runs are claimed again"),
		coldClaims: of("claiming runs that are due failed, will be tried again", "runs that are due are claimed again"),
		loads:      of("loading the history of claimed runs failed, they are given back", "the history of claimed runs is loaded again"),
		releases:   of("run could not be given back yet", "runs are given back again"),
		orphans:    of("looking for orphaned runs failed, will be tried again", "orphaned runs are found again"),
		evictions:  of("evicted run not noted yet, will be tried again", "evicted runs are noted again"),
		traces:     of("the run's trace could not be stored: another worker will begin a new one", "traces of runs are stored again"),
		messages:   of("polling for the receivers of messages failed, will be tried again", "the receivers of messages are found again"),
		events:     of("polling for those who wait for an event failed, will be tried again", "those who wait for events are found again"),
		waits:      of("polling for those here who wait for an event failed, will be tried again", "those here who wait for events are found again"),
		sweeps:     of("sweep failed, the next will try again", "sweeps succeed again"),
		deaths:     of("sweep after a worker's death failed, the next will try again", "sweeps after a worker's death succeed again"),
		timers:     of("sweep of timers failed, the next will try again", "sweeps of timers succeed again"),
		results:    of("looking for the ends of runs failed, will be tried again", "the ends of runs are found again"),
		readyCount: of("ready runs cannot be counted for the metrics, will be tried again", "ready runs are counted for the metrics again"),
		cancelled:  of("polling for cancelled runs failed, will be tried again", "cancelled runs are found again"),
		rousing:    of("parked runs could not be made ready yet, will be tried again", "parked runs are made ready again"),
		unexecuted: of("runs that no living worker can execute cannot be looked for, will be tried again", "runs that no living worker can execute are looked for again"),
	}
}

// run adds to the attributes of a line which run it is about.
func aboutRun(id, workflow string) []any { return []any{"instance_id", id, "workflow", workflow} }
