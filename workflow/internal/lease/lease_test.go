package lease_test

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/lease"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const (
	patience = 60 * time.Second
	cause    = `{"type":"workers_died","message":"they died"}`
)

type logText struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (l *logText) Write(line []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(line)
}

func (l *logText) count(what string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.text.String(), what)
}

// process is what has a lease.
type process struct {
	*lease.Keeper
	pool      *pgxpool.Pool
	store     *store.Store
	committer *commit.Committer
	log       *logText

	refuse atomic.Pointer[pgconn.PgError] // what an attempt to connect ends with; nil: it succeeds

	stopped <-chan struct{} // closed when Run is to end

	mu     sync.Mutex
	losing func() []store.Fence
	freed  []string
}

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}

func newProcess(t *testing.T, url string, long time.Duration) *process {
	t.Helper()
	pool := pgtest.Connect(t, url)
	statements, err := store.New("romancy")
	if err != nil {
		t.Fatal(err)
	}
	p := &process{pool: pool, store: statements, log: &logText{}, losing: func() []store.Fence { return nil }}
	logger := slog.New(slog.NewTextHandler(p.log, nil))
	p.committer = commit.New(commit.Config{
		Store: statements, Logger: logger,
		Connect: func(ctx context.Context) (*pgx.Conn, error) { return dial.Beside(ctx, pool, " engine", nil) },
	})
	if err := p.committer.Open(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.committer.Close(within(t)) })
	p.Keeper = lease.New(lease.Config{
		Store: statements, Committer: p.committer, Label: "process", Lease: long, Logger: logger,
		Connect: func(ctx context.Context) (*pgx.Conn, error) {
			if refused := p.refuse.Load(); refused != nil {
				return nil, refused
			}
			return dial.Beside(ctx, pool, " lease", nil)
		},
		Listening: func() bool { return false }, Answered: func() {}, Clock: func(int64, time.Time, time.Time) {},
		Lost: func() []store.Fence {
			p.mu.Lock()
			losing := p.losing
			p.mu.Unlock()
			return losing()
		},
		Registered: func() {}, Expired: func() {},
		Freed: func(runs []store.Named) {
			p.mu.Lock()
			defer p.mu.Unlock()
			for _, run := range runs {
				p.freed = append(p.freed, run.ID)
			}
		},
	})
	t.Cleanup(p.Close)
	return p
}

// run has the lease renewed until the test, or stop, ends it.
func (p *process) run(t *testing.T) (stop func()) {
	t.Helper()
	if err := p.Register(within(t)); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var running sync.WaitGroup
	running.Go(func() { p.Keeper.Run(ctx) })
	p.stopped = ctx.Done()
	stop = func() { cancel(); running.Wait() }
	t.Cleanup(stop)
	return stop
}

func (p *process) exec(t *testing.T, statement string, arguments ...any) {
	t.Helper()
	if _, err := p.pool.Exec(within(t), statement, arguments...); err != nil {
		t.Fatalf("%s: %v", statement, err)
	}
}

