package horizon

import (
	"cmp"
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
)

const (
	// leastInterval is the least time between two looks.
	leastInterval = 30 * time.Second
	// lookTimeout bounds one look, the wait for a connection of the pool included.
	lookTimeout = 5 * time.Second
	// defaultWarnAfter is the age from which a snapshot is worth a warning.
	defaultWarnAfter = 5 * time.Minute
)

// Config configures a Watch. Pool is required.
type Config struct {
	Pool Querier
	// Interval between two looks. Default, and least, 30 s.
	Interval time.Duration
	// WarnAfter is the age from which a snapshot is warned of. Default 5 min.
	WarnAfter time.Duration
	// Logger. Default slog.Default().
	Logger *slog.Logger
}

// Watch looks now and then, and warns once of each old snapshot.
type Watch struct {
	config Config
	query  string
	last   atomic.Pointer[Reading]
	outage *outage.Reporter
	stop   context.CancelFunc
	done   sync.WaitGroup

	// Of the loop alone.
	warned *Holder
	since  time.Time // first seen: what the server gives no age for
}

// New returns a watch that Start sets to work. It does not fail with the queries that are built in.
func New(config Config) (*Watch, error) {
	config.Interval = max(config.Interval, leastInterval)
	config.WarnAfter = cmp.Or(config.WarnAfter, defaultWarnAfter)
	config.Logger = refusal.Logger(cmp.Or(config.Logger, slog.Default()))
	query, err := loadQuery()
	if err != nil {
		return nil, err
	}
	return &Watch{config: config, query: query, outage: outage.New(config.Logger,
		"the age of the oldest snapshot is unknown", "the age of the oldest snapshot is known again")}, nil
}

// Last returns the last look; the zero Reading before the first.
func (w *Watch) Last() Reading {
	if last := w.last.Load(); last != nil {
		return *last
	}
	return Reading{}
}

// Start begins to look, the first time at once, until Stop. Cancelling ctx stops nothing.
func (w *Watch) Start(ctx context.Context) {
	ctx, w.stop = context.WithCancel(context.WithoutCancel(ctx))
	w.done.Go(func() {
		for {
			w.look(ctx)
			select {
			case <-ctx.Done():
				return
			case <-time.After(w.config.Interval):
			}
		}
	})
}

// Stop ends the watch and waits for it. It may be called once, after Start.
func (w *Watch) Stop() {
	w.stop()
	w.done.Wait()
}

func (w *Watch) look(ctx context.Context) {
	looking, cancel := context.WithTimeout(ctx, lookTimeout)
	defer cancel()
	reading, err := look(looking, w.config.Pool, w.query)
	if err != nil {
		switch {
		case ctx.Err() != nil:
		case refusal.Said(err): // a right is missing, say
			w.outage.Failed(ctx, err)
		default: // the listener and the engine report a database that cannot be reached
			w.config.Logger.DebugContext(ctx, "the age of the oldest snapshot is unknown", "error", err)
		}
		return
	}
	w.outage.Succeeded(ctx)
	w.note(ctx, reading)
}

// note stores a reading and says what has changed.
func (w *Watch) note(ctx context.Context, reading Reading) {
	if oldest := reading.Oldest; oldest != nil && oldest.Age == 0 {
		if before := w.Last().Oldest; before == nil || !before.same(oldest) {
			w.since = reading.At
		}
		oldest.Age = reading.At.Sub(w.since)
	}
	if w.warned != nil && (reading.Oldest == nil || !reading.Oldest.same(w.warned)) {
		w.config.Logger.InfoContext(ctx, "the old snapshot is gone", w.warned.attributes()...)
		w.warned = nil
	}
	if oldest := reading.Oldest; oldest != nil && oldest.Age >= w.config.WarnAfter && w.warned == nil {
		w.config.Logger.WarnContext(ctx, "an old snapshot keeps deleted rows from being removed, which slows the database's queues down: end it",
			oldest.attributes()...)
		w.warned = oldest
	}
	w.last.Store(&reading)
}

// same reports whether it is still the same snapshot. The process that uses a slot may change.
func (h *Holder) same(other *Holder) bool {
	return h.Kind == other.Kind && h.Name == other.Name && h.horizon == other.horizon && (h.Kind == ReplicationSlot || h.PID == other.PID)
}

func (h *Holder) attributes() []any {
	return []any{
		"kind", string(h.Kind), "pid", h.PID, "name", h.Name, "role", h.Role, "state", h.State,
		"age", h.Age.Round(time.Second), "transactions", h.Transactions,
	}
}
