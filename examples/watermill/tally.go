package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/ThreeDotsLabs/watermill/message"
)

// What is counted.
const (
	received  = "commands received"
	handled   = "commands handled"
	confirmed = "confirmations"
	invoiced  = "invoices"
	ticketed  = "tickets"
	freed     = "seats released"
	announced = "announcements heard"
	seatNews  = "seat news heard"
	started   = "runs started"
	existing  = "runs found existing"
	poisoned  = "messages poisoned"
	paidRuns  = "payments sent to their runs"
)

// tally counts different ids of everything that happens, and lets somebody wait for a count.
type tally struct {
	mu      sync.Mutex
	ids     map[string]map[string]time.Time // and when each was noted first
	changed chan struct{}
}

func newTally() *tally {
	return &tally{ids: map[string]map[string]time.Time{}, changed: make(chan struct{})}
}

func (t *tally) note(what, id string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ids[what] == nil {
		t.ids[what] = map[string]time.Time{}
	}
	if t.ids[what][id].IsZero() {
		t.ids[what][id] = time.Now()
	}
	close(t.changed)
	t.changed = make(chan struct{})
}

func (t *tally) count(what string) int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.ids[what])
}

// all returns the ids of everything.
func (t *tally) all() map[string][]string {
	t.mu.Lock()
	defer t.mu.Unlock()
	all := map[string][]string{}
	for what, ids := range t.ids {
		all[what] = slices.Sorted(maps.Keys(ids))
	}
	return all
}

// await returns when what has been noted with n different ids.
func (t *tally) await(ctx context.Context, what string, n int) error {
	for {
		t.mu.Lock()
		got, changed := len(t.ids[what]), t.changed
		t.mu.Unlock()
		if got >= n {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for %d %s, %d so far: %w", n, what, got, context.Cause(ctx))
		}
	}
}

// awaitID returns when what has been noted with this id, and when that was.
func (t *tally) awaitID(ctx context.Context, what, id string) (time.Time, error) {
	for {
		t.mu.Lock()
		at, changed := t.ids[what][id], t.changed
		t.mu.Unlock()
		if !at.IsZero() {
			return at, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return at, fmt.Errorf("waiting for %s, %s: %w", what, id, context.Cause(ctx))
		}
	}
}

// stumbling is a publisher whose first call fails, as happens when a broker restarts.
type stumbling struct {
	message.Publisher

	first sync.Once
}

var errStumbled = errors.New("the broker is restarting")

func (s *stumbling) Publish(topic string, messages ...*message.Message) (err error) {
	s.first.Do(func() { err = errStumbled })
	if err != nil {
		return err
	}
	return s.Publisher.Publish(topic, messages...)
}
