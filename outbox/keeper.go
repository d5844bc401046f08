package outbox

import (
	"context"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

const (
	// renewals is how often a lease is renewed while it lasts.
	renewals = 4
	// renewBackoff is how long the keeper waits after the first renewal that failed.
	renewBackoff = 50 * time.Millisecond
)

// keeper renews the leases of all batches in work, in one statement, on a connection of its own: it waits neither for the
// pool nor for what else the relay is doing.
type keeper struct {
	relay *Relay
	own   *connection

	mu   sync.Mutex
	held map[*batch]struct{}
}

func newKeeper(r *Relay) *keeper {
	return &keeper{relay: r, own: newConnection(r, " relay"), held: map[*batch]struct{}{}}
}

// hold has the lease of b renewed until let go.
func (k *keeper) hold(b *batch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.held[b] = struct{}{}
}

func (k *keeper) letGo(b *batch) {
	k.mu.Lock()
	defer k.mu.Unlock()
	delete(k.held, b)
}

func (k *keeper) batches() []*batch {
	k.mu.Lock()
	defer k.mu.Unlock()
	batches := make([]*batch, 0, len(k.held))
	for b := range k.held {
		batches = append(batches, b)
	}
	return batches
}

// slots returns those of the batches in work.
func (k *keeper) slots() []int32 {
	slots := []int32{} // not nil: that would be NULL
	for _, b := range k.batches() {
		slots = append(slots, b.slot)
	}
	return slots
}

// run renews until ctx ends.
func (k *keeper) run(ctx context.Context) {
	defer k.own.close()
	pause := k.relay.config.Lease / renewals
	for failures, wait := 0, time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		done, err := k.renew(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			k.relay.troubles.failed(ctx, "renew a lease", err)
			failures++
		case !done: // rows are locked, by settlements of our own that wait for something
			failures++
		default:
			k.relay.troubles.worked(ctx, "renew a lease")
			failures = 0
		}
		if wait = pause; failures > 0 {
			wait = backoff(failures, min(renewBackoff, pause), min(errorBackoffMost, pause))
		}
	}
}

// renew renews the leases of all batches in work once, and reports whether that is done. Without any it makes sure of the
// connection. A batch whose slot is another relay's already begins nothing more.
func (k *keeper) renew(ctx context.Context) (done bool, err error) {
	lease := k.relay.config.Lease
	// Of four tries a lease, each has its share of the time.
	ctx, cancel := context.WithTimeout(ctx, lease/renewals)
	defer cancel()
	batches := k.batches()
	if len(batches) == 0 {
		return true, k.own.open(ctx)
	}
	slots, owners, tokens := make([]int32, len(batches)), make([]string, len(batches)), make([]int64, len(batches))
	for i, b := range batches {
		slots[i], owners[i], tokens[i] = b.slot, b.owner, b.token
	}
	asked := time.Now()
	renewed := map[int64]bool{} // by place: ours, and whether it was renewed
	w := work{guard: k.relay.queries.Get("GuardClaim"), locks: lease / (2 * renewals), queue: func(queue *pgx.Batch) {
		queue.Queue(k.relay.queries.Get("RenewSlots"), slots, owners, tokens, lease.Milliseconds()).Query(func(rows pgx.Rows) error {
			clear(renewed)
			var place int64
			var did bool
			_, err := pgx.ForEachRow(rows, []any{&place, &did}, func() error { renewed[place] = did; return nil })
			return err
		})
	}}
	err = k.own.transact(ctx, w)
	if err != nil && unfit(err) && ctx.Err() == nil {
		// It cannot connect, perhaps because the server has no place left. The pool may be connected.
		if poolErr := k.relay.onPool(ctx, poolPatience, w); poolErr == nil {
			err = nil
		}
	}
	if err != nil {
		return false, err
	}
	done = true
	for i, b := range batches {
		did, ours := renewed[int64(i+1)]
		done = done && (did || !ours)
		b.renewed(did, ours, asked.Add(lease))
	}
	return done, nil
}

func (b *batch) renewed(did, ours bool, ends time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch {
	case !ours:
		b.stopped = true
	case did:
		b.leaseEnds = ends
	}
}