func (p *process) query(t *testing.T, query string, arguments ...any) (answer string) {
	t.Helper()
	if err := p.pool.QueryRow(within(t), "select coalesce(("+query+")::text, '')", arguments...).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

// own makes a run one that this process executes.
func (p *process) own(t *testing.T, id string) {
	t.Helper()
	p.exec(t, "insert into romancy.instances (id, workflow, status, worker, token, ready_at) values ($1, 'order', 'running', $2, 1, now())", id, p.ID())
	fence := store.Fence{ID: id, Token: 1, Worker: p.ID()}
	p.mu.Lock()
	defer p.mu.Unlock()
	before := p.losing
	p.losing = func() []store.Fence { return append(before(), fence) }
}

// takenOver has another process take over, for which one death is too many.
func (p *process) takenOver(t *testing.T) {
	t.Helper()
	p.take(t, &pgx.Batch{})
}

// expireAndTake does so in one transaction with the end of the lease: before this process can notice.
func (p *process) expireAndTake(t *testing.T) (former int64) {
	t.Helper()
	former = p.ID()
	batch := &pgx.Batch{}
	batch.Queue("update romancy.workers set lease_until = clock_timestamp() - interval '1 second' where id = $1", former)
	p.take(t, batch)
	return former
}

func (p *process) take(t *testing.T, batch *pgx.Batch) {
	t.Helper()
	var taken []store.TakenOver
	p.store.TakeOver(batch, 100, false, 1, []byte(cause), &taken)
	if err := p.pool.SendBatch(within(t), batch).Close(); err != nil {
		t.Fatal(err)
	}
}

// hold locks a run's row until it is let go.
func (p *process) hold(t *testing.T, id string) (letGo func()) {
	t.Helper()
	tx, err := p.pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	letGo = sync.OnceFunc(func() { _ = tx.Rollback(context.Background()) })
	t.Cleanup(letGo)
	if _, err := tx.Exec(within(t), "select from romancy.instances where id = $1 for update", id); err != nil {
		t.Fatal(err)
	}
	return letGo
}

func (p *process) state(t *testing.T, id string) string {
	t.Helper()
	return p.query(t, `select concat_ws(' ', status, deaths, (select count(*) from romancy.interruptions x where x.instance_id = i.id)) from romancy.instances i where id = $1`, id)
}

func eventually(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func url(t *testing.T) string {
	t.Helper()
	return pgtest.Pool(t).Config().ConnString()
}

// renewed waits until the lease has been renewed.
func (p *process) renewed(t *testing.T) {
	t.Helper()
	const until = "select lease_until from romancy.workers where id = $1"
	before := p.query(t, until, p.ID())
	eventually(t, "the lease is renewed", func() bool { now := p.query(t, until, p.ID()); return now != "" && now != before })
}

// A lease waits for nothing that the engine's connections wait for.
func TestHeartbeatsDoNotWaitForTheEnginesConnections(t *testing.T) {
	t.Parallel()
	p := newProcess(t, url(t), 10*time.Second)
	held, err := p.pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := held.Exec(within(t), "select pg_advisory_xact_lock(7)"); err != nil {
		t.Fatal(err)
	}
	p.run(t)
	id := p.ID()
	queued := make(chan error, 1)
	p.committer.Do(false, func(b *pgx.Batch) {
		b.Queue("set local lock_timeout = 0")
		b.Queue("select pg_advisory_xact_lock(7)")
	}, func(_ struct{}, err error) { queued <- err })
	for range 2 {
		p.renewed(t)
	}
	if err := held.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	<-queued
	if p.ID() != id {
		t.Error("the lease was lost while a statement of the engine's was under way")
	}
}

// While the lease's own connection cannot be made the engine's does, and the log says why, once.
func TestALeaseIsRenewedByTheEnginesConnectionIfItHasNoneOfItsOwn(t *testing.T) {
	t.Parallel()
	p := newProcess(t, url(t), 3*time.Second)
	p.refuse.Store(&pgconn.PgError{Code: "53300", Message: "sorry, too many clients already"})
	p.run(t)
	id := p.ID()
	for range 3 {
		p.renewed(t)
	}
	if p.ID() != id {
		t.Error("the lease was lost")
	}
	const fails, works = "the connection of this worker's lease does not work", "the connection of this worker's lease works"
	if n := p.log.count(fails); n != 1 || p.log.count("max_connections") != 1 {
		t.Errorf("said %d times, with the remedy %d times: %s", n, p.log.count("max_connections"), p.log.text.String())
	}
	p.refuse.Store(nil)
	eventually(t, "it has a connection", func() bool { return p.log.count(works) == 1 })
	if n := p.query(t, "select count(*) from pg_stat_activity where datname = current_database() and application_name like '% lease'"); n != "1" {
		t.Errorf("%s connections of the lease", n)
	}
}

// A connection that is ended, or on which nothing arrives any more, costs no lease.
func TestALeaseSurvivesTheLossOfItsConnection(t *testing.T) {
	t.Parallel()
	p := newProcess(t, url(t), 6*time.Second)
	p.run(t)
	id := p.ID()
	for range 3 {
		p.exec(t, "select pg_terminate_backend(pid) from pg_stat_activity where datname = current_database() and application_name like '% lease'")
		p.renewed(t)
	}
	if p.ID() != id {
		t.Error("the lease was lost")
	}
}

// Behind a pooler that lends one connection to many the lease is renewed as well, whatever the database's defaults.
func TestALeaseIsRenewedBehindAPoolerAndWithBadDefaults(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	if _, err := direct.Exec(within(t), `do $$ begin execute format('alter database %I set default_transaction_read_only = on', current_database());
		execute format('alter database %I set default_transaction_isolation = %L', current_database(), 'serializable'); end $$`); err != nil {
		t.Fatal(err)
	}
	pooled := pgtest.PgBouncer(t, direct.Config().ConnString(), "transaction")
	for name, url := range map[string]string{"direct": direct.Config().ConnString(), "pooler": pooled + "&default_query_exec_mode=exec"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if !strings.Contains(url, "?") {
				url = strings.Replace(url, "&", "?", 1)
			}
			p := newProcess(t, url, 3*time.Second)
			p.run(t)
			p.renewed(t)
			if n := p.log.count("level=WARN"); n != 0 {
				t.Errorf("the log says %s", p.log.text.String())
			}
		})
	}
}

