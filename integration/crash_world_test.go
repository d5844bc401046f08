package integration_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

const (
	// crashPatience bounds a whole test: it only decides how long a failure takes.
	crashPatience = 5 * time.Minute
	// crashGroup is how many orders wait for the same broadcast.
	crashGroup = 12
)

// crashWorld is a database with worker processes on it, and the customers in this process.
type crashWorld struct {
	t      *testing.T
	ctx    context.Context //nolint:containedctx // the test's
	pool   *pgxpool.Pool   // the test's own
	rng    *rand.Rand      // of the test's goroutine
	app    *romancy.App
	flows  crashFlows
	config crashWorkerConfig
	// unreliable: the database goes away now and then, so the customers make sure that what they send arrives once.
	unreliable bool
	// patience replaces crashPatience.
	patience time.Duration
	// inTransactions: customers start runs and send messages in transactions of their own, together with what they note.
	inTransactions atomic.Bool
	// each, if given, changes the configuration of the nth worker process, counted from 1.
	each func(n int, config *crashWorkerConfig)
	// others are runs beside the orders.
	others []expectedRun
	// mail is what those were sent.
	mail []expectedMail

	workers   []*crashProcess // two, unless change makes room for more
	spawned   int
	hit       int // runs that were a worker's when it was hit
	orders    []crashOrder
	customers sync.WaitGroup
	// customersPool reaches the database as the workers do.
	customersPool *pgxpool.Pool
}

// newCrashWorld starts the workers and the auditor on the database that url names. ROMANCY_SEED repeats a run.
func newCrashWorld(t *testing.T, url string, change func(*crashWorld)) *crashWorld {
	t.Helper()
	seed := rand.Uint64()
	if text := os.Getenv("ROMANCY_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("ROMANCY_SEED: %v", err)
		}
	}
	t.Logf("ROMANCY_SEED=%d", seed)
	w := &crashWorld{
		t: t, rng: rand.New(rand.NewPCG(seed, 0)), flows: (&crashShop{}).flows(), patience: crashPatience,
		config:  crashWorkerConfig{Database: url, Notify: true, Lease: time.Second, Fallback: 2 * time.Second},
		workers: make([]*crashProcess, 2),
	}
	change(w)
	ctx, cancel := context.WithTimeout(t.Context(), w.patience)
	t.Cleanup(cancel)
	w.ctx = ctx
	t.ArtifactDir() // made before the cleanups below, so that it is removed after them
	w.pool = pgtest.Connect(t, url)
	if err := romancy.Migrate(ctx, w.pool); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Exec(ctx, crashTables); err != nil {
		t.Fatal(err)
	}
	if _, err := w.pool.Exec(ctx, "insert into shop.stock select 'product-' || n, $1::bigint from generate_series(0, $2::integer - 1) n",
		crashInitialStock, crashProducts); err != nil {
		t.Fatal(err)
	}
	w.customersPool = w.pool
	if w.config.Database != url {
		w.customersPool = pgtest.Connect(t, w.config.Database)
	}
	options := []romancy.Option{
		romancy.WithPool(w.customersPool), romancy.WithClientOnly(), romancy.WithLogger(noLogs),
		romancy.WithListenNotify(&w.config.Notify), romancy.WithNotifyFallbackInterval(w.config.Fallback),
		romancy.WithWorkflows(w.flows.definitions()...),
	}
	if w.config.Listen != "" {
		options = append(options, romancy.WithListenURL(w.config.Listen))
	}
	w.app = romancy.NewApp(options...)
	if err := w.app.Start(ctx); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		// The customers use the App, and their context has ended by now if they have not.
		w.customers.Wait()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
		defer cancel()
		if err := w.app.Shutdown(ctx); err != nil {
			t.Errorf("shut the customers' App down: %v", err)
		}
	})
	t.Cleanup(cancel)
	t.Cleanup(func() {
		for _, worker := range w.workers {
			if worker != nil {
				worker.kill()
			}
		}
	})
	t.Cleanup(w.dumpIfFailed)
	for i := range w.workers {
		w.replace(i)
	}
	for _, worker := range w.workers {
		w.must(worker.awaitReady(ctx))
	}
	return w
}

func (w *crashWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// replace starts a worker in slot i.
func (w *crashWorld) replace(i int) {
	w.spawned++
	config := w.config
	config.Name = fmt.Sprintf("worker-%d", w.spawned)
	if w.each != nil {
		w.each(w.spawned, &config)
	}
	w.workers[i] = spawnCrashWorker(w.t, config)
}

// between returns a random duration.
func (w *crashWorld) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.rng.Int64N(int64(to-from)))
}

// pause waits for a random time: at which moment something breaks is the point of these tests.
func (w *crashWorld) pause(from, to time.Duration) {
	select {
	case <-time.After(w.between(from, to)):
	case <-w.ctx.Done():
	}
}

