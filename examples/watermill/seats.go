package main

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
)

// seatPlanAge is how old the plan may get. A notification makes it fresh at once; one that is lost costs this long.
const seatPlanAge = 30 * time.Second

// seatPlan is the application's cache of the seats that are taken.
type seatPlan struct {
	pool *pgxpool.Pool

	mu      sync.Mutex
	version int // counts invalidations: a load that was overtaken by one is not kept
	loaded  time.Time
	seats   []int
}

func (s *seatPlan) invalidate() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.version++
	s.loaded = time.Time{}
}

// taken returns the seats that are taken, in order.
func (s *seatPlan) taken(ctx context.Context) ([]int, error) {
	s.mu.Lock()
	seats, version, fresh := s.seats, s.version, time.Since(s.loaded) < seatPlanAge
	s.mu.Unlock()
	if fresh {
		return slices.Clone(seats), nil
	}
	rows, err := s.pool.Query(ctx, `select seat from bookings where status <> 'released' order by seat`)
	if err != nil {
		return nil, err
	}
	seats, err = pgx.CollectRows(rows, pgx.RowTo[int])
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.version == version {
		s.seats, s.loaded = seats, time.Now()
	}
	return slices.Clone(seats), nil
}