// A worker that has lost its lease says that it lived: what others have counted meanwhile is taken back, and what they have made stuck goes on.
func TestAWorkerThatComesBackSaysThatItLived(t *testing.T) {
	t.Parallel()
	p := newProcess(t, url(t), 3*time.Second)
	p.run(t)
	p.own(t, "taken before")
	p.own(t, "taken after")
	former := p.ID()
	letGo := p.hold(t, "taken after")
	p.expireAndTake(t)
	eventually(t, "the run is ready", func() bool { return p.state(t, "taken before") == "ready 0 1" })
	eventually(t, "the run is announced", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.freed) == 1 && p.freed[0] == "taken before"
	})
	if p.ID() == former {
		t.Error("it has its former id")
	}
	if said := p.query(t, "select lived_at is not null from romancy.workers where id = $1", former); said != "true" {
		t.Errorf("its former row says %q", said)
	}
	letGo()
	p.takenOver(t)
	if got := p.state(t, "taken after"); got != "ready 0 1" {
		t.Errorf("taken over after the worker has said that it lived: %q", got)
	}
}

// Several leases lost in a row, the last without another: the last thing a worker does is to say that it lived.
func TestAWorkerThatShutsDownWithoutALeaseSaysThatItLived(t *testing.T) {
	t.Parallel()
	p := newProcess(t, url(t), 3*time.Second)
	stop := p.run(t)
	p.own(t, "first")
	former := p.expireAndTake(t)
	letGo := p.hold(t, "first") // so that nothing can be taken back yet
	another := func() bool { return p.ID() != former && p.ID() != 0 }
	eventually(t, "it has another id", another)
	p.own(t, "second")
	former = p.expireAndTake(t)
	eventually(t, "it has another id", another)
	p.own(t, "third")
	p.mu.Lock()
	gone, before := make(chan struct{}), p.losing
	p.losing = func() []store.Fence {
		close(gone)
		<-p.stopped // before it can register
		return before()
	}
	p.mu.Unlock()
	p.expireAndTake(t)
	<-gone
	stop()
	if p.ID() != 0 {
		t.Fatal("it has another id")
	}
	if got := p.state(t, "third"); got != "stuck 1 0" {
		t.Fatalf("before it has left the third is %q", got)
	}
	left := make(chan error, 1)
	go func() { _, err := p.Leave(within(t)); left <- err }()
	eventually(t, "the third is ready", func() bool { return p.state(t, "third") == "ready 0 1" })
	select {
	case err := <-left:
		t.Fatalf("it has left while the first cannot be mended: %v", err)
	default:
	}
	letGo()
	if err := <-left; err != nil {
		t.Fatal(err)
	}
	for _, id := range []string{"first", "second"} {
		if got := p.state(t, id); got != "ready 0 1" {
			t.Errorf("the %s is %q", id, got)
		}
	}
	if n := p.query(t, "select count(*) from romancy.workers where lease_until > clock_timestamp()"); n != "0" {
		t.Errorf("%s workers have leases", n)
	}
}
