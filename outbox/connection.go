package outbox

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/dial"
	"github.com/romancy-go/romancy/internal/refusal"
)

// errPoolBusy says that the pool had no connection free for as long as could be waited for one.
var errPoolBusy = errors.New("every connection of the pool is in use")

// connection is one of the relay's own, beside the pool, for what must not wait until the pool has one free. It connects when
// it is used and replaces a session that is of no use any more. It is safe for concurrent use: callers take turns.
type connection struct {
	relay  *Relay
	suffix string // of application_name
	turn   chan struct{}

	conn *pgx.Conn // of the caller whose turn it is
}

func newConnection(r *Relay, suffix string) *connection {
	return &connection{relay: r, suffix: suffix, turn: make(chan struct{}, 1)}
}

// transact is the function of this name on this connection. What queue adds must bear being carried out twice: a session
// that was lost is replaced at once, because it may have ended long ago, while nobody used it.
func (c *connection) transact(ctx context.Context, w work) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	used := c.conn != nil
	err := c.attempt(ctx, w)
	if used && c.conn == nil && ctx.Err() == nil {
		c.relay.config.Logger.DebugContext(ctx, "outbox relay replaces a connection of its own", "error", err)
		err = c.attempt(ctx, w)
	}
	return err
}

// attempt leaves no connection behind that is of no use any more.
func (c *connection) attempt(ctx context.Context, w work) error {
	if err := c.connect(ctx); err != nil {
		return fmt.Errorf("a connection of the relay's own: %w", err)
	}
	err := transact(ctx, c.conn, w)
	if err == nil {
		return nil
	}
	if !rollback(ctx, c.conn, err) {
		c.hangUp()
	}
	return err
}

func (c *connection) connect(ctx context.Context) error {
	if c.conn != nil {
		return nil
	}
	conn, err := dial.Beside(ctx, c.relay.config.Pool, c.suffix, nil)
	if err != nil {
		return err
	}
	// What the role or the database sets as a default must not end a session that idles for hours. Unprepared: behind a
	// pooler a prepared statement may be another client's.
	if _, err := conn.Exec(ctx, c.relay.queries.Get("KeepSession"), pgx.QueryExecModeExec, int64(conn.PgConn().PID())); err != nil {
		dial.HangUp(conn)
		return refusal.Public(err)
	}
	c.conn = conn
	return nil
}

// open connects unless it is connected.
func (c *connection) open(ctx context.Context) error {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
		return c.connect(ctx)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// close is for the end, when nobody uses it any more.
func (c *connection) close() {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	c.hangUp()
}

func (c *connection) hangUp() {
	if c.conn != nil {
		dial.HangUp(c.conn)
		c.conn = nil
	}
}

// unfit reports whether err says that another session may do better: this one is lost, leads to a standby, or has no
// prepared statements any more.
func unfit(err error) bool { return !refusal.Said(err) || refusal.SpoilsSession(err) }

// onPool is transact on a connection that the pool has free within patience; else the error is errPoolBusy. A session that was
// lost may have ended long ago, in the pool, so there is a second try: what queue adds must bear it.
func (r *Relay) onPool(ctx context.Context, patience time.Duration, w work) error {
	lost, err := r.attemptOnPool(ctx, patience, w)
	if lost && ctx.Err() == nil {
		_, err = r.attemptOnPool(ctx, patience, w)
	}
	return err
}

func (r *Relay) attemptOnPool(ctx context.Context, patience time.Duration, w work) (lost bool, err error) {
	waiting, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := r.config.Pool.Acquire(waiting)
	if err != nil {
		if stat := r.config.Pool.Stat(); waiting.Err() != nil && stat.AcquiredConns() >= stat.MaxConns() {
			return false, fmt.Errorf("%w (%d), after %v: %w", errPoolBusy, stat.MaxConns(), patience, refusal.Public(err))
		}
		return false, refusal.Public(err)
	}
	defer conn.Release()
	err = transact(ctx, conn.Conn(), w)
	if err != nil {
		rollback(ctx, conn.Conn(), err)
	}
	return err != nil && conn.Conn().IsClosed(), err
}
