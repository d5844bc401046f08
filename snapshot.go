package romancy

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/romancy-go/romancy/internal/horizon"
)

// SnapshotStatus tells who has the oldest snapshot of the database. Rows that are deleted or changed cannot be removed before
// it is closed, so queues in tables, ours and others', slow down for as long as it is open.
type SnapshotStatus struct {
	// Oldest has the oldest snapshot; nil if nobody has one, or none that this process's role may see.
	Oldest *SnapshotHolder
	// Hidden counts the sessions of this database that the role may not look at. GRANT pg_read_all_stats shows them.
	Hidden int
	// LookedAt is when the database was asked: every fallback interval, but not more than every 30 s. The zero time: not yet.
	LookedAt time.Time
}

// SnapshotHolder is who has a snapshot. What it can be ended with: pg_terminate_backend for a session, ROLLBACK PREPARED for
// a prepared transaction, pg_drop_replication_slot for a slot whose standby is gone.
type SnapshotHolder struct {
	Kind         string        // "session", "prepared transaction", "replication slot" or "standby"
	PID          int32         // of the session, of the standby's sender, of who uses the slot; 0: none
	Name         string        // application_name, or the name of the slot or of the prepared transaction
	Role         string        // whose it is; empty for a slot
	State        string        // a session's as in pg_stat_activity, such as "idle in transaction"; a slot's "active" or "inactive"
	Statement    string        // the name of the statement of this library that a session executed last; empty if it was another's, of which nothing is shown
	Age          time.Duration // when looked at; of slots and standbys, since this process first saw them hold this snapshot
	Transactions int64         // how many have begun since
}

func snapshotStatus(reading horizon.Reading) SnapshotStatus {
	status := SnapshotStatus{Hidden: reading.Hidden, LookedAt: reading.At}
	if oldest := reading.Oldest; oldest != nil {
		status.Oldest = &SnapshotHolder{
			Kind: string(oldest.Kind), PID: oldest.PID, Name: oldest.Name, Role: oldest.Role, State: oldest.State, Statement: oldest.Statement,
			Age: oldest.Age, Transactions: oldest.Transactions,
		}
	}
	return status
}

// snapshotWatch is the watch on old snapshots, with its metric.
type snapshotWatch struct {
	*horizon.Watch
	registration metric.Registration
	meter        metric.Meter
	age          metric.Float64ObservableGauge
}

func (a *App) newSnapshotWatch(db horizon.Querier) (*snapshotWatch, error) {
	watch, err := horizon.New(horizon.Config{Pool: db, Interval: a.options.fallbackInterval, Logger: a.options.logger})
	if err != nil {
		return nil, err
	}
	provider := a.options.meter
	if provider == nil {
		provider = otel.GetMeterProvider()
	}
	w := &snapshotWatch{Watch: watch, meter: provider.Meter("github.com/romancy-go/romancy")}
	w.age, err = w.meter.Float64ObservableGauge("romancy.snapshot.age", metric.WithUnit("s"),
		metric.WithDescription("Age of the oldest snapshot of the database, which keeps deleted rows from being removed; 0 if there is none."))
	if err != nil {
		return nil, fmt.Errorf("metrics of old snapshots: %w", err)
	}
	return w, nil
}

func (w *snapshotWatch) start(ctx context.Context) (err error) {
	w.registration, err = w.meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		reading := w.Last()
		if reading.Oldest == nil {
			o.ObserveFloat64(w.age, 0)
			return nil
		}
		o.ObserveFloat64(w.age, reading.Oldest.Age.Seconds(), metric.WithAttributes(attribute.String("kind", string(reading.Oldest.Kind))))
		return nil
	}, w.age)
	if err != nil {
		return fmt.Errorf("metrics of old snapshots: %w", err)
	}
	w.Start(ctx)
	return nil
}

func (w *snapshotWatch) stop(context.Context) error {
	w.Stop()
	return w.registration.Unregister()
}
