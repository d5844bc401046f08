package main

import (
	"context"
	"fmt"
	"math"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// latencies are how late things happened, without the runs that waited for the killed worker's lease to end.
type latencies struct {
	wake  sample // from the message being written to the next line of the workflow
	timer sample // from the end of a sleep to the first statement of the next activity
	// tookOver are the runs that the killed worker had begun and another one has shipped; resumed is when the last of them
	// was shipped, after the kill.
	tookOver int
	resumed  time.Duration
}

type sample []time.Duration

// quantile returns the smallest value that a share q of the sample does not exceed.
func (s sample) quantile(q float64) time.Duration {
	if len(s) == 0 {
		return 0
	}
	slices.Sort(s)
	return s[max(0, int(math.Ceil(q*float64(len(s))))-1)]
}

func milliseconds(d time.Duration) string { return fmt.Sprintf("%.2f", d.Seconds()*1000) }

// measure reads the latencies from the tables. All clocks are this machine's: of the server for when a message was written
// and when an order was shipped, of the workers for the rest.
func measure(ctx context.Context, pool *pgxpool.Pool, f faults) (latencies, error) {
	var found latencies
	// Approvals that came after their run had begun to wait: the deadline of the wait is stored when it begins.
	const wakes = `
		select (woken.payload #>> '{}')::timestamptz - (message.payload ->> 'sent_at')::timestamptz
		from romancy.history message
		join romancy.history waiting on waiting.instance_id = message.instance_id and waiting.position = message.position - 1
		join romancy.history woken on woken.instance_id = message.instance_id and woken.position = message.position + 1
		join shop.reservations r on 'order-' || r.order_id = message.instance_id
		where message.kind = 'receive' and waiting.kind = 'timer' and woken.kind = 'side_effect'
		  and (message.payload ->> 'sent_at')::timestamptz > waiting.created_at
		  and not (r.worker = $1::text and (woken.payload #>> '{}')::timestamptz > $2::timestamptz)`
	var err error
	if found.wake, err = durations(ctx, pool, wakes, f.killed, f.killedAt); err != nil {
		return found, err
	}
	const timers = `
		select s.shipped_at - s.packed_due
		from shop.shipments s join shop.reservations r using (order_id)
		where not (r.worker = $1::text and s.worker <> $1::text)`
	if found.timer, err = durations(ctx, pool, timers, f.killed); err != nil {
		return found, err
	}
	const takenOver = `
		select s.shipped_at - $2::timestamptz
		from shop.shipments s join shop.reservations r using (order_id)
		where r.worker = $1::text and s.worker <> $1::text`
	resumed, err := durations(ctx, pool, takenOver, f.killed, f.killedAt)
	found.tookOver, found.resumed = len(resumed), resumed.quantile(1)
	return found, err
}

func durations(ctx context.Context, pool *pgxpool.Pool, query string, args ...any) (sample, error) {
	rows, err := pool.Query(ctx, query, args...)
	if err != nil {
		return nil, fmt.Errorf("measure: %w", err)
	}
	var all sample
	var one time.Duration
	for rows.Next() {
		if err := rows.Scan(&one); err != nil {
			return nil, fmt.Errorf("measure: %w", err)
		}
		all = append(all, one)
	}
	return all, rows.Err()
}
