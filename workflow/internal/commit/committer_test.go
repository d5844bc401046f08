package commit_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

func TestMain(m *testing.M) { os.Exit(pgtest.Main(m)) }

const patience = 30 * time.Second

func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	t.Cleanup(cancel)
	return ctx
}

// committer returns one that connects through pool's configuration and is to be opened.
func committer(t *testing.T, pool *pgxpool.Pool, change func(*commit.Config)) *commit.Committer {
	t.Helper()
	statements, err := store.New("romancy")
	if err != nil {
		t.Fatal(err)
	}
	config := commit.Config{
		Store:   statements,
		Connect: func(ctx context.Context) (*pgx.Conn, error) { return dial.Beside(ctx, pool, " engine", nil) },
		Logger:  slog.New(slog.DiscardHandler),
	}
	change(&config)
	return commit.New(config)
}

// open returns a committer that works.
func open(t *testing.T, pool *pgxpool.Pool) *commit.Committer {
	t.Helper()
	return opened(t, committer(t, pool, func(c *commit.Config) { c.LockTimeout = 200 * time.Millisecond }))
}

func opened(t *testing.T, c *commit.Committer) *commit.Committer {
	t.Helper()
	if err := c.Open(within(t)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(context.Background()) })
	return c
}

func start(t *testing.T, c *commit.Committer, id string) {
	t.Helper()
	started, err := commit.Await(within(t), func(then func(commit.Started, error)) {
		c.Start(store.Start{ID: id, Workflow: "flow", Input: []byte("1"), Worker: 1}, then)
	})
	if err != nil || !started.Created {
		t.Fatalf("start %s: %+v, %v", id, started, err)
	}
}

func step(id string, position int32, payload string) store.Append {
	return store.Append{Fence: store.Fence{ID: id, Token: 1, Worker: 1}, Position: position, Kind: "activity", Name: "work", Payload: []byte(payload)}
}

