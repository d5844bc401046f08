package riverjobs

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"

	"github.com/romancy-go/romancy/internal/pgtest"
)

const patience = 30 * time.Second

// bundle is a database with River's tables and sweeps that say when they run.
type bundle struct {
	pool    *pgxpool.Pool
	healthy atomic.Bool
	log     lockedBuffer
	swept   map[string]chan struct{}
	fail    atomic.Pointer[error]
}

func setup(t *testing.T) *bundle {
	t.Helper()
	b := &bundle{pool: pgtest.Pool(t), swept: map[string]chan struct{}{}}
	if err := Migrate(t.Context(), b.pool, "romancy"); err != nil {
		t.Fatal(err)
	}
	for _, kind := range kinds {
		b.swept[kind.name] = make(chan struct{}, 1000)
	}
	return b
}

func (b *bundle) sweep(kind string) Sweep {
	return Sweep{Kind: kind, Run: func(context.Context) (int, error) {
		b.swept[kind] <- struct{}{}
		if err := b.fail.Load(); err != nil {
			return 0, *err
		}
		return 1, nil
	}}
}

func (b *bundle) config() Config {
	config := Config{
		Pool:    b.pool,
		Healthy: b.healthy.Load,
		Logger:  slog.New(slog.NewTextHandler(&b.log, &slog.HandlerOptions{Level: slog.LevelInfo})),
	}
	for _, kind := range kinds {
		config.Sweeps = append(config.Sweeps, b.sweep(kind.name))
	}
	return config
}

func start(t *testing.T, config Config) *Jobs {
	t.Helper()
	jobs, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	startJobs(t, jobs)
	return jobs
}

func startJobs(t *testing.T, jobs *Jobs) {
	t.Helper()
	if err := jobs.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stopJobs(t, jobs) })
}

func stopJobs(t *testing.T, jobs *Jobs) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := jobs.Stop(ctx); err != nil {
		t.Errorf("stop: %v", err)
	}
}

func await[T any](t *testing.T, what string, signal <-chan T) T {
	t.Helper()
	select {
	case value := <-signal:
		return value
	case <-time.After(patience):
		t.Fatalf("waited %s for %s", patience, what)
		panic("unreachable")
	}
}

func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	deadline := time.After(patience)
	for !condition() {
		select {
		case <-ticker.C:
		case <-deadline:
			t.Fatalf("waited %s until %s", patience, what)
		}
	}
}

func count(t *testing.T, pool *pgxpool.Pool, where string, args ...any) (n int) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), "select count(*) from romancy.river_job where "+where, args...).Scan(&n); err != nil {
		t.Fatal(err)
	}
	return n
}

type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

func TestAnUnwellListenerMakesEveryKindSweepAtOnceAndAgainAtItsInterval(t *testing.T) {
	t.Parallel()
	b := setup(t)
	start(t, b.config())
	for _, kind := range kinds {
		await(t, kind.name, b.swept[kind.name])
	}
	for range 2 {
		await(t, "the next resumption", b.swept[KindResume])
		await(t, "the next timers", b.swept[KindTimers])
		await(t, "the next outbox", b.swept[KindOutbox])
	}
	if got := len(b.swept[KindRetention]); got != 0 {
		t.Errorf("retention ran %d more times within seconds, want once a minute", got)
	}
	if log := b.log.String(); strings.Contains(log, "PeriodicJobEnqueuer") {
		t.Errorf("an own client's ticks show in the log at INFO:\n%s", log)
	}
}

func TestAHealthyClusterWritesNoJob(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.healthy.Store(true)
	jobs := start(t, b.config())
	eventually(t, "this process leads", jobs.Leading)
	first := jobs.lastTick.Load()
	eventually(t, "it has ticked three seconds long", func() bool { return jobs.lastTick.Load()-first > int64(3*time.Second) })
	var inserted int64
	if err := b.pool.QueryRow(t.Context(), "select coalesce(pg_sequence_last_value('romancy.river_job_id_seq'), 0)").Scan(&inserted); err != nil {
		t.Fatal(err)
	}
	if inserted != 0 {
		t.Errorf("%d jobs were inserted by a healthy cluster, want none", inserted)
	}

	b.healthy.Store(false)
	await(t, "the sweep of the first unwell tick", b.swept[KindResume])
}

