package workflow

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/refusal"
	"github.com/romancy-go/romancy/workflow/internal/commit"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// writeTimeout bounds the record of a transactional activity, and its commit, each. They are no part of the attempt's time.
const writeTimeout = 10 * time.Second

// attemptInTransaction executes body and records its result in one transaction of the pool's.
//
// What keeps the transaction from being committed is sorted by who has caused it. What the body's own SQL has raised, at once or
// when its deferred constraints are checked, and a session that the body's idling or its timed-out query has cost, is a failed
// attempt. Everything else is an interruption, also when it was a statement of the body's that met it.
func (r *run) attemptInTransaction(ctx context.Context, s step, position int32, done attempted, body stepBody) (attempted, error) {
	tx, err := r.beginTransaction(ctx)
	if err != nil {
		return done, err
	}
	committed := false
	defer func() {
		if !committed {
			rollback(tx)
		}
	}()
	bodyCtx, cancel := s.limited(context.WithValue(ctx, txKey{}, tx))
	defer cancel()
	output, err := callBody(bodyCtx, s, body)
	switch {
	case err != nil && bodyCtx.Err() == nil && refusedBody(tx, err):
		return done, &interruption{err: err, again: true}
	case err != nil:
		return done, err
	}
	if tx.Conn().IsClosed() {
		return done, errors.New("the activity returned no error, but its transaction's connection was closed meanwhile: return the errors of its statements")
	}
	done.Output = output
	record := store.Append{Fence: r.fence(), Position: position, Kind: s.kind, Name: s.name, Payload: done.encode()}
	if err := r.recordInTransaction(ctx, tx, record); err != nil {
		return done, err
	}
	if err := r.commitTransaction(ctx, tx, record); err != nil {
		return done, err
	}
	committed, done.recorded = true, true
	return done, nil
}

// refusedBody reports whether the body of a transactional activity has failed because of what has become of the server, of the session or
// of a right of the role, which it has no part in. What it says is terminal is, whatever the reason.
func refusedBody(tx pgx.Tx, err error) bool {
	if !tx.Conn().IsClosed() && tx.Conn().PgConn().TxStatus() == 'T' || errors.As(err, new(terminalError)) {
		return false // if its transaction is well, the error comes from elsewhere
	}
	switch code := refusal.Code(err); {
	case code == "57014", costByBody(err): // its statement has timed out, say
		return false
	case code == "42501":
		return true
	case code != "":
		return !refusal.Raised(err)
	}
	broken := errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, new(*net.OpError))
	return broken && tx.Conn().IsClosed() && !pgconn.Timeout(err)
}

// beginTransaction tries until ctx ends, since nothing has been executed yet.
func (r *run) beginTransaction(ctx context.Context) (pgx.Tx, error) {
	for wait := firstInterruption; ; wait = min(2*wait, askAgain) {
		tx, err := refusal.Answer(r.engine.config.Pool.Begin(ctx))
		switch {
		case err == nil:
			r.engine.beginning.Succeeded(ctx)
			return tx, nil
		case ctx.Err() != nil:
			return nil, fmt.Errorf("begin a transaction: %w", err)
		}
		r.engine.beginning.Failed(ctx, err, "run", r.id)
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return nil, fmt.Errorf("begin a transaction: %w: %w", ctx.Err(), err)
		case <-r.engine.admission.closed:
			return nil, errDraining
		}
	}
}

func (r *run) recordInTransaction(ctx context.Context, tx pgx.Tx, record store.Append) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	owned, err := r.engine.store.AppendInTransaction(ctx, tx, record)
	switch {
	case err == nil && owned:
		return nil
	case err == nil, store.IsRecorded(err):
		return &interruption{err: commit.ErrFenced}
	case costByBody(err):
		return fmt.Errorf("record the step in its transaction: %w", err)
	case refusal.Of(err) == refusal.Value:
		return &interruption{err: err} // the run is stuck
	default:
		return &interruption{err: fmt.Errorf("record %s %q in its transaction: %w", record.Kind, record.Name, err), again: true}
	}
}

// costByBody reports whether a transaction cannot be used any more for what its body has done in it: a statement of it has failed,
// or the server has ended the session because the body left it idle, or took too long in all.
func costByBody(err error) bool {
	switch refusal.Code(err) {
	case "25P02", "25P03", "25P04", "57P05":
		return true
	default:
		return false
	}
}

// commitTransaction is detached from ctx: a commit that is cut off halfway may have happened, so only its own time limit ends it.
func (r *run) commitTransaction(ctx context.Context, tx pgx.Tx, record store.Append) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), writeTimeout)
	defer cancel()
	err := tx.Commit(ctx)
	switch {
	case err == nil:
		return nil
	case errors.Is(err, pgx.ErrTxCommitRollback), !tx.Conn().IsClosed() && refusal.Raised(err), costByBody(err):
		return fmt.Errorf("commit: %w", err) // a deferred constraint, say: the activity has failed
	case !tx.Conn().IsClosed() && refusal.Said(err):
		return &interruption{err: fmt.Errorf("commit %s %q: %w", record.Kind, record.Name, refusal.Public(err)), again: true}
	}
	switch recorded, lost := r.committed(record); {
	case lost != nil:
		return &interruption{err: lost}
	case !recorded:
		return &interruption{err: fmt.Errorf("commit %s %q: %w", record.Kind, record.Name, refusal.Public(err)), again: true}
	}
	return nil
}

// committed asks history what became of a commit without an answer. The server may still be busy with it: it has the run's row
// locked until it is over.
func (r *run) committed(record store.Append) (recorded bool, lost error) {
	found := new(store.Traces)
	lost = r.insist(func(ctx context.Context) error {
		_, err := commit.Await(ctx, func(then func(struct{}, error)) {
			r.engine.committer.DoApart(true, func(b *pgx.Batch) {
				r.engine.store.RecallLocked(b, store.Trace{Fence: record.Fence, Position: record.Position}, found)
			}, then)
		})
		return err
	})
	return found.Recorded, lost
}

// rollback has its own bounded context: the transaction's may be over.
func rollback(tx pgx.Tx) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_ = tx.Rollback(ctx) // a failure closes the connection, which rolls back too
}
