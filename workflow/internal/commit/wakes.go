package commit

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"

	"github.com/romancy-go/romancy/internal/refusal"
)

// wakes reports whether op lets a parked run go on.
func (op *operation) wakes() bool { return op.kind == kindWake || op.kind == kindWakeEvent }

// apart returns the wakes among ops, and the others if they are better not in one flush with them, because the wakes would
// wait for the disk: another lane takes the others at once; or they are looks and statements of no run (heartbeats,
// claims, sweeps), which can wait once.
func apart(ops []*operation, idleLane bool) (wakes, others []*operation) {
	for _, op := range ops {
		switch {
		case op.wakes():
			wakes = append(wakes, op)
		case idleLane:
			others = append(others, op)
		case (op.kind == kindLook || op.kind == kindLookEvent || op.kind == kindCustom) && !op.stoodBack:
			others = append(others, op)
		default:
			return nil, nil
		}
	}
	if len(wakes) == 0 {
		return nil, nil
	}
	for _, op := range others {
		op.stoodBack = op.stoodBack || !idleLane
	}
	return wakes, others
}

func onlyWakes(ops []*operation) bool {
	return !slices.ContainsFunc(ops, func(op *operation) bool { return !op.wakes() })
}

// carryOutWakes carries out a flush that only wakes runs. They are answered when the statement is done and before the disk
// has it: a run goes on after a message as it does after a step, and what it asks for next waits for the commit.
func (l *lane) carryOutWakes(ctx context.Context, ops []*operation) (unfinished []*operation) {
	flushCtx, cancel := context.WithTimeout(ctx, l.committer.config.FlushTimeout)
	defer cancel()
	for _, op := range ops {
		op.result, op.err = nil, nil
	}
	batch := &pgx.Batch{}
	batch.Queue(l.begin())
	l.queue(ops, batch)
	if err := l.conn.SendBatch(flushCtx, batch).Close(); err != nil {
		return l.answered(ctx, ops, nil, l.rollback(flushCtx, refusal.Public(err)))
	}
	if ops[0].suspect {
		l.committer.cleared(ops)
	}
	for _, op := range ops {
		op.tell()
	}
	err := l.commit(flushCtx)
	for _, op := range ops {
		op.confirm(err)
	}
	return nil
}

// commit ends a transaction that carryOutWakes has begun.
func (l *lane) commit(ctx context.Context) error {
	tag, err := l.conn.Exec(ctx, "commit")
	var pgErr *pgconn.PgError
	switch {
	case err == nil && tag.String() == "COMMIT":
		return nil
	case err == nil:
		err = pgx.ErrTxCommitRollback
	case !l.conn.IsClosed() && errors.As(err, &pgErr):
	default:
		l.committer.connecting.FailedAs(ctx, "committer connection lost, reconnecting", err)
		l.hangUp()
	}
	return fmt.Errorf("%w: %w", ErrOutcomeUnknown, refusal.Public(err))
}
