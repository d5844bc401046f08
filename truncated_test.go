package romancy

import (
	"strings"
	"testing"
	"time"

	"github.com/ThreeDotsLabs/watermill"
	"github.com/ThreeDotsLabs/watermill/pubsub/gochannel"
	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/outbox"
)

// Test suites empty every table between two tests, below living processes. What comes then works as before.
func TestEverythingWorksAfterTheTablesWereEmptied(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	broker := gochannel.NewGoChannel(gochannel.Config{OutputChannelBuffer: 10, Persistent: true}, watermill.NopLogger{})
	relayed, err := broker.Subscribe(t.Context(), "orders")
	if err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	app := start(t, WithPool(pool), WithWorkflows(echoFlow), WithOutboxPublisher(broker), WithLogger(log.logger()), WithNotifyFallbackInterval(time.Second), WithLease(3*time.Second), WithAutoMigrate())
	work := func(what string) {
		t.Helper()
		run, err := echoFlow.Start(t.Context(), app.Engine(), what)
		if err != nil {
			t.Fatal(err)
		}
		if out, err := run.Result(t.Context()); err != nil || out != what {
			t.Fatalf("%s: %s, %v", what, out, err)
		}
		if err := pgx.BeginFunc(t.Context(), pool, func(tx pgx.Tx) error {
			return outbox.Add(t.Context(), tx, outbox.Event{Topic: "orders", Key: what, Payload: []byte(what)})
		}); err != nil {
			t.Fatal(err)
		}
		select {
		case msg := <-relayed:
			if msg.Ack(); string(msg.Payload) != what {
				t.Errorf("%s was relayed, want %s", msg.Payload, what)
			}
		case <-time.After(time.Minute):
			t.Fatalf("the event of %q was not relayed:\n%s", what, log.String())
		}
	}
	work("before")
	var tables []string
	rows, err := pool.Query(t.Context(), "select 'romancy.' || quote_ident(tablename) from pg_tables where schemaname = 'romancy' and tablename not in ('schema_version', 'river_migration')")
	if err == nil {
		tables, err = pgx.CollectRows(rows, pgx.RowTo[string])
	}
	if err != nil || len(tables) < 10 {
		t.Fatalf("%v, %v", tables, err)
	}
	for _, restart := range []string{"", " restart identity"} {
		if _, err := pool.Exec(t.Context(), "truncate "+strings.Join(tables, ", ")+restart+" cascade"); err != nil {
			t.Fatal(err)
		}
		work("after" + restart)
	}
}
