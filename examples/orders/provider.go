package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
)

// provider stands for a company that charges credit cards: a system of its own, slow, not always there, which knows nothing
// of our transactions. All it offers against charging twice is the idempotency key.
type provider struct {
	pool *pgxpool.Pool
}

const providerDelay = 20 * time.Millisecond

var (
	errProviderBusy = errors.New("payment provider: busy, try again")
	errNoAnswer     = errors.New("payment provider: connection lost while waiting for the answer")
)

// charge takes the money once for each key. Every tenth order finds the provider busy, some of them twice; every other tenth
// is charged, but the answer gets lost.
func (p *provider) charge(ctx context.Context, key string, order Order, attempt int) (cents int64, err error) {
	digit := order.ID % 10
	if digit == 3 && attempt == 1 || order.ID%50 == 3 && attempt == 2 {
		return 0, errProviderBusy
	}
	if cents, err = p.pay(ctx, key, "charge", order); err != nil {
		return 0, err
	}
	if digit == 7 && attempt == 1 {
		return 0, errNoAnswer
	}
	return cents, nil
}

// refund gives the money back once for each key.
func (p *provider) refund(ctx context.Context, key string, order Order) error {
	_, err := p.pay(ctx, key, "refund", order)
	return err
}

func (p *provider) pay(ctx context.Context, key, kind string, order Order) (cents int64, err error) {
	select {
	case <-time.After(providerDelay):
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	}
	const query = `
		insert into provider.payments (idempotency_key, order_id, kind, cents) values ($1, $2, $3, $4)
		on conflict (idempotency_key) do update set requests = payments.requests + 1
		returning cents`
	if err := p.pool.QueryRow(ctx, query, key, order.ID, kind, order.Cents()).Scan(&cents); err != nil {
		return 0, fmt.Errorf("payment provider: %s order %d: %w", kind, order.ID, err)
	}
	return cents, nil
}
