package lease

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/outage"
	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

const (
	// firstWait and longestWait bound the doubling wait between two attempts to connect.
	firstWait, longestWait = 100 * time.Millisecond, 5 * time.Second
	// longestLockWait is how long a statement waits for a lock at most, and a tenth of the lease if that is shorter.
	longestLockWait = 500 * time.Millisecond
)

// session is a connection that nothing but the lease uses, so that no flush of the engine's, however large or slow, is in front of a
// heartbeat. One goroutine at a time uses it.
type session struct {
	store   *store.Store
	connect func(context.Context) (*pgx.Conn, error)
	lease   time.Duration
	outage  *outage.Reporter

	conn   *pgx.Conn
	direct bool          // the connection keeps its settings
	wait   time.Duration // the last one between two attempts to connect
	again  time.Time     // when the next may be made
	failed error         // the last one's

	goodbyes sync.WaitGroup
}

func newSession(config Config) *session {
	return &session{
		store: config.Store, connect: config.Connect, lease: config.Lease,
		outage: outage.New(config.Logger,
			"the connection of this worker's lease does not work: the lease is renewed by the engine's connections, behind what they write",
			"the connection of this worker's lease works"),
	}
}

// noConnectionError says that there is no connection, not that the database has refused a statement.
type noConnectionError struct{ err error }

func (e noConnectionError) Error() string {
	return fmt.Sprintf("connect for this worker's lease: %v", e.err)
}
func (e noConnectionError) Unwrap() error { return e.err }

func (s *session) lockTimeout() time.Duration { return min(s.lease/10, longestLockWait) }

// send carries out statements in one transaction.
func (s *session) send(ctx context.Context, statements func(*pgx.Batch)) error {
	err := s.ready(ctx)
	if err == nil {
		err = s.transact(ctx, statements)
	}
	switch {
	case err == nil:
		s.outage.Succeeded(ctx)
	case errors.Is(ctx.Err(), context.Canceled): // it was not wanted any more
	case !locked(err):
		s.outage.Failed(ctx, err)
	}
	return err
}

// ready makes a connection if there is none.
func (s *session) ready(ctx context.Context) error {
	if s.conn != nil && !s.conn.IsClosed() {
		return nil
	}
	s.hangUp()
	if time.Now().Before(s.again) {
		return noConnectionError{s.failed}
	}
	err := s.dial(ctx)
	if err != nil {
		s.wait = min(max(2*s.wait, firstWait), longestWait)
		s.again, s.failed = time.Now().Add(s.wait), err
		return noConnectionError{err}
	}
	s.wait = 0
	return nil
}

func (s *session) dial(ctx context.Context) error {
	conn, err := s.connect(ctx)
	if err != nil {
		return err
	}
	direct, err := s.store.GuardLeaseSession(ctx, conn, s.lockTimeout(), s.lease)
	s.conn, s.direct = conn, direct
	if err != nil {
		s.hangUp()
	}
	return err
}

func (s *session) transact(ctx context.Context, statements func(*pgx.Batch)) error {
	batch := &pgx.Batch{} // a pipeline up to its one Sync is a transaction
	if !s.direct {
		batch.Queue("begin isolation level read committed read write") // the role's defaults may be others
		s.store.GuardLease(batch, s.lockTimeout(), s.lease)
	}
	statements(batch)
	if !s.direct {
		batch.Queue("commit")
	}
	err := refusal.Public(s.conn.SendBatch(ctx, batch).Close())
	// After anything else than a lock that was not to be had the session may be at fault: read-only, say, or another's prepared
	// statements. A transaction that was begun behind a pooler would stay open.
	if err != nil && (!s.direct || !locked(err)) {
		s.hangUp()
	}
	return err
}

// locked reports whether err says that somebody else is busy with a row.
func locked(err error) bool { return refusal.Held(err) || refusal.Conflict(err) }

// hangUp does not wait: a server that is gone would keep the worker from noticing that its lease is over.
func (s *session) hangUp() {
	if conn := s.conn; conn != nil {
		s.conn = nil
		s.goodbyes.Go(func() { dial.HangUp(conn) })
	}
}

func (s *session) close() {
	s.hangUp()
	s.goodbyes.Wait()
}

type answer[T any] struct {
	value *T
	err   error
}

// ask carries out statements in one transaction and returns what they were told. It asks on the lease's own connection. If there is none,
// or a third of the time has passed without an answer, it asks through the engine's as well, and takes whichever answer comes first:
// so the statements must bear to be carried out twice.
func ask[T any](ctx context.Context, k *Keeper, statements func(*pgx.Batch, *T)) (*T, error) {
	limit := k.config.Lease
	if deadline, ok := ctx.Deadline(); ok {
		limit = time.Until(deadline)
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	own := make(chan answer[T], 1)
	go func() {
		value := new(T)
		err := k.session.send(ctx, func(b *pgx.Batch) { statements(b, value) })
		own <- answer[T]{value, err}
	}()
	pending := true // the goroutine's answer
	defer func() {
		cancel()
		if pending {
			<-own // the session is free for the next
		}
	}()

	patience := time.NewTimer(limit / 3)
	defer patience.Stop()
	var failed error
	select {
	case got := <-own:
		pending = false
		var missing noConnectionError
		if got.err == nil || refusal.Said(got.err) && !errors.As(got.err, &missing) {
			return got.value, got.err
		}
		failed = got.err
	case <-patience.C:
	}
	if ctx.Err() != nil {
		return nil, errors.Join(failed, ctx.Err()) // what is queued would be carried out all the same
	}

	other := make(chan answer[T], 1)
	go func() {
		value := new(T)
		_, err := commit.Await(ctx, func(then func(struct{}, error)) {
			k.config.Committer.Do(false, func(b *pgx.Batch) { statements(b, value) }, then)
		})
		other <- answer[T]{value, err}
	}()
	for left := other; left != nil || pending; {
		select {
		case got := <-own:
			pending = false
			if got.err == nil {
				return got.value, nil
			}
			failed = errors.Join(failed, got.err)
		case got := <-left:
			left = nil
			if got.err == nil {
				if pending {
					k.session.outage.Failed(ctx, fmt.Errorf("no answer within %s", (limit/3).Round(time.Millisecond)))
				}
				return got.value, nil
			}
			failed = errors.Join(failed, fmt.Errorf("by the engine's connection: %w", got.err))
		}
	}
	return nil, failed
}
