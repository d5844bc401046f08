package main

import (
	"context"
	"fmt"
	"slices"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/workflow"
)

// facts are what the tables say in the end.
type facts struct {
	ended, shipped, compensated, approvals int
	wrongStatus                            []string // runs that did not end as their order says

	shipments                     int
	chargedCents, refundedCents   int64
	charged, refunded             int // orders
	chargedAgain                  int // orders charged or refunded under two keys
	answersLost                   int // requests for a payment that had been made already
	wrongStock                    []string
	reservedLines, restockedUnits int
	reservations, ordersRestocked int
	recordedTwice, stepsMissing   int
	wrongHistory                  []string
	outboxPending, outboxDead     int
	failedAttempts                int
	byWorker                      map[string]int
}

func readFacts(ctx context.Context, pool *pgxpool.Pool, want expectation) (facts, error) {
	f := facts{byWorker: map[string]int{}}
	for _, read := range []func(context.Context, *pgxpool.Pool, expectation) error{
		f.readRuns, f.readHistory, f.readMoney, f.readStock, f.readRest,
	} {
		if err := read(ctx, pool, want); err != nil {
			return f, fmt.Errorf("read the outcome: %w", err)
		}
	}
	return f, nil
}

func (f *facts) readRuns(ctx context.Context, pool *pgxpool.Pool, want expectation) error {
	seen := 0
	var id, status, errorType, compensationErrors string
	const query = `
		select id, status, coalesce(error ->> 'type', ''), coalesce(error ->> 'compensation_errors', '')
		from romancy.instances where workflow = $1`
	err := each(ctx, pool, query, []any{flowName}, []any{&id, &status, &errorType, &compensationErrors}, func() {
		seen++
		got := workflow.Status(status)
		switch {
		case got == workflow.StatusCompleted:
			f.shipped++
		case got == workflow.StatusFailed && errorType == errRefused.Type && compensationErrors == "":
			f.compensated++
		}
		if got.Final() {
			f.ended++
		}
		if got != want.statuses[id] {
			f.wrongStatus = append(f.wrongStatus, fmt.Sprintf("%s is %s %s %s", id, status, errorType, compensationErrors))
		}
	})
	if err == nil && seen != want.runs {
		f.wrongStatus = append(f.wrongStatus, fmt.Sprintf("%d runs", seen))
	}
	return err
}

// readHistory compares the history of every run with what its order asks for, step by step.
func (f *facts) readHistory(ctx context.Context, pool *pgxpool.Pool, want expectation) error {
	got := map[string][]step{}
	var id, kind, name string
	const query = `select instance_id, kind, name from romancy.history order by instance_id, position`
	err := each(ctx, pool, query, nil, []any{&id, &kind, &name}, func() {
		got[id] = append(got[id], step{kind, name})
		if kind == "receive" {
			f.approvals++
		}
	})
	if err != nil {
		return err
	}
	for id, steps := range got {
		surplus := map[step]int{}
		for _, s := range steps {
			surplus[s]++
		}
		for _, s := range want.history[id] {
			surplus[s]--
		}
		for _, n := range surplus {
			f.recordedTwice += max(0, n)
			f.stepsMissing += max(0, -n)
		}
		if !slices.Equal(steps, want.history[id]) {
			f.wrongHistory = append(f.wrongHistory, fmt.Sprintf("%s: %v", id, steps))
		}
	}
	for id, steps := range want.history {
		if len(got[id]) == 0 {
			f.stepsMissing += len(steps)
			f.wrongHistory = append(f.wrongHistory, id+": nothing")
		}
	}
	return nil
}

func (f *facts) readMoney(ctx context.Context, pool *pgxpool.Pool, _ expectation) error {
	const query = `
		select coalesce(sum(cents) filter (where kind = 'charge'), 0)::bigint, coalesce(sum(cents) filter (where kind = 'refund'), 0)::bigint,
		       count(distinct order_id) filter (where kind = 'charge'), count(distinct order_id) filter (where kind = 'refund'),
		       count(*) - count(distinct (order_id, kind)), coalesce(sum(requests - 1), 0)::bigint
		from provider.payments`
	return pool.QueryRow(ctx, query).Scan(&f.chargedCents, &f.refundedCents, &f.charged, &f.refunded, &f.chargedAgain, &f.answersLost)
}

func (f *facts) readStock(ctx context.Context, pool *pgxpool.Pool, want expectation) error {
	var id, stock int
	products := 0
	err := each(ctx, pool, `select product_id, stock from shop.products`, nil, []any{&id, &stock}, func() {
		products++
		if stock != want.stock[id] {
			f.wrongStock = append(f.wrongStock, fmt.Sprintf("product %d: got %d, want %d", id, stock, want.stock[id]))
		}
	})
	if err == nil && products != len(want.stock) {
		f.wrongStock = append(f.wrongStock, fmt.Sprintf("got %d products, want %d", products, len(want.stock)))
	}
	return err
}

func (f *facts) readRest(ctx context.Context, pool *pgxpool.Pool, _ expectation) error {
	const query = `
		select (select count(*) from shop.stock_moves where units < 0),
		       (select coalesce(sum(units), 0)::bigint from shop.stock_moves where units > 0),
		       (select count(distinct order_id) from shop.stock_moves where units > 0),
		       (select count(*) from shop.reservations), (select count(*) from shop.shipments),
		       (select count(*) from romancy.outbox where dead_at is null), (select count(*) from romancy.outbox where dead_at is not null),
		       (select count(*) from romancy.attempts)`
	err := pool.QueryRow(ctx, query).Scan(&f.reservedLines, &f.restockedUnits, &f.ordersRestocked, &f.reservations, &f.shipments,
		&f.outboxPending, &f.outboxDead, &f.failedAttempts)
	if err != nil {
		return err
	}
	var worker string
	var n int
	return each(ctx, pool, `select worker, count(*) from shop.shipments group by worker`, nil, []any{&worker, &n}, func() {
		f.byWorker[worker] = n
	})
}

// each calls use for every row, after scanning it into targets.
func each(ctx context.Context, pool *pgxpool.Pool, query string, args, targets []any, use func()) error {
	rows, err := pool.Query(ctx, query, args...)
	if err != nil {
		return err
	}
	_, err = pgx.ForEachRow(rows, targets, func() error { use(); return nil })
	return err
}
