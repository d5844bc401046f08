package workflow_test

import (
	"context"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

const knowsLess = "the database knows less of this run than this worker does"

// failover is a run below whose worker the database loses its last commits, and gives the run to another worker.
type failover struct {
	pool *pgxpool.Pool
	w    *worker
	log  *logText
	run  string
}

// here is the token under which the worker has the run.
const here = 5

// execer is a pool or a transaction.
type execer interface {
	Exec(ctx context.Context, sql string, arguments ...any) (pgconn.CommandTag, error)
}

// forget has the database know of the run what it knew before: one record of a first step, under another worker's ownership, or nobody's.
func (f *failover) forget(t *testing.T, db execer, status string, token int64) {
	t.Helper()
	for _, statement := range []struct {
		text      string
		arguments []any
	}{
		// It listens, so that the sweep for the message's receiver leaves the run to it.
		{"insert into romancy.workers (id, label, listening, lease_until) values (7, 'another', true, clock_timestamp() + interval '1 hour')", nil},
		{"delete from romancy.history where instance_id = $1", []any{f.run}},
		{"delete from romancy.event_waits where instance_id = $1", []any{f.run}},
		{"insert into romancy.history (instance_id, position, token, worker, kind, name, payload) values ($1, 1, $2, 7, 'activity', 'step', '{\"output\": 100}')", []any{f.run, token}},
		{
			`update romancy.instances set status = $2::text, token = $3::bigint, worker = case when $2::text <> 'ready' then 7 end, wake_at = null, wake_position = null,
			wake_channels = case when $2::text = 'waiting' then array['numbers'] end where id = $1`,
			[]any{f.run, status, token},
		},
	} {
		if _, err := db.Exec(testContext(t), statement.text, statement.arguments...); err != nil {
			t.Fatalf("%s: %v", statement.text, err)
		}
	}
}

// anotherDies has the other worker die, so that those that are there go on with what it had.
func (f *failover) anotherDies(t *testing.T) {
	t.Helper()
	if _, err := f.pool.Exec(testContext(t), "update romancy.workers set lease_until = clock_timestamp() where id = 7"); err != nil {
		t.Fatal(err)
	}
	if _, err := f.w.SweepResume(testContext(t)); err != nil {
		t.Fatal(err)
	}
}

// newFailover starts a run of flow.
func newFailover(t *testing.T, flow *workflow.Workflow[int, int], change func(*workflow.Config)) *failover {
	t.Helper()
	f := &failover{pool: pgtest.Pool(t), log: &logText{}}
	f.w = startWorker(t, f.pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) {
		c.Logger = slog.New(slog.NewTextHandler(f.log, nil))
		c.Lease, c.FallbackInterval = time.Hour, time.Hour // only what a test does happens
		change(c)
	}))
	f.start(t, flow)
	return f
}

// start has the worker claim a new run under the token here.
func (f *failover) start(t *testing.T, flow *workflow.Workflow[int, int]) {
	t.Helper()
	ctx := testContext(t)
	run, err := flow.Start(ctx, f.w.Engine, 1, workflow.WithDelay(time.Hour))
	if err != nil {
		t.Fatal(err)
	}
	f.run = run.ID()
	if _, err := f.pool.Exec(ctx, "update romancy.instances set token = $1, status = 'ready', worker = null, wake_at = null, ready_at = clock_timestamp()", here-1); err != nil {
		t.Fatal(err)
	}
	if _, err := f.w.SweepResume(ctx); err != nil {
		t.Fatal(err)
	}
}

func (f *failover) wantWarnings(t *testing.T, n int) {
	t.Helper()
	eventually(t, "it is said", func() bool { return strings.Count(f.log.String(), knowsLess) >= n })
	if got := strings.Count(f.log.String(), knowsLess); got != n {
		t.Errorf("said %d times, want %d: %s", got, n, f.log.String())
	}
}

