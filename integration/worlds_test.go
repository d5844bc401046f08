package integration_test

import (
	"context"
	"fmt"
	"net/url"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

// with adds parameters to the URL of a database.
func with(t *testing.T, database string, parameters map[string]string) string {
	t.Helper()
	parsed, err := url.Parse(database)
	if err != nil {
		t.Fatal(err)
	}
	query := parsed.Query()
	for name, value := range parameters {
		query.Set(name, value)
	}
	parsed.RawQuery = query.Encode()
	return parsed.String()
}

// setTimeZone is the time zone of every session in the database that does not ask for another.
func setTimeZone(t *testing.T, database, zone string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	conn, err := pgx.Connect(ctx, database)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	name := pgx.Identifier{conn.Config().Database}.Sanitize()
	if _, err := conn.Exec(ctx, fmt.Sprintf("alter database %s set TimeZone = '%s'", name, zone)); err != nil {
		t.Fatal(err)
	}
}

// Whatever a query exec mode makes of arguments and results, and whatever time zone a session is in, what runs do is the same.
func TestEveryQueryExecModeInTokyo(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"cache_statement", "cache_describe", "describe_exec", "exec", "simple_protocol"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			database := pgtest.URL(t)
			setTimeZone(t, database, "Asia/Tokyo")
			newCrashWorld(t, database, func(w *crashWorld) {
				w.config.Database = with(t, database, map[string]string{"default_query_exec_mode": mode})
				w.each = func(n int, config *crashWorkerConfig) {
					if n == 2 { // not all of them agree
						config.Database = with(t, config.Database, map[string]string{"TimeZone": "America/St_Johns"})
					}
				}
			}).live()
		})
	}
}

// Clocks of workers that are wrong, and not by the same, neither delay nor hasten anything, nor does any worker take another for
// dead: all that matters is decided by the database's clock.
func TestClocksOfWorkersTenMinutesApart(t *testing.T) {
	t.Parallel()
	if !canSetClock {
		t.Skip("the clock of a process can be set wrong on Linux on amd64 only")
	}
	for name, clocks := range map[string][2]time.Duration{
		"ahead and right":  {10 * time.Minute, 0},
		"right and behind": {0, -10 * time.Minute},
		"around the truth": {5 * time.Minute, -5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			newCrashWorld(t, pgtest.URL(t), func(w *crashWorld) {
				w.each = func(n int, config *crashWorkerConfig) { config.Clock = clocks[(n-1)%len(clocks)] }
			}).live()
		})
	}
}

// A pooler in transaction mode gives every transaction a server session of its own choice.
func TestThroughPgBouncerInTransactionMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"exec", "cache_describe"} {
		t.Run("with a way around it to listen, "+mode, func(t *testing.T) {
			t.Parallel()
			database := pgtest.URL(t)
			pooled := pgtest.PgBouncer(t, database, "transaction")
			newCrashWorld(t, database, func(w *crashWorld) {
				w.config.Database, w.config.Listen = with(t, pooled, map[string]string{"default_query_exec_mode": mode}), database
			}).live()
		})
	}
	t.Run("deaf", func(t *testing.T) {
		t.Parallel()
		database := pgtest.URL(t)
		pooled := pgtest.PgBouncer(t, database, "transaction")
		newCrashWorld(t, database, func(w *crashWorld) {
			w.config.Database = with(t, pooled, map[string]string{"default_query_exec_mode": "simple_protocol"})
		}).live()
	})
}

// live is the scenario for every world: orders, by plain calls and in the customers' transactions, with a worker killed and
// one shut down in between, and runs that wait in every way. Everything must end as it would anywhere.
func (w *crashWorld) live() {
	const orders = 2 * crashGroup
	w.openFor(orders)
	for i := range 3 {
		id := fmt.Sprintf("clock-%d", i)
		w.others = append(w.others, expectClock(id))
		_, err := clockFlow.Start(w.ctx, w.app.Engine(), i, workflow.WithID(id))
		w.must(err)
	}
	const trips = 4
	for i := range trips {
		w.depart(i)
	}
	w.arrive(crashGroup)
	w.pause(300*time.Millisecond, 600*time.Millisecond)
	victim, _ := w.victim()
	w.workers[victim].kill()
	w.replace(victim)
	w.must(w.workers[victim].awaitReady(w.ctx))
	w.inTransactions.Store(true)
	for i := range trips {
		w.must(w.send(tripID(i), "route", fmt.Sprintf("route-%d", i)))
	}
	w.arrive(crashGroup)
	w.pause(300*time.Millisecond, 600*time.Millisecond)
	other := 1 - victim
	// A step that does not end would use up the whole limit of a shutdown.
	w.must(w.until("every trip has its route", func() (bool, error) {
		var chosen int
		err := w.pool.QueryRow(w.ctx, "select count(*) from romancy.history where kind = 'select' and instance_id like 'trip-%'").Scan(&chosen)
		return chosen == trips, err
	}))
	w.must(w.workers[other].stop(w.ctx))
	w.replace(other)
	for i := range trips {
		w.arriveNot(i)
	}
	for i := range 3 {
		took, err := clockFlow.Run(w.app.Engine(), fmt.Sprintf("clock-%d", i)).Result(w.ctx)
		w.must(err)
		w.t.Logf("run clock-%d took %s by the database's clock", i, took.Round(time.Millisecond))
	}
	w.settle()
	w.firedInTime()
}

// firedInTime checks every timer: what follows it in history came when it was due, or after.
func (w *crashWorld) firedInTime() {
	w.t.Helper()
	type row struct {
		Early, Timers int
		Late          time.Duration
	}
	err := each(&checker{ctx: w.ctx, db: w.pool}, `
		select count(*) filter (where next.created_at < t.fires_at)::int, count(*)::int, max(next.created_at - t.fires_at)
		from (select h.*, to_timestamp(0) + (h.payload ->> 'fires_at_us')::bigint * interval '1 microsecond' as fires_at from romancy.history h where h.kind = 'timer') t
		join romancy.history next on next.instance_id = t.instance_id and next.position = t.position + 1
		where (t.name not like 'receive:%' and t.name <> 'select' and next.kind <> 'timer' or next.payload ->> 'timeout' = 'true')`, func(r row) {
		w.t.Logf("of %d timers the latest was late by %s", r.Timers, r.Late.Round(time.Millisecond))
		if r.Early > 0 || r.Timers == 0 {
			w.t.Errorf("%d of %d timers fired before they were due", r.Early, r.Timers)
		}
	})
	w.must(err)
}
