package outbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// Relay publishes the events of an outbox. Any number of relays may share one, in one process or in many. Its methods are
// safe for concurrent use.
type Relay struct {
	config    RelayConfig
	queries   sqlfile.Queries
	consumers []*consumer
	alarm     *alarm
	keeper    *keeper
	settling  *connection // for settlements that the pool has no connection for
	troubles  *troubles

	lanes    chan struct{} // one token for each call of the publisher that has not returned
	draining chan struct{} // closed by the first Shutdown: nothing new is begun
	run      context.Context
	endRun   context.CancelFunc // ends the goroutines beside the consumers
	hard     context.Context
	cutShort context.CancelFunc // Shutdown's patience is over: no call of the publisher is waited for
	quiet    chan struct{}      // closed when all goroutines have ended but those that a publisher holds
	finished chan struct{}      // closed when those have, too

	goroutines sync.WaitGroup // consumers, alarm, listening, care
	calls      sync.WaitGroup // lanes

	published atomic.Int64
	failed    atomic.Int64
	calling   atomic.Int64 // calls of the publisher that have not returned
	late      atomic.Int64 // those of them that nobody waits for any more
	stranded  strandedCursor
	low       lowMarks
	lost      atomic.Int64 // batches that were another relay's before they were settled
	unsettled atomic.Int64 // events that were published and could not be settled

	mu       sync.Mutex
	started  bool
	stopping bool
}

// NewRelay returns a relay that does nothing until Start, or an error that names all mistakes in the configuration.
func NewRelay(config RelayConfig) (*Relay, error) {
	config = config.withDefaults()
	if err := config.validate(); err != nil {
		return nil, fmt.Errorf("outbox relay: %w", err)
	}
	queries, err := loadQueries(config.Schema)
	if err != nil {
		return nil, fmt.Errorf("outbox relay: %w", err)
	}
	r := &Relay{
		config:   config,
		queries:  queries,
		lanes:    make(chan struct{}, config.Lanes),
		draining: make(chan struct{}),
		quiet:    make(chan struct{}),
		finished: make(chan struct{}),
		low:      newLowMarks(),
		troubles: newTroubles(config.Logger),
	}
	r.keeper = newKeeper(r)
	r.settling = newConnection(r, " relay settle")
	r.alarm = newAlarm(func() time.Duration {
		if config.Listener.Healthy() {
			return config.FallbackInterval
		}
		return config.PollInterval
	})
	// The owner's name is for people who look at outbox_slots. Only the UUID makes it unique.
	host, err := os.Hostname()
	if err != nil {
		host = "unknown"
	}
	name := fmt.Sprintf("%s/%d/%s", host, os.Getpid(), watermill.NewShortUUID())
	for i := range config.Consumers {
		c, err := newConsumer(r, fmt.Sprintf("%s/%d", name, i))
		if err != nil {
			return nil, fmt.Errorf("outbox relay: %w", err)
		}
		r.consumers = append(r.consumers, c)
	}
	return r, nil
}