// What a worker writes of a run that the database gives to another now is refused, whatever the tokens are, and the other's records count.
func TestAStepThatReturnsAfterTheDatabaseHasForgottenItIsRefused(t *testing.T) {
	t.Parallel()
	for name, token := range map[string]int64{"under a smaller token": here - 1, "under the same token": here} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			entered, leave := make(chan struct{}), make(chan struct{})
			var bodies tally
			step := workflow.DefineActivity("step", func(context.Context, int) (int, error) {
				if bodies.add("step") == 1 {
					close(entered)
					<-leave
				}
				return bodies.of("step"), nil
			})
			flow := workflow.Define("flow", func(ctx *workflow.Context, _ int) (int, error) {
				one, err := step.Execute(ctx, 1)
				if err != nil {
					return 0, err
				}
				two, err := step.Execute(ctx, 2)
				return one + two, err
			})
			f := newFailover(t, flow, func(*workflow.Config) {})
			<-entered
			f.forget(t, f.pool, "running", token)
			close(leave)
			f.wantWarnings(t, 1)
			f.anotherDies(t)
			if got, err := flow.Run(f.w.Engine, f.run).Result(testContext(t)); err != nil || got != 102 {
				t.Errorf("got %d, %v; want 100, as the other worker has recorded, and 2", got, err)
			}
			if n := count(t, f.pool, "select count(*) from romancy.history where worker = 7"); n != 1 {
				t.Errorf("%d records are the other worker's, want the one", n)
			}
			f.wantWarnings(t, 1)
		})
	}
}

// waitsAfterStep returns 1000, or what its step has returned, and the message.
func waitsAfterStep() *workflow.Workflow[int, int] {
	step := workflow.DefineActivity("step", func(context.Context, int) (int, error) { return 1000, nil })
	return workflow.Define("waits", func(ctx *workflow.Context, n int) (int, error) {
		one, err := step.Execute(ctx, n)
		if err != nil {
			return 0, err
		}
		message, err := workflow.Receive[int](ctx, "numbers")
		return one + message.Body, err
	})
}

// A run that is parked in memory is not resumed there when the database gives it to another.
func TestAParkedRunThatTheDatabaseGivesToAnotherIsDropped(t *testing.T) {
	t.Parallel()
	for name, token := range map[string]int64{"under a smaller token": here - 1, "under the same token": here} {
		for when, notice := range map[string]func(t *testing.T, f *failover){
			"woken by a message": func(t *testing.T, f *failover) {
				t.Helper()
				f.forget(t, f.pool, "waiting", token)
				if err := f.w.SendTo(testContext(t), f.run, "numbers", 5); err != nil {
					t.Fatal(err)
				}
			},
			"while a wake is under way": func(t *testing.T, f *failover) {
				t.Helper()
				tx, err := f.pool.Begin(testContext(t))
				if err != nil {
					t.Fatal(err)
				}
				defer func() { _ = tx.Rollback(context.Background()) }()
				if _, err := tx.Exec(testContext(t), "select from romancy.instances where id = $1 for update", f.run); err != nil {
					t.Fatal(err)
				}
				if _, err := f.pool.Exec(testContext(t), "insert into romancy.mailbox (channel, mode, receiver, payload) values ('numbers', 'direct', $1, '5')", f.run); err != nil {
					t.Fatal(err)
				}
				if _, err := f.pool.Exec(testContext(t), `select pg_notify('romancy_channel_message', '{"channel_name":"numbers","message_id":1,"target_instance_id":"' || $1 || '"}')`, f.run); err != nil {
					t.Fatal(err)
				}
				time.Sleep(200 * time.Millisecond) // it tries again and again; if it has not begun, this is the case above
				f.forget(t, tx, "waiting", token)
				if err := tx.Commit(testContext(t)); err != nil {
					t.Fatal(err)
				}
			},
		} {
			t.Run(when+", "+name, func(t *testing.T) {
				t.Parallel()
				flow := waitsAfterStep()
				f := newFailover(t, flow, func(*workflow.Config) {})
				eventually(t, "it is parked", func() bool { return f.w.Status().Parked == 1 })
				notice(t, f)
				f.wantWarnings(t, 1)
				eventually(t, "it is dropped", func() bool { return f.w.Status().Parked == 0 })
				f.anotherDies(t)
				if got, err := flow.Run(f.w.Engine, f.run).Result(testContext(t)); err != nil || got != 105 {
					t.Errorf("got %d, %v; want 100, as the other worker has recorded, and 5", got, err)
				}
			})
		}
	}
}

