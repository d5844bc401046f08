// Package lease keeps this worker's row alive. A worker owns runs for as long as its lease; one that cannot renew it stops
// its runs before others may take them, and says afterwards that it did not die. All this goes over a connection of its own.
package lease

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// Config configures a Keeper.
type Config struct {
	Store *store.Store
	// Connect makes the lease's own connection.
	Connect func(context.Context) (*pgx.Conn, error)
	// Committer is asked when that cannot be made, or does not answer.
	Committer *commit.Committer
	Label     string
	Lease     time.Duration // renewed three times as often
	Listening func() bool   // shown in the worker's row
	// Answered is called after each heartbeat that the database has answered. It must not block.
	Answered func()
	// Clock is told what time it is by the database's clock, in microseconds since 1970, somewhere between asked and answered.
	// It must not block, and is called by one goroutine at a time.
	Clock func(micros int64, asked, answered time.Time)
	// Lost is called when the lease has run out, or is about to and cannot be renewed: stop everything. It returns the runs that the
	// database may take for this worker's. It must not block.
	Lost func() []store.Fence
	// Freed is told of runs that are ready now, because this worker did not die with them. It must not block.
	Freed func([]store.Named)
	// Registered is called when the worker has a new id after that.
	Registered func()
	// Expired is called when the lease of another worker has ended, or another worker has left. It must not block.
	Expired func()
	Logger  *slog.Logger // names the worker by itself
}

// Keeper holds one worker id at a time. Ids are never reused.
type Keeper struct {
	config     Config
	session    *session
	lived      lived
	id         atomic.Int64
	validUntil time.Time // by the monotonic clock; Run's
	until      int64     // the same by the database's clock, in microseconds since 1970; Run's
	shown      bool      // what the row says of listening; Run's
	changed    chan struct{}
	clocks     sync.Mutex // held while Clock is called
	// others is how many workers there were at the last heartbeat; before the first, more than there can be: one may leave
	// between this one's start and its first heartbeat. Run's.
	others int
}

// New returns a keeper without an id.
func New(config Config) *Keeper {
	return &Keeper{
		config: config, session: newSession(config), lived: lived{some: make(chan struct{}, 1)},
		others: math.MaxInt, changed: make(chan struct{}, 1),
	}
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

// Lost reports whether this process has had the lease of that worker and lost it: what belongs to it is others' by now, or will be.
func (k *Keeper) Lost(worker int64) bool { return k.lived.had(worker) }

// Register obtains an id and a lease, and says, if it can at once, that this process lived under those it has lost.
func (k *Keeper) Register(ctx context.Context) error {
	unsaid, _ := k.lived.next()
	err := k.register(ctx, unsaid)
	if err != nil && locked(err) && len(unsaid) > 0 {
		return k.register(ctx, nil) // somebody is busy with a former row, which is no reason to wait
	}
	return err
}

func (k *Keeper) register(ctx context.Context, unsaid []int64) error {
	asked, listening := time.Now(), k.config.Listening()
	id, err := newID()
	if err != nil {
		return err
	}
	until, err := ask(ctx, k, func(b *pgx.Batch, until *int64) {
		k.config.Store.RegisterWorker(b, k.config.Label, listening, k.config.Lease, id, k.clock(), until)
		if len(unsaid) > 0 {
			k.config.Store.SayLived(b, unsaid)
		}
	})
	if err != nil {
		return err
	}
	k.lived.said(unsaid)
	k.validUntil, k.shown, k.until = asked.Add(k.config.Lease), listening, *until
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
	return func(micros int64) {
		k.clocks.Lock()
		defer k.clocks.Unlock()
		k.config.Clock(micros, asked, time.Now())
	}
}

// Leave ends this worker after Run has: its id is given up. What it still owns, because bodies are executing that have not returned, is
// left to others when its lease ends, which is at until. If it had lost its lease, it says that it lived.
func (k *Keeper) Leave(ctx context.Context) (until time.Time, err error) {
	defer k.session.close()
	until = k.validUntil
	if id := k.id.Swap(0); id != 0 {
		_, err = ask(ctx, k, func(b *pgx.Batch, _ *struct{}) { k.config.Store.LeaveWorker(b, id) })
	}
	return until, errors.Join(err, k.settleAll(ctx))
}

// Close hangs up without a word, after a start that has failed.
func (k *Keeper) Close() { k.session.close() }

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
		case <-k.lived.some:
			k.settle(ctx)
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
		if unsaid, page := k.lived.next(); len(unsaid)+len(page) > 0 {
			k.lived.give()
		}
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
		answer, err := ask(ctx, k, func(b *pgx.Batch, beat *store.Beat) {
			k.config.Store.Heartbeat(b, k.ID(), listening, k.config.Lease, beat, k.clock())
		})
		if err == nil {
			k.config.Answered()
		}
		switch {
		case err == nil && answer.Until != nil:
			k.validUntil, k.shown, k.until = asked.Add(k.config.Lease), listening, *answer.Until
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
	k.lived.lost(k.id.Swap(0), k.until)
	k.others = math.MaxInt // nobody has counted meanwhile
	k.lived.owe(k.config.Lost())
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
