package store_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow/internal/store"
)

// One statement may be asked to send an event several times: it does so once, whether the event is new, or takes the place of
// one that has expired, or is kept already, and every sender is answered.
func TestOneStatementSendsAnEventOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	s := newStore(t)
	ctx := t.Context()
	event := store.SendEvent{Type: "paid", Source: "shop", EventID: "1", Attributes: []byte(`{}`), Data: []byte(`1`), KeepMicros: 3600e6}
	for _, round := range []struct {
		name, before string
		sent         int
	}{
		{"new", "select 1", 1},
		{"kept", "select 1", 0},
		{"expired", "update romancy.events set expires_at = clock_timestamp() - interval '1 second'", 1},
	} {
		if _, err := pool.Exec(ctx, round.before); err != nil {
			t.Fatal(err)
		}
		done, sent := 0, 0
		batch := &pgx.Batch{}
		s.SendEvents(batch, []store.SendEvent{event, event, event}, func(int, bool) { done++ }, func(store.SentEvent) { sent++ })
		if err := pool.SendBatch(ctx, batch).Close(); err != nil {
			t.Fatalf("%s: %v", round.name, err)
		}
		if done != 3 || sent != round.sent {
			t.Errorf("%s: %d of 3 are answered, %d sent, want %d", round.name, done, sent, round.sent)
		}
	}
}