// Nobody needs to send anything: the comparison of what is in memory with what the database knows finds it.
func TestARunThatTheDatabaseHasForgottenIsFoundByTheNextComparison(t *testing.T) {
	t.Parallel()
	flow := waitsAfterStep()
	f := newFailover(t, flow, func(c *workflow.Config) { c.FallbackInterval = time.Second })
	eventually(t, "it is parked", func() bool { return f.w.Status().Parked == 1 })
	f.forget(t, f.pool, "waiting", here-1)
	f.wantWarnings(t, 1)
	eventually(t, "it is dropped", func() bool { return f.w.Status().Parked == 0 })
}

// The park itself is lost: the database says that the run executes here. It is executed again from what the database knows.
func TestARunOfWhichTheDatabaseHasForgottenThatItWasParkedIsReplayed(t *testing.T) {
	t.Parallel()
	flow := waitsAfterStep()
	f := newFailover(t, flow, func(c *workflow.Config) { c.FallbackInterval = time.Second })
	eventually(t, "it is parked", func() bool { return f.w.Status().Parked == 1 })
	for _, statement := range []string{
		"delete from romancy.history where instance_id = $1",
		"update romancy.instances set status = 'running', wake_channels = null where id = $1",
	} {
		if _, err := f.pool.Exec(testContext(t), statement, f.run); err != nil {
			t.Fatal(err)
		}
	}
	f.wantWarnings(t, 1)
	eventually(t, "its step is recorded again", func() bool {
		return count(t, f.pool, "select count(*) from romancy.history where instance_id = $1 and token = $2", f.run, here+1) == 1
	})
	if err := f.w.SendTo(testContext(t), f.run, "numbers", 5); err != nil {
		t.Fatal(err)
	}
	if got, err := flow.Run(f.w.Engine, f.run).Result(testContext(t)); err != nil || got != 1005 {
		t.Errorf("got %d, %v", got, err)
	}
}

// After another server has taken the place of the one it was parked on, a run that is claimed is replayed: others may have had it under the
// very tokens that are known here.
func TestARunThatWasParkedOnAnotherServerIsReplayedWhenItIsClaimed(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t)
	url, _, err := server.CreateDatabase(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	pool := pgtest.Connect(t, url)
	flow := waitsAfterStep()
	f := &failover{pool: pool, log: &logText{}}
	f.w = startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) {
		c.Lease, c.FallbackInterval, c.Logger = time.Hour, time.Hour, slog.New(slog.NewTextHandler(f.log, nil))
	}))
	ctx := testContext(t)
	f.start(t, flow)
	eventually(t, "it is parked", func() bool { return f.w.Status().Parked == 1 })
	if err := server.Halt(ctx, "fast"); err != nil {
		t.Fatal(err)
	}
	if err := server.Resume(ctx); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the database answers", func() bool { return pool.Ping(ctx) == nil })
	f.forget(t, pool, "ready", here)
	eventually(t, "it is resumed from what the database knows", func() bool {
		_, _ = f.w.SweepResume(ctx)
		return count(t, pool, "select count(*) from romancy.instances where id = $1 and token = $2 and status = 'waiting'", f.run, here+1) == 1
	})
	if err := f.w.SendTo(ctx, f.run, "numbers", 5); err != nil {
		t.Fatal(err)
	}
	if got, err := flow.Run(f.w.Engine, f.run).Result(ctx); err != nil || got != 105 {
		t.Errorf("got %d, %v; want 100, as the other worker has recorded, and 5", got, err)
	}
}

