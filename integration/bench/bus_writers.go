package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/bus"
)

// flatOut is a few hundred milliseconds of writers that commit one row after the other, each telling of itself in some
// way, and of a listener in the same process that hears of them.
type flatOut struct {
	pool  *pgxpool.Pool
	way   notifyWay
	begun time.Time
	until time.Time

	last      atomic.Int64   // the id given last
	committed []atomic.Int64 // by id: when the commit returned, in nanoseconds since begun
	counted   atomic.Int64   // commits after the warm-up
	heard     atomic.Int64
	summed    atomic.Bool   // the listener was told to look for itself: some notifications became one
	progress  chan struct{} // holds a token after something was heard

	wakes []time.Duration // of the listener's goroutine until it has ended
}

// maxIDs is more than anybody commits in a round.
const maxIDs = 1 << 18

// writeFlatOut returns the rate of commits within span, after a warm-up, and how long after its commit each was heard of.
func writeFlatOut(ctx context.Context, pool *pgxpool.Pool, listener *bus.Listener, way notifyWay, writers int, span time.Duration) (perSecond float64, wakes []time.Duration, err error) {
	if _, err := pool.Exec(ctx, "drop table if exists written; create table written (id bigint primary key)"); err != nil {
		return 0, nil, err
	}
	sub, err := listener.Subscribe(maxIDs, writersChannel)
	if err != nil {
		return 0, nil, err
	}
	if n, err := sub.Next(ctx); err != nil || !n.CatchUp {
		return 0, nil, fmt.Errorf("subscribe: got %+v before the catch-up: %w", n, err)
	}
	warmUp := span / 5
	w := &flatOut{
		pool: pool, way: way, begun: time.Now(), committed: make([]atomic.Int64, maxIDs), progress: make(chan struct{}, 1),
	}
	w.until = w.begun.Add(warmUp + span)
	var listening sync.WaitGroup
	listening.Go(func() { w.listen(ctx, sub) })
	err = w.write(ctx, writers, warmUp)
	if err == nil {
		err = w.awaitHeard(ctx)
	}
	sub.Close()
	listening.Wait()
	return float64(w.counted.Load()) / span.Seconds(), w.wakes, err
}

// write runs the writers to their end.
func (w *flatOut) write(ctx context.Context, writers int, warmUp time.Duration) error {
	var failed failures
	var wg sync.WaitGroup
	for range writers {
		wg.Go(func() { failed.add(w.writer(ctx, warmUp)) })
	}
	wg.Wait()
	return failed.joined()
}

// writer commits one row after the other over one connection.
func (w *flatOut) writer(ctx context.Context, warmUp time.Duration) error {
	conn, err := w.pool.Acquire(ctx)
	if err != nil {
		return err
	}
	defer conn.Release()
	for time.Now().Before(w.until) {
		id := w.last.Add(1)
		if id >= maxIDs {
			return errors.New("the machine is too fast for this benchmark: raise maxIDs")
		}
		payload := strconv.FormatInt(id, 10)
		err := pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
			var xid string // returned as the outbox's own insert returns it, and for every way alike
			if err := tx.QueryRow(ctx, "insert into written (id) values ($1) returning pg_current_xact_id()::text", id).Scan(&xid); err != nil {
				return err
			}
			if w.way.inside == nil {
				return nil
			}
			return w.way.inside(ctx, tx, xid, payload)
		})
		if err != nil {
			return err
		}
		now := time.Now()
		w.committed[id].Store(int64(now.Sub(w.begun)))
		if w.way.after != nil {
			w.way.after(payload)
		}
		if now.After(w.begun.Add(warmUp)) && now.Before(w.until) {
			w.counted.Add(1)
		}
	}
	return nil
}

// listen takes the times at which commits are heard of.
func (w *flatOut) listen(ctx context.Context, sub *bus.Subscription) {
	for {
		n, err := sub.Next(ctx)
		if err != nil {
			return // closed, or ctx has ended, which the writers report
		}
		if n.CatchUp {
			w.summed.Store(true)
		} else if id, err := strconv.Atoi(n.Payload); err == nil && id < maxIDs {
			since := time.Duration(0) // heard of before the commit returned
			if at := w.committed[id].Load(); at > 0 {
				since = max(time.Since(w.begun)-time.Duration(at), 0)
			}
			w.wakes = append(w.wakes, since)
			w.heard.Add(1)
		}
		select {
		case w.progress <- struct{}{}:
		default:
		}
	}
}

// awaitHeard waits until every commit has been heard of, so that none is left for the next round.
func (w *flatOut) awaitHeard(ctx context.Context) error {
	if w.way.inside == nil && w.way.after == nil {
		return nil
	}
	limit := time.After(10 * time.Second)
	for w.heard.Load() < w.last.Load() && !w.summed.Load() {
		select {
		case <-w.progress:
		case <-limit:
			return fmt.Errorf("only %d of %d commits were heard of within 10 s", w.heard.Load(), w.last.Load())
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}