// openFor starts the auditor, who waits for so many orders.
func (w *crashWorld) openFor(orders int) {
	w.must(w.retry(func() error {
		_, err := w.flows.auditor.Start(w.ctx, w.app.Engine(), orders, workflow.WithID(crashAuditor))
		return err
	}))
}

// arrive lets n more customers order, each in its own goroutine. The last of a group sends the group's news.
func (w *crashWorld) arrive(n int) {
	for range n {
		number := len(w.orders)
		order := crashOrder{Number: number, Group: number / crashGroup}
		w.orders = append(w.orders, order)
		delay := w.between(0, 300*time.Millisecond)
		w.customers.Go(func() { w.report(w.serve(order, delay)) })
		if len(w.orders)%crashGroup == 0 {
			w.customers.Go(func() { w.report(w.broadcast(order)) })
		}
	}
}

func (w *crashWorld) report(err error) {
	if err != nil {
		w.t.Error(err)
	}
}

// serve is one customer: orders, twice to be sure, sends what the order waits for, and waits for the outcome.
func (w *crashWorld) serve(order crashOrder, delay time.Duration) error {
	engine := w.app.Engine()
	for range 2 {
		if err := w.retry(func() error { return w.order(order) }); err != nil {
			return err
		}
	}
	select {
	case <-time.After(delay):
	case <-w.ctx.Done():
		return w.ctx.Err()
	}
	if err := w.send(order.ID(), "approvals", order.approval()); err != nil {
		return err
	}
	if err := w.send("", "vans", order.van()); err != nil {
		return err
	}
	return w.retry(func() error {
		receipt, err := w.flows.order.Run(engine, order.ID()).Result(w.ctx)
		if failure := new(workflow.RunError); order.refused() && errors.As(err, &failure) {
			if failure.Status != workflow.StatusFailed || failure.Type != "refused" {
				w.t.Errorf("%s: %v, want it refused", order.ID(), err)
			}
			return nil
		}
		if err == nil && (receipt.Approval != order.approval() || receipt.News != order.news() || receipt.Van == "") {
			w.t.Errorf("%s: receipt %+v", order.ID(), receipt)
		}
		return err
	})
}

// order starts the order's run.
func (w *crashWorld) order(order crashOrder) error {
	if !w.inTransactions.Load() {
		_, err := w.flows.order.Start(w.ctx, w.app.Engine(), order, workflow.WithID(order.ID()))
		return err
	}
	return pgx.BeginFunc(w.ctx, w.customersPool, func(tx pgx.Tx) error {
		_, err := w.flows.order.StartTx(w.ctx, tx, w.app.Engine(), order, workflow.WithID(order.ID()))
		return err
	})
}

// broadcast sends the news of a group once all of its orders have subscribed to them.
func (w *crashWorld) broadcast(order crashOrder) error {
	if err := w.until("the orders of a group have subscribed", func() (bool, error) {
		return w.holds("select count(*) = $2::integer from romancy.subscriptions where channel = $1::text", order.news(), crashGroup)
	}); err != nil {
		return err
	}
	return w.send("", order.news(), order.news())
}

// send sends a message to a run, or publishes it, exactly once.
func (w *crashWorld) send(to, channel, key string) error {
	engine, message := w.app.Engine(), crashMessage{Key: key}
	if w.unreliable || w.inTransactions.Load() {
		return w.retry(func() error { return w.sendOnce(to, channel, message) })
	}
	if to == "" {
		return engine.Publish(w.ctx, channel, message)
	}
	return engine.SendTo(w.ctx, to, channel, message)
}

// sendOnce notes in the message's own transaction that it was sent: if the answer to the commit is lost, the next attempt
// finds the note.
func (w *crashWorld) sendOnce(to, channel string, message crashMessage) error {
	return pgx.BeginFunc(w.ctx, w.customersPool, func(tx pgx.Tx) error {
		noted, err := tx.Exec(w.ctx, "insert into shop.sent values ($1::text) on conflict do nothing", message.Key)
		if err != nil || noted.RowsAffected() == 0 {
			return err
		}
		if to == "" {
			return w.app.Engine().PublishTx(w.ctx, tx, channel, message)
		}
		return w.app.Engine().SendToTx(w.ctx, tx, to, channel, message)
	})
}

// retry calls do again after errors if the database is unreliable.
func (w *crashWorld) retry(do func() error) error {
	for {
		err := do()
		if err == nil || !w.unreliable || w.ctx.Err() != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-w.ctx.Done():
		}
	}
}

// holds asks a question that the database answers with true or false.
func (w *crashWorld) holds(question string, args ...any) (answer bool, err error) {
	err = w.retry(func() error { return w.pool.QueryRow(w.ctx, question, args...).Scan(&answer) })
	return answer, err
}

// until waits until done is.
func (w *crashWorld) until(what string, done func() (bool, error)) error {
	for {
		ok, err := done()
		if ok || err != nil {
			return err
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-w.ctx.Done():
			return fmt.Errorf("waited in vain until %s: %w", what, w.ctx.Err())
		}
	}
}