// Commits that a crash may undo are warned of.
func TestStartWarnsWhenCommitsAreNotDurable(t *testing.T) {
	t.Parallel()
	const warning = "synchronous_commit is off"
	for setting, want := range map[string]int{"off": 1, "local": 0, "on": 0} {
		pool := pgtest.Pool(t)
		if _, err := pool.Exec(testContext(t), "do $$ begin execute format('alter database %I set synchronous_commit = "+setting+"', current_database()); end $$"); err != nil {
			t.Fatal(err)
		}
		log := &logText{}
		w := startWorker(t, pool, []workflow.Definition{steps}, configured(func(c *workflow.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) }))
		if _, err := steps.Start(testContext(t), w.Engine, 1, workflow.WithID("given")); err != nil { // another connection
			t.Fatal(err)
		}
		if n := strings.Count(log.String(), warning); n != want {
			t.Errorf("%s: warned %d times, want %d: %s", setting, n, want, log.String())
		}
	}
}

// holes is what docs/operations.md has one execute after commits were lost: runs that have not ended and lack a record that later ones
// follow. Steps that execute beside their workflow leave such places until they return.
const holes = `
select h.instance_id, i.workflow, i.status, h.position + 1 as missing_from, h.next - 1 as missing_to
from (select instance_id, position, lead(position) over (partition by instance_id order by position) as next from romancy.history
      union all
      select instance_id, 0, min(position) from romancy.history group by instance_id) h
join romancy.instances i on i.id = h.instance_id
where h.next > h.position + 1 and i.status in ('ready', 'running', 'waiting', 'stuck')
order by h.instance_id, h.position`

// A record that is missing before others is found, and the run goes on from there when what follows it is deleted.
func TestAHoleInHistoryIsFoundAndMended(t *testing.T) {
	t.Parallel()
	var bodies tally
	step := workflow.DefineActivity("step", func(_ context.Context, _ int) (int, error) { return bodies.add("step"), nil })
	flow := workflow.Define("steps_and_message", func(ctx *workflow.Context, _ int) (sum int, err error) {
		for range 3 {
			n, err := step.Execute(ctx, 0)
			if err != nil {
				return 0, err
			}
			sum += n
		}
		message, err := workflow.Receive[int](ctx, "numbers")
		return sum + message.Body, err
	})
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	first := startWorker(t, pool, []workflow.Definition{flow})
	run, err := flow.Start(ctx, first.Engine, 1, workflow.WithID("damaged"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flow.Start(ctx, first.Engine, 1, workflow.WithID("whole")); err != nil {
		t.Fatal(err)
	}
	eventually(t, "they are parked", func() bool { return first.Status().Parked == 2 })
	if got := found(t, pool); got != "" {
		t.Errorf("found %s before anything was lost", got)
	}
	if _, err := pool.Exec(ctx, "delete from romancy.history where instance_id = 'damaged' and position in (1, 2)"); err != nil {
		t.Fatal(err)
	}
	if got := found(t, pool); got != "damaged 1-2" {
		t.Errorf("found %q", got)
	}
	first.shutdown(t)
	second := startWorker(t, pool, []workflow.Definition{flow})
	if err := second.SendTo(ctx, run.ID(), "numbers", 5); err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is stuck", func() bool {
		return count(t, pool, "select count(*) from romancy.instances where status = 'stuck'") == 1
	})
	if got := found(t, pool); got != "damaged 1-2" {
		t.Errorf("found %q", got)
	}
	if _, err := pool.Exec(ctx, "delete from romancy.history where instance_id = 'damaged' and position >= 1"); err != nil {
		t.Fatal(err)
	}
	if err := second.Retry(ctx, run.ID()); err != nil {
		t.Fatal(err)
	}
	if got, err := flow.Run(second.Engine, run.ID()).Result(ctx); err != nil || got != 7+8+9+5 {
		t.Errorf("got %d, %v", got, err)
	}
}

// found returns what holes finds.
func found(t *testing.T, pool *pgxpool.Pool) (text string) {
	t.Helper()
	query := "select coalesce(string_agg(instance_id || ' ' || missing_from || '-' || missing_to, ', '), '') from (" + holes + ") holes"
	if err := pool.QueryRow(testContext(t), query).Scan(&text); err != nil {
		t.Fatal(err)
	}
	return text
}