func TestLowerDeadlineSweepsTimersBeforeTheFallback(t *testing.T) {
	t.Parallel()
	b := setup(t)
	b.healthy.Store(true)
	var due atomic.Pointer[time.Time]
	config := b.config()
	for i := range config.Sweeps {
		if config.Sweeps[i].Kind == KindTimers {
			run := config.Sweeps[i].Run
			config.Sweeps[i].NextDue = func(context.Context) (time.Time, bool, error) {
				if at := due.Load(); at != nil {
					return *at, true, nil
				}
				return time.Time{}, false, nil
			}
			config.Sweeps[i].Run = func(ctx context.Context) (int, error) {
				due.Store(nil)
				return run(ctx)
			}
		}
	}
	jobs := start(t, config)
	eventually(t, "this process leads", jobs.Leading)

	at := time.Now().Add(time.Second) // the database's clock is ours here
	due.Store(&at)
	jobs.LowerDeadline(at)
	begin := time.Now()
	await(t, "the timers' sweep", b.swept[KindTimers])
	if took := time.Since(begin); took < time.Second {
		t.Errorf("swept %s after the announcement, before the deadline", took)
	}
	if n := count(t, b.pool, "kind <> $1::text", KindTimers); n != 0 {
		t.Errorf("%d jobs of other kinds were inserted", n)
	}
}

func TestAFailedSweepIsVisibleNotRetriedAndTheNextTickSweepsAgain(t *testing.T) {
	t.Parallel()
	b := setup(t)
	broken := errors.New("no such table")
	b.fail.Store(&broken)
	config := b.config()
	config.Sweeps = []Sweep{b.sweep(KindResume)}
	start(t, config)
	await(t, "the failing sweep", b.swept[KindResume])
	await(t, "the next one", b.swept[KindResume])
	await(t, "the one after that", b.swept[KindResume])
	eventually(t, "the failure is recorded", func() bool {
		return count(t, b.pool, "kind = $1::text and state = 'cancelled' and attempt = 1 and errors[1]->>'error' like '%no such table%'", KindResume) > 0
	})
	if log := b.log.String(); strings.Count(log, "sweep failed") != 1 || !strings.Contains(log, "no such table") {
		t.Errorf("the failure is not in the log, once:\n%s", log)
	}
	b.fail.Store(nil)
	eventually(t, "a sweep succeeds", func() bool {
		return count(t, b.pool, "kind = $1::text and state = 'completed'", KindResume) > 0
	})
	if log := b.log.String(); strings.Count(log, "sweeps succeed again") != 1 {
		t.Errorf("the end is not in the log, once:\n%s", log)
	}
}

func TestASweepRunsOnceAtATimeInTheWholeCluster(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var running, most, runs atomic.Int32
	release := make(chan struct{})
	sweep := Sweep{Kind: KindOutbox, Run: func(ctx context.Context) (int, error) {
		most.Store(max(most.Load(), running.Add(1)))
		defer running.Add(-1)
		runs.Add(1)
		select {
		case <-release:
		case <-ctx.Done():
		}
		return 0, ctx.Err()
	}}
	var leader *Jobs
	for range 2 {
		config := b.config()
		config.Sweeps = []Sweep{sweep}
		jobs := start(t, config)
		if leader == nil {
			leader = jobs
		}
	}
	eventually(t, "a sweep runs", func() bool { return running.Load() > 0 })
	first := leader.lastTick.Load()
	eventually(t, "three more ticks have passed", func() bool { return leader.lastTick.Load()-first > int64(3*time.Second) })
	// A new period may have begun between the ticks, and with it one more.
	if got := most.Load(); got > 2 {
		t.Errorf("%d sweeps of a kind ran at once", got)
	}
	close(release)
	eventually(t, "the sweeps go on", func() bool { return runs.Load() > 2 })
}