// victim picks a worker at random.
func (w *crashWorld) victim() (slot int, label string) {
	slot = w.rng.IntN(len(w.workers))
	return slot, w.aimAt(slot)
}

// committed picks the worker that is the first to commit a transactional step from now on, and returns as soon as it has,
// before it can do much else. If none does for a while, it picks one at random.
func (w *crashWorld) committed() (slot int) {
	const entry = "select coalesce(max(id), 0), coalesce((array_agg(worker order by id desc))[1], '') from shop.ledger"
	var before, now int64
	var worker string
	w.must(w.pool.QueryRow(w.ctx, entry).Scan(&before, &worker))
	for began := time.Now(); time.Since(began) < 2*time.Second; {
		w.must(w.pool.QueryRow(w.ctx, entry).Scan(&now, &worker))
		for slot, candidate := range w.workers {
			if now > before && candidate.name == worker {
				w.hit++
				return slot
			}
		}
	}
	slot, _ = w.victim()
	return slot
}

// aimAt tells what is about to hit a worker: how many runs it is executing, and how many it holds parked.
func (w *crashWorld) aimAt(slot int) (label string) {
	label = strconv.Itoa(w.workers[slot].command.Process.Pid)
	var executing, parked int
	w.must(w.pool.QueryRow(w.ctx, `select count(*) filter (where i.status = 'running'), count(*) filter (where i.status = 'waiting')
		from romancy.instances i join romancy.workers k on k.id = i.worker
		where k.label like '%/' || $1::text`, label).Scan(&executing, &parked))
	w.t.Logf("%s is hit, executing %d run(s), holding %d parked", w.workers[slot].name, executing, parked)
	w.hit += executing + parked
	return label
}

// settle waits until everything has ended and been delivered, shuts the workers down and checks all tables.
func (w *crashWorld) settle() {
	w.t.Helper()
	quiet := time.Now()
	w.customers.Wait()
	if w.t.Failed() {
		w.t.FailNow()
	}
	ended := time.Since(quiet)
	w.must(w.until("all runs have ended, all events are delivered, the dead are buried", func() (bool, error) {
		return w.holds(`select not exists (select 1 from romancy.instances where ended_at is null)
			and not exists (select 1 from romancy.outbox) and (select count(*) = $1::integer from romancy.workers)`, len(w.workers))
	}))
	w.t.Logf("all runs had ended %s after the last disturbance, and everything was settled after %s",
		ended.Round(time.Millisecond), time.Since(quiet).Round(time.Millisecond))
	for _, worker := range w.workers {
		w.must(worker.stop(w.ctx))
	}
	violations, err := w.check(w.pool)
	w.must(err)
	for _, violation := range violations {
		w.t.Error(violation)
	}
	text, err := summary(w.ctx, w.pool)
	w.must(err)
	w.t.Logf("%d orders, %d workers: %s", len(w.orders), w.spawned, text)
}

// dumpIfFailed shows what is not as it should be, before the database is dropped.
func (w *crashWorld) dumpIfFailed() {
	if !w.t.Failed() {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.ctx), 10*time.Second)
	defer cancel()
	type row struct{ Line string }
	var lines []string
	c := &checker{ctx: ctx, db: w.pool}
	err := each(c, `
		select line from (select format('run %s: %s, worker %s, token %s, ready_at %s, wake_at %s, on %s, last step %s', i.id, i.status, i.worker, i.token,
			i.ready_at, i.wake_at, i.wake_channels, (select format('%s %s %s at %s', h.position, h.kind, h.name, h.created_at)
				from romancy.history h where h.instance_id = i.id order by h.position desc limit 1)) as line
			from romancy.instances i where i.ended_at is null order by i.id) runs
		union all select format('worker %s %s: listening %s, lease until %s', id, label, listening, lease_until) from romancy.workers
		union all select format('message %s %s %s for %s at %s: %s', id, mode, channel, receiver, created_at, payload) from romancy.mailbox
		union all select format('subscription %s %s %s', instance_id, channel, mode) from romancy.subscriptions
		union all select format('event %s, attempts %s, taken %s, next_at %s, %s', event_id, attempts, taken, next_at, last_error) from romancy.outbox
		union all select format('backend %s %s: %s, %s, blocked by %s', pid, application_name, state, left(query, 60), pg_blocking_pids(pid))
			from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() and state <> 'idle'
		union all select format('now %s', clock_timestamp())`,
		func(r row) { lines = append(lines, r.Line) })
	if err != nil {
		lines = append(lines, err.Error())
	}
	w.t.Logf("left over:\n%s", strings.Join(lines, "\n"))
	for _, worker := range w.workers {
		if worker != nil {
			w.t.Logf("log of %s ends:\n%s", worker.name, worker.tail(40))
		}
	}
}