// A run goes on while the wake that it goes on by is being committed. Whoever looks meanwhile, because a connection was lost, finds the
// token of before: that is no lost commit.
func TestAWakeThatIsBeingCommittedIsNotTakenForALostOne(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewFaultProxy(t, pgtest.URL(t))
	pool := pgtest.Connect(t, proxy.URL())
	log := &logText{}
	received := make(chan struct{}, 1)
	var executed tally
	note := workflow.DefineActivity("note", func(context.Context, int) (int, error) { executed.add("note"); return 0, nil })
	flow := workflow.Define("flow", func(ctx *workflow.Context, _ int) (int, error) {
		got, err := workflow.Receive[int](ctx, "numbers")
		if err != nil {
			return 0, err
		}
		received <- struct{}{}
		if _, err := note.Execute(ctx, 1); err != nil {
			return 0, err
		}
		return got.Body, nil
	})
	w := startWorker(t, pool, []workflow.Definition{flow}, configured(func(c *workflow.Config) { c.Logger = slog.New(slog.NewTextHandler(log, nil)) }))
	ctx := testContext(t)
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := flow.Start(ctx, w.Engine, 2); err != nil { // there is something to look at besides
		t.Fatal(err)
	}
	eventually(t, "they are parked", func() bool { return w.Status().Parked == 2 })
	slow := proxy.Inject(pgtest.Fault{Statement: "commit", Application: " engine", Kind: pgtest.FaultDelay, For: 3 * time.Second, Nth: 1})
	if err := w.SendTo(ctx, run.ID(), "numbers", 7); err != nil {
		t.Fatal(err)
	}
	<-received
	looks := func() (times int) {
		for execution, n := range proxy.Executed() {
			if execution.Statement == "HeldRuns" {
				times += n
			}
		}
		return times
	}
	before := looks()
	pgtest.KillBackends(t, pool, "% listen")
	eventually(t, "the runs in memory are looked at", func() bool { return looks() > before })
	if slow.Hits() != 1 {
		t.Fatal("the commit was not slow: this tests nothing")
	}
	if got, err := run.Result(ctx); err != nil || got != 7 {
		t.Errorf("got %d, %v, want 7", got, err)
	}
	if strings.Contains(log.String(), knowsLess) || executed.of("note") != 1 {
		t.Errorf("the step was executed %d times; log:\n%s", executed.of("note"), log)
	}
}

// A wake whose answer does not come is given up, and its run is dropped from memory meanwhile, to be made ready; but the wake is carried
// out before that, late, as what waits in a network is. The run then belongs to this worker, which does not execute it: it has to notice.
func TestAWakeThatIsCarriedOutLateIsFound(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	ctx := testContext(t)
	flow := workflow.Define("flow", func(ctx *workflow.Context, _ int) (int, error) {
		got, err := workflow.Receive[int](ctx, "numbers")
		return got.Body, err
	})
	entered, leave := make(chan struct{}), make(chan struct{})
	busy := workflow.DefineActivity("busy", func(context.Context, int) (int, error) {
		close(entered)
		<-leave
		return 0, nil
	})
	other := workflow.Define("other", func(ctx *workflow.Context, _ int) (int, error) {
		if _, err := busy.Execute(ctx, 1); err != nil {
			return 0, err
		}
		_, err := workflow.Receive[int](ctx, "never")
		return 0, err
	})
	w := startWorker(t, pool, []workflow.Definition{flow, other}, configured(func(c *workflow.Config) {
		c.CacheSize, c.MaxConcurrentRuns = 1, 1
		c.FallbackInterval = time.Hour // only what the test does happens
	}))
	run, err := flow.Start(ctx, w.Engine, 1)
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "it is parked", func() bool { return w.Status().Parked == 1 })
	if _, err := other.Start(ctx, w.Engine, 1); err != nil {
		t.Fatal(err)
	}
	<-entered
	if err := w.SendTo(ctx, run.ID(), "numbers", 7); err != nil { // a reason to poll, for which there is no room
		t.Fatal(err)
	}
	if _, err := pool.Exec(ctx, "update romancy.instances set status = 'running', token = token + 1 where id = $1", run.ID()); err != nil { // the late wake
		t.Fatal(err)
	}
	close(leave) // the other parks, which drops the run
	if got, err := run.Result(ctx); err != nil || got != 7 {
		t.Errorf("got %d, %v, want 7", got, err)
	}
}
