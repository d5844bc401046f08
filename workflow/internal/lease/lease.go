// Package lease keeps this worker's row alive. A worker owns runs for as long as its lease; one that cannot renew it stops
// its runs before others may take them.
package lease

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"math"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Config configures a Keeper.
type Config struct {
	Store     *store.Store
	Committer *commit.Committer
	Label     string
	Workflows []string      // that the worker executes
	Lease     time.Duration // renewed three times as often
	Listening func() bool   // shown in the worker's row
	// Answered is called after each heartbeat that the database has answered. It must not block.
	Answered func()
	// Clock is told what time it is by the database's clock, in microseconds since 1970, somewhere between asked and answered.
	// It must not block.
	Clock func(micros int64, asked, answered time.Time)
	// Lost is called when the lease has run out, or is about to and cannot be renewed: stop everything. It must not block.
	Lost func()
	// Registered is called when the worker has a new id after that.
	Registered func()
	// Expired is called when the lease of another worker has ended, or another worker has left. It must not block.
	Expired func()
	Logger  *slog.Logger // names the worker by itself
}

// Keeper holds one worker id at a time. Ids are never reused.
type Keeper struct {
	config     Config
	id         atomic.Int64
	validUntil time.Time // by the monotonic clock; Run's
	shown      bool      // what the row says of listening; Run's
	changed    chan struct{}
	// others is how many workers there were at the last heartbeat; before the first, more than there can be: one may leave
	// between this one's start and its first heartbeat. Run's.
	others int
}

// New returns a keeper without an id.
func New(config Config) *Keeper {
	return &Keeper{config: config, others: math.MaxInt, changed: make(chan struct{}, 1)}
}

// ListeningChanged has the worker's row corrected soon if it says anything else than Listening. It does not block.
func (k *Keeper) ListeningChanged() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// ID returns the worker's id; 0 while it has none.
func (k *Keeper) ID() int64 { return k.id.Load() }

// Register obtains an id and a lease.
func (k *Keeper) Register(ctx context.Context) error {
	asked, listening := time.Now(), k.config.Listening()
	id, err := newID()
	if err != nil {
		return err
	}
	if _, err := commit.Await(ctx, func(then func(struct{}, error)) {
		k.config.Committer.Do(false, func(b *pgx.Batch) {
			k.config.Store.RegisterWorker(b, k.config.Label, listening, k.config.Lease, id, k.config.Workflows, k.clock())
		}, then)
	}); err != nil {
		return err
	}
	k.validUntil, k.shown = asked.Add(k.config.Lease), listening
	k.id.Store(id)
	return nil
}

// newID returns an id that no worker has had. It is not the database's to give: one that has lost its last commits, or was
// restored, would give the same again.
func newID() (int64, error) {
	var random [8]byte
	if _, err := rand.Read(random[:]); err != nil {
		return 0, fmt.Errorf("make an id for this worker: %w", err)
	}
	return int64(binary.BigEndian.Uint64(random[:])>>1) | 1, nil
}

// clock begins to ask for the time, when the statement that does is about to be sent.
func (k *Keeper) clock() (answer func(micros int64)) {
	asked := time.Now()
	return func(micros int64) { k.config.Clock(micros, asked, time.Now()) }
}

// Deregister gives the id up. The worker must own nothing any more.
func (k *Keeper) Deregister(ctx context.Context) error {
	id := k.id.Swap(0)
	if id == 0 {
		return nil
	}
	_, err := commit.Await(ctx, func(then func(struct{}, error)) {
		k.config.Committer.Do(true, func(b *pgx.Batch) { k.config.Store.DeregisterWorker(b, id) }, then)
	})
	return err
}

// Run renews the lease until ctx ends.
func (k *Keeper) Run(ctx context.Context) {
	interval := k.config.Lease / 3
	beat := time.NewTimer(interval)
	defer beat.Stop()
	var expiry <-chan time.Time
	for {
		select {
		case <-ctx.Done():
			return
		case <-expiry:
			expiry = nil
			k.config.Expired()
			continue
		case <-k.changed:
			if k.config.Listening() == k.shown {
				continue
			}
		case <-beat.C:
		}
		beat.Reset(interval)
		answer, ok := k.renew(ctx)
		if !ok {
			if ctx.Err() != nil {
				return
			}
			k.replace(ctx)
			continue
		}
		if answer.Others < k.others {
			k.config.Expired() // it has handed over what it executed, but not what it held parked
		}
		k.others = answer.Others
		expiry = nil
		if next := answer.NextExpiry; next != nil && *next <= interval {
			expiry = time.After(max(*next, 0) + 50*time.Millisecond)
		}
	}
}

// renew reports false when the lease is lost.
func (k *Keeper) renew(running context.Context) (answer *store.Beat, ok bool) {
	// Stop with a tenth to spare: the runs must have ended before the lease does.
	deadline := k.validUntil.Add(-k.config.Lease / 10)
	ctx, cancel := context.WithDeadline(running, deadline)
	defer cancel()
	for {
		asked, listening := time.Now(), k.config.Listening()
		answer := new(store.Beat) // its own: an unanswered attempt may still be carried out
		_, err := commit.Await(ctx, func(then func(struct{}, error)) {
			k.config.Committer.Do(true, func(b *pgx.Batch) {
				k.config.Store.Heartbeat(b, k.ID(), listening, k.config.Lease, answer, k.clock())
			}, then)
		})
		if err == nil {
			k.config.Answered()
		}
		switch {
		case err == nil && answer.Alive:
			k.validUntil, k.shown = asked.Add(k.config.Lease), listening
			return answer, true
		case err == nil:
			k.config.Logger.WarnContext(ctx, "worker lease has run out: its runs are abandoned to others")
			return nil, false
		case running.Err() != nil:
			return nil, false
		case ctx.Err() != nil:
			k.config.Logger.WarnContext(ctx, "worker lease cannot be renewed: its runs are abandoned to others", "error", err)
			return nil, false
		}
		select {
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
	}
}

// replace gives up the lost id and obtains a new one, however long it takes.
func (k *Keeper) replace(ctx context.Context) {
	k.id.Store(0)
	k.others = math.MaxInt // nobody has counted meanwhile
	k.config.Lost()
	for wait := 100 * time.Millisecond; ; wait = min(2*wait, 5*time.Second) {
		attempt, cancel := context.WithTimeout(ctx, k.config.Lease)
		err := k.Register(attempt)
		cancel()
		if err == nil {
			k.config.Logger.InfoContext(ctx, "worker registered again")
			k.config.Registered()
			return
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}