func TestStopCancelsARunningSweepAndWaits(t *testing.T) {
	t.Parallel()
	b := setup(t)
	var ended atomic.Bool
	running := make(chan struct{}, 1)
	config := b.config()
	config.Sweeps = []Sweep{{Kind: KindResume, Run: func(ctx context.Context) (int, error) {
		running <- struct{}{}
		<-ctx.Done()
		ended.Store(true)
		return 0, ctx.Err()
	}}}
	jobs := start(t, config)
	await(t, "the sweep", running)
	stopJobs(t, jobs)
	if !ended.Load() {
		t.Error("Stop returned while a sweep was running")
	}
	stopJobs(t, jobs) // again is fine
	if err := jobs.Start(t.Context()); !errors.Is(err, ErrStopped) {
		t.Errorf("start after stop: %v, want ErrStopped", err)
	}
	if strings.Contains(b.log.String(), "sweep failed") {
		t.Errorf("a shutdown is logged as a failure:\n%s", b.log.String())
	}
}

func TestStartAndStopInAnyOrderLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	b := setup(t)
	for range 10 {
		jobs, err := New(b.config())
		if err != nil {
			t.Fatal(err)
		}
		var both sync.WaitGroup
		both.Go(func() {
			if err := jobs.Start(t.Context()); err != nil && !errors.Is(err, ErrStopped) {
				t.Errorf("start: %v", err)
			}
		})
		both.Go(func() { stopJobs(t, jobs) })
		both.Wait()
		stopJobs(t, jobs)
	}
}

func TestStartWithoutRiversTablesSaysWhatToDo(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	jobs, err := New(Config{Pool: pool, Sweeps: []Sweep{(&bundle{}).sweep(KindResume)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := jobs.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "run romancy.Migrate first") {
		t.Fatalf("start: %v, want the remedy", err)
	}
	if err := Migrate(t.Context(), pool, "romancy"); err != nil {
		t.Fatal(err)
	}
	startJobs(t, jobs) // works now
}

func TestConcurrentMigrationsWaitForOneAnother(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			if err := Migrate(t.Context(), pool, "romancy"); err != nil {
				t.Errorf("migrate: %v", err)
			}
		})
	}
	all.Wait()
}

func TestNewReportsAllMistakesAtOnce(t *testing.T) {
	t.Parallel()
	_, err := New(Config{
		Schema: "Not A Schema", FallbackInterval: -time.Second, Workers: river.NewWorkers(),
		Sweeps: []Sweep{
			{Kind: "resume", Run: func(context.Context) (int, error) { return 0, nil }},
			{Kind: KindTimers, Interval: -1},
			{Kind: KindTimers, Run: func(context.Context) (int, error) { return 0, nil }},
		},
	})
	for _, want := range []string{
		"Client is nil", `"Not A Schema"`, "FallbackInterval is -1s", `Sweeps[0].Kind is "resume": use one of romancy_resume`,
		"Sweeps[1].Run is nil", "Sweeps[1].Interval (romancy_timers) is -1ns", `Sweeps[2].Kind is "romancy_timers" again`,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q:\n%v", want, err)
		}
	}
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "Pool is nil") || !strings.Contains(err.Error(), "Sweeps is empty") {
		t.Errorf("the zero config: %v", err)
	}
}

func TestAPanickingHealthCheckWritesNothingAndLeavesTheHostsTicksAlone(t *testing.T) {
	t.Parallel()
	b := setup(t)
	config := b.config()
	var calls atomic.Int32
	config.Healthy = func() bool { calls.Add(1); panic("host code") }
	start(t, config)
	eventually(t, "it was asked by two ticks", func() bool { return calls.Load() > 10 })
	if n := count(t, b.pool, "true"); n != 0 {
		t.Errorf("%d jobs were inserted", n)
	}
}