// Start checks the schema and begins to relay. ctx bounds the check only; the relay runs until Shutdown. It returns an
// error if the database cannot be asked, an error naming all privileges that the role lacks with the statements that grant
// them, an error naming the versions if it needs another migration, and an error if the relay was started or shut down
// before.
func (r *Relay) Start(ctx context.Context) error {
	// Not under the lock: Shutdown must not wait for a database that does not answer.
	if err := schema.CheckGrants(ctx, r.config.Pool, r.config.Schema, schema.Relay); err != nil {
		return fmt.Errorf("start the outbox relay: %w", err)
	}
	if err := schema.Check(ctx, r.config.Pool, r.config.Schema); err != nil {
		return fmt.Errorf("start the outbox relay: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.stopping:
		return errors.New("start the outbox relay: it was shut down: make a new one")
	case r.started:
		return errors.New("start the outbox relay: it is running already")
	}
	// Cancelling ctx must not end the relay in the middle of a batch.
	ctx = context.WithoutCancel(ctx)
	r.run, r.endRun = context.WithCancel(ctx)
	r.hard, r.cutShort = context.WithCancel(ctx)
	if err := r.listen(); err != nil {
		r.endRun()
		r.cutShort()
		return fmt.Errorf("start the outbox relay: %w", err)
	}
	for i, c := range r.consumers {
		batches, err := c.subscriber.Subscribe(ctx, "outbox")
		if err != nil { // only a closed subscriber or an invalid topic
			panic(fmt.Sprintf("outbox: subscribe consumer %d: %v", i, err))
		}
		r.goroutines.Go(func() { c.consume(batches) })
	}
	r.goroutines.Go(func() { r.alarm.watch(r.run) })
	r.goroutines.Go(func() { r.keeper.run(r.run) })
	r.goroutines.Go(r.care)
	r.goroutines.Go(r.raiseLowMarks)
	r.alarm.wake()
	r.started = true
	r.config.Logger.Info("outbox relay started", slog.Int("consumers", r.config.Consumers), slog.Int("lanes", r.config.Lanes),
		slog.Int("batch_size", r.config.BatchSize))
	return nil
}

// listen subscribes to the notifications. Without a listener the alarm polls.
func (r *Relay) listen() error {
	listener := r.config.Listener
	if listener == nil {
		return nil
	}
	subscription, err := listener.Subscribe(0, r.config.Channels.OutboxPending)
	if err != nil {
		return err
	}
	remove := listener.OnChange(func(bus.State) { r.alarm.reconsider() })
	r.goroutines.Go(func() {
		defer remove()
		defer subscription.Close()
		for {
			if _, err := subscription.Next(r.run); err != nil {
				// Shut down, or the listener was closed before us. It says so a little later, and the alarm polls then.
				<-r.run.Done()
				return
			}
			drain(subscription) // one look answers them all
			r.alarm.wake()
			if rest := r.alarm.rest(); rest > 0 {
				select {
				case <-time.After(rest):
				case <-r.run.Done():
				}
			}
		}
	})
	return nil
}

// drain takes what is queued, but no more than a queue holds: a flood must not keep it busy.
func drain(subscription *bus.Subscription) {
	ended, end := context.WithCancel(context.Background())
	end()
	for range bus.DefaultQueue {
		if _, err := subscription.Next(ended); err != nil {
			return
		}
	}
}

// care repairs, now and then, what nobody is told of.
func (r *Relay) care() {
	for failures, wait := 0, time.Duration(0); ; {
		select {
		case <-r.run.Done():
			return
		case <-time.After(wait):
		}
		err := errors.Join(
			r.caring("restore the slots", r.restoreSlots),
			r.caring("release held events without a cause", r.releaseStranded),
			r.caring("check the low-water marks", r.checkLowMarks))
		if failures++; err == nil {
			failures = 0
		}
		if wait = r.config.FallbackInterval; failures > 0 {
			wait = min(wait, backoff(failures, errorBackoffFirst, errorBackoffMost))
		}
	}
}

// caring does one thing of care's and says what came of it.
func (r *Relay) caring(what string, do func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(r.run, claimTimeout)
	defer cancel()
	err := do(ctx)
	switch {
	case r.run.Err() != nil:
	case err != nil:
		r.troubles.failed(ctx, what, err)
	default:
		r.troubles.worked(ctx, what)
	}
	return err
}

// Shutdown begins nothing new, waits for the calls of the publisher that are under way, settles them and gives back the
// rest of what was taken, so that other relays continue at once. If ctx ends first, it stops waiting for the publisher,
// settles what is known (within about three seconds) and returns an error that says how many calls have not returned;
// their events are published again. It may be called more than once, and before Start. The publisher stays open.
func (r *Relay) Shutdown(ctx context.Context) error {
	r.mu.Lock()
	if !r.stopping {
		r.stopping = true
		close(r.draining)
		if r.started {
			go r.finish()
		} else {
			close(r.quiet)
			close(r.finished)
		}
	}
	r.mu.Unlock()

	select {
	case <-r.finished:
		return nil
	default:
	}
	select {
	case <-r.finished:
		return nil
	case <-ctx.Done():
	}
	r.cutShort()
	patience := time.NewTimer(cutShortPatience)
	defer patience.Stop()
	select {
	case <-r.finished:
	case <-r.quiet:
	case <-patience.C:
	}
	return fmt.Errorf("shut down the outbox relay: %w; %d calls of the publisher have not returned, their events will be published again", ctx.Err(), r.calling.Load())
}

// cutShortPatience bounds what Shutdown does after its ctx has ended.
const cutShortPatience = 3 * time.Second

// finish ends everything in order: consumers first, because watermill-sql forgets a batch if it is closed before the
// batch is acknowledged.
func (r *Relay) finish() {
	for _, c := range r.consumers {
		<-c.parked
	}
	for _, c := range r.consumers {
		_ = c.subscriber.Close() // returns nothing but nil
	}
	r.endRun()
	r.goroutines.Wait()
	r.settling.close()
	close(r.quiet)
	r.calls.Wait()
	r.cutShort()
	close(r.finished)
	r.config.Logger.Info("outbox relay stopped", slog.Int64("published", r.published.Load()), slog.Int64("failed", r.failed.Load()))
}

// Sweep has the relay look for events now, whatever the notifications say, and returns how many are ready to be taken: it
// counts 100 a slot at most, so that it costs the same with any backlog. It also makes events ready again that wait for a
// predecessor which somebody has removed by hand.
func (r *Relay) Sweep(ctx context.Context) (int, error) {
	if err := errors.Join(r.restoreSlots(ctx), r.releaseStranded(ctx)); err != nil {
		return 0, fmt.Errorf("sweep the outbox: %w", err)
	}
	r.alarm.wake()
	var runnable int64
	err := r.onPool(ctx, claimTimeout, r.guarded(func(b *pgx.Batch) {
		b.Queue(r.queries.Get("CountRunnable"), 100).QueryRow(func(row pgx.Row) error { return row.Scan(&runnable) })
	}))
	if err != nil {
		return 0, fmt.Errorf("sweep the outbox: %w", err)
	}
	return int(runnable), nil
}
