package bus

import (
	"context"
	"sync"
	"testing"

	watermillsql "github.com/ThreeDotsLabs/watermill-sql/v4/pkg/sql"
	"github.com/jackc/pgx/v5"
)

// gatedDB holds every question that goes to the database outside of transactions until it is let through.
type gatedDB struct {
	watermillsql.Beginner

	asks, pass chan struct{}
	open       func() // lets all through from now on
}

func (db *gatedDB) QueryContext(ctx context.Context, query string, args ...any) (watermillsql.Rows, error) {
	db.asks <- struct{}{}
	<-db.pass
	return db.Beginner.QueryContext(context.WithoutCancel(ctx), query, args...)
}

// wait returns when a question has come.
func (db *gatedDB) wait(t *testing.T) {
	t.Helper()
	select {
	case <-db.asks:
	case <-within(t).Done():
		t.Fatal("no question")
	}
}

// slowAndQuick are two groups of one topic: each question of the quick one's is held until it is let through.
func slowAndQuick(t *testing.T) (s *wokenSQL, gate *gatedDB, slow, quick *WokenSubscriber) {
	t.Helper()
	s = newWokenSQL(t)
	gate = &gatedDB{Beginner: s.db, asks: make(chan struct{}, 100), pass: make(chan struct{}, 100)}
	gate.open = sync.OnceFunc(func() { close(gate.pass) })
	gated := *s
	gated.db = gate
	slow, quick = s.subscriber(t, "slow"), gated.subscriber(t, "quick")
	for _, subscriber := range []*WokenSubscriber{slow, quick} {
		if err := subscriber.SubscribeInitialize(orders); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(gate.open)
	return s, gate, slow, quick
}

// beginToWrite returns a transaction that hides what begins to be written after it.
func (s *wokenSQL) beginToWrite(t *testing.T) pgx.Tx {
	t.Helper()
	tx, err := s.pool.Begin(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Exec(within(t), "select pg_current_xact_id()"); err != nil {
		t.Fatal(err)
	}
	return tx
}

// A group looked in vain while a transaction hid the message. When it asks, that has ended, but another group has begun to
// handle the same message in a transaction, perhaps for long: what can be seen by now is not to wait for that.
func TestAMessageIsNotHeldUpByWhoeverHandlesIt(t *testing.T) {
	t.Parallel()
	s, gate, slow, quick := slowAndQuick(t)
	hides := s.beginToWrite(t)
	publish(t, s.publisher(t), "paid")
	messages, err := quick.Subscribe(t.Context(), orders)
	if err != nil {
		t.Fatal(err)
	}
	gate.wait(t)
	if err := hides.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	others, err := slow.Subscribe(t.Context(), orders)
	if err != nil {
		t.Fatal(err)
	}
	handled := received(t, others)
	defer handled.Ack()
	// Something else goes on, so that the other group's transaction is not the newest there was.
	if err := s.beginToWrite(t).Commit(within(t)); err != nil {
		t.Fatal(err)
	}
	gate.open()
	wantReceived(t, messages, "paid")
}

// Two transactions hide messages: one that ends, and one in which the other group handles an earlier message, perhaps for
// long. What the end of the first shows is not to wait for the second.
func TestAMessageIsFoundWhenItCanBeSeenAndNotWhenAllCan(t *testing.T) {
	t.Parallel()
	s, gate, slow, quick := slowAndQuick(t)
	publisher := s.publisher(t)
	publish(t, publisher, "ordered")
	hides := s.beginToWrite(t)
	publish(t, publisher, "paid")
	others, err := slow.Subscribe(t.Context(), orders)
	if err != nil {
		t.Fatal(err)
	}
	handled := received(t, others)
	defer handled.Ack()
	messages, err := quick.Subscribe(t.Context(), orders)
	if err != nil {
		t.Fatal(err)
	}
	wantReceived(t, messages, "ordered")
	for range 3 { // in vain
		gate.wait(t)
		gate.pass <- struct{}{}
	}
	gate.wait(t)
	if err := hides.Rollback(within(t)); err != nil {
		t.Fatal(err)
	}
	gate.open()
	wantReceived(t, messages, "paid")
}