// One operation that the database refuses fails alone; those that shared its transaction are carried out.
func TestPoisonedOperationFailsAlone(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := open(t, pool)
	const runs = 50
	for i := range runs {
		start(t, c, fmt.Sprint("run-", i))
	}
	errs := make([]error, runs)
	var wg sync.WaitGroup
	for i := range runs {
		payload := "{}"
		if i == 17 {
			payload = "this is not JSON"
		}
		wg.Add(1)
		c.Append(nil, step(fmt.Sprint("run-", i), 1, payload), func(_ struct{}, err error) { errs[i] = err; wg.Done() })
	}
	wg.Wait()
	for i, err := range errs {
		if (err != nil) != (i == 17) {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	var stored int
	if err := pool.QueryRow(within(t), "select count(*) from romancy.history").Scan(&stored); err != nil || stored != runs-1 {
		t.Errorf("%d records, %v; want %d", stored, err, runs-1)
	}
}

// register gives worker 1 a lease that ends after the given time, or ended so long ago.
func register(t *testing.T, pool *pgxpool.Pool, lease time.Duration) {
	t.Helper()
	if _, err := pool.Exec(within(t), `insert into romancy.workers (id, label, lease_until) values (1, 'test', clock_timestamp() + $1::interval)
		on conflict (id) do update set lease_until = excluded.lease_until`, lease); err != nil {
		t.Fatal(err)
	}
}

// A worker whose lease has run out, and who may not know it, wakes nothing.
func TestWorkerWithoutLeaseWakesNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := open(t, pool)
	start(t, c, "run")
	at := time.Now().Add(-time.Hour).UnixMicro()
	fence := store.Fence{ID: "run", Token: 1, Worker: 1}
	if _, err := pool.Exec(within(t), "update romancy.instances set status = 'waiting', wake_at = to_timestamp($1::bigint / 1000000)", at); err != nil {
		t.Fatal(err)
	}
	wake := func(lease time.Duration) error {
		register(t, pool, lease)
		_, err := commit.Await(within(t), func(then func(store.Waited, error)) { c.Wake(store.Wake{Fence: fence}, then, nil) })
		return err
	}
	if err := wake(-time.Second); !errors.Is(err, commit.ErrFenced) {
		t.Errorf("without a lease: %v, want ErrFenced", err)
	}
	if err := wake(time.Hour); err != nil {
		t.Errorf("with a lease: %v", err)
	}
}

// Of two competitors in one flush the first has mail of its own: the second gets the message that both compete for.
func TestCompetitorsOfOneFlushOverlookNoMessage(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := open(t, pool)
	waits := []store.Wait{{Channel: "c", Competing: true, Position: 1}, {Channel: "c", Competing: true, Position: 1}}
	for i := range waits {
		waits[i].Fence = store.Fence{ID: fmt.Sprint("run-", i), Token: 1, Worker: 1}
		start(t, c, waits[i].ID)
		waited, err := commit.Await(within(t), func(then func(store.Waited, error)) { c.Wait(nil, waits[i], then) })
		if err != nil || waited.Outcome != store.Parked {
			t.Fatalf("run %d: %+v, %v", i, waited, err)
		}
	}
	if _, err := pool.Exec(within(t), `insert into romancy.mailbox (channel, mode, receiver, payload)
		values ('c', 'competing', null, '"shared"'), ('c', 'direct', 'run-0', '"own"')`); err != nil {
		t.Fatal(err)
	}
	register(t, pool, time.Hour)
	var wg sync.WaitGroup
	wg.Add(1 + len(waits))
	// While this is under way, the others queue up.
	c.Do(false, func(b *pgx.Batch) { b.Queue("select pg_sleep(0.2)") }, func(struct{}, error) { wg.Done() })
	messages := make([]string, len(waits))
	for i, wait := range waits {
		ask := store.Wake{Fence: wait.Fence, Position: wait.Position, Channel: wait.Channel, Competing: wait.Competing}
		c.Wake(ask, func(waited store.Waited, err error) {
			if err != nil {
				t.Error(err)
			}
			messages[i] = string(waited.Message)
			wg.Done()
		}, nil)
	}
	wg.Wait()
	if !strings.Contains(messages[0], `"own"`) || !strings.Contains(messages[1], `"shared"`) {
		t.Errorf("got %q", messages)
	}
}

// What a run asks for after a failure is not attempted: its history has no holes.
func TestStreamStopsAtItsFirstFailure(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := open(t, pool)
	start(t, c, "run")
	stream := &commit.Stream{}
	var first error
	c.Append(stream, step("run", 1, "not JSON"), func(_ struct{}, err error) { first = err })
	_, second := commit.Await(within(t), func(then func(struct{}, error)) { c.Append(stream, step("run", 2, "{}"), then) })
	_, third := commit.Await(within(t), func(then func(struct{}, error)) {
		c.Finish(stream, store.Finish{Fence: store.Fence{ID: "run", Token: 1, Worker: 1}, Status: "completed"}, then)
	})
	if first == nil || second == nil || third == nil {
		t.Fatalf("got %v, %v, %v: want three failures", first, second, third)
	}
	var stored int
	if err := pool.QueryRow(within(t), "select count(*) from romancy.history").Scan(&stored); err != nil || stored != 0 {
		t.Errorf("%d records, %v", stored, err)
	}
}

// A writer whose token has moved on writes nothing, whatever it tries.
func TestFencedOperationsChangeNothing(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := open(t, pool)
	start(t, c, "run")
	if _, err := pool.Exec(within(t), "update romancy.instances set token = 2, worker = 2"); err != nil {
		t.Fatal(err)
	}
	ctx, fence := within(t), store.Fence{ID: "run", Token: 1, Worker: 1}
	delay := int64(1000)
	for name, attempt := range map[string]func() error{
		"append": func() error {
			_, err := commit.Await(ctx, func(then func(struct{}, error)) { c.Append(nil, step("run", 1, "{}"), then) })
			return err
		},
		"finish": func() error {
			_, err := commit.Await(ctx, func(then func(struct{}, error)) { c.Finish(nil, store.Finish{Fence: fence, Status: "completed"}, then) })
			return err
		},
		"wait": func() error {
			_, err := commit.Await(ctx, func(then func(store.Waited, error)) {
				c.Wait(nil, store.Wait{Fence: fence, TimerPosition: 1, TimerName: "sleep", DelayMicros: &delay}, then)
			})
			return err
		},
		"retry": func() error {
			_, err := commit.Await(ctx, func(then func(store.Waited, error)) {
				c.Retry(nil, store.Retry{Fence: fence, Position: 1, Attempt: 1, Error: []byte("{}")}, then)
			})
			return err
		},
		"send": func() error {
			_, err := commit.Await(ctx, func(then func(store.Delivered, error)) {
				c.Deliver(nil, store.Deliver{Fence: fence, Position: 1, Target: "run", Channel: "c", Payload: []byte("1")}, then)
			})
			return err
		},
		"subscribe": func() error {
			_, err := commit.Await(ctx, func(then func(string, error)) {
				c.Subscribe(nil, store.Subscribe{Fence: fence, Position: 1, Channel: "c", Mode: "broadcast"}, then)
			})
			return err
		},
		"release": func() error {
			_, err := commit.Await(ctx, func(then func(store.Named, error)) { c.Release(fence, then) })
			return err
		},
	} {
		if err := attempt(); !errors.Is(err, commit.ErrFenced) {
			t.Errorf("%s: %v, want ErrFenced", name, err)
		}
	}
	for _, table := range []string{"history", "attempts", "mailbox", "subscriptions"} {
		var rows int
		if err := pool.QueryRow(ctx, "select count(*) from romancy."+table).Scan(&rows); err != nil || rows != 0 {
			t.Errorf("%d rows in %s, %v", rows, table, err)
		}
	}
	var status string
	if err := pool.QueryRow(ctx, "select status from romancy.instances").Scan(&status); err != nil || status != "running" {
		t.Errorf("the run is %s, %v", status, err)
	}
}

// Connections that break at any moment: what may be repeated is recorded exactly once, and every operation is answered.
func TestOperationsSurviveBrokenConnections(t *testing.T) {
	t.Parallel()
	direct := pgtest.Pool(t)
	proxy := pgtest.NewProxy(t, direct.Config().ConnString())
	c := open(t, pgtest.Connect(t, proxy.URL()))
	start(t, c, "run")
	const steps = 200
	for position := range int32(steps) {
		cut := make(chan struct{})
		go func() {
			if position%4 == 0 {
				proxy.Cut()
			}
			close(cut)
		}()
		_, err := commit.Await(within(t), func(then func(struct{}, error)) { c.Append(nil, step("run", position+1, "{}"), then) })
		<-cut
		if err != nil {
			t.Fatalf("step %d: %v", position+1, err)
		}
	}
	var stored, last int
	if err := direct.QueryRow(within(t), "select count(*), max(position) from romancy.history").Scan(&stored, &last); err != nil || stored != steps || last != steps {
		t.Errorf("%d records up to %d, %v; want %d", stored, last, err, steps)
	}
}

// A row that another transaction holds is waited for briefly, and by nobody else.
func TestHeldRowDelaysOnlyItsOwnOperation(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := open(t, pool)
	ctx := within(t)
	tx, err := pool.Begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.Background()) }()
	if _, err := tx.Exec(ctx, "insert into romancy.instances (id, workflow, status, token, ready_at) values ('held', 'flow', 'ready', 0, now())"); err != nil {
		t.Fatal(err)
	}
	held := make(chan error, 1)
	c.Start(store.Start{ID: "held", Workflow: "flow"}, func(_ commit.Started, err error) { held <- err })
	for i := range 5 {
		start(t, c, fmt.Sprint("free-", i))
	}
	if err := <-held; !errors.Is(err, commit.ErrLocked) {
		t.Errorf("start of a held id: %v, want ErrLocked", err)
	}
}

func TestCloseCarriesOutWhatIsQueuedAndRefusesTheRest(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	c := open(t, pool)
	start(t, c, "run")
	outcomes := make(chan error, 20)
	for position := range int32(20) {
		c.Append(nil, step("run", position+1, "{}"), func(_ struct{}, err error) { outcomes <- err })
	}
	c.Close(within(t))
	for range 20 {
		if err := <-outcomes; err != nil {
			t.Errorf("queued before Close: %v", err)
		}
	}
	_, err := commit.Await(within(t), func(then func(struct{}, error)) { c.Append(nil, step("run", 21, "{}"), then) })
	if !errors.Is(err, commit.ErrClosed) {
		t.Errorf("after Close: %v, want ErrClosed", err)
	}
}
