package pgtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestRoundTrips(t *testing.T) {
	t.Parallel()
	config, err := pgx.ParseConfig(pgtest.EmptyURL(t))
	if err != nil {
		t.Fatal(err)
	}
	trips := pgtest.CountRoundTrips(&config.Config)
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if trips.Count() == 0 {
		t.Error("connecting counts no round trip")
	}
	measure := func(name string, want int64, do func() error) {
		t.Helper()
		before := trips.Count()
		if err := do(); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if got := trips.Count() - before; got != want {
			t.Errorf("%s: %d round trips, want %d", name, got, want)
		}
	}
	statement := func(sql string, args ...any) func() error {
		return func() error { _, err := conn.Exec(t.Context(), sql, args...); return err }
	}
	measure("a simple statement", 1, statement("select 1"))
	measure("a statement to prepare first", 2, statement("select $1::int", 1))
	measure("a prepared statement", 1, statement("select $1::int", 1))
	measure("a large answer", 1, statement("select repeat('x', 1000000) from generate_series(1, 10)"))
	measure("a transaction", 3, func() error {
		return pgx.BeginFunc(t.Context(), conn, func(tx pgx.Tx) error { _, err := tx.Exec(t.Context(), "select 1"); return err })
	})
	measure("a pipeline of ten", 1, func() error {
		batch := &pgx.Batch{}
		for range 10 {
			batch.Queue("select $1::int", 1)
		}
		return conn.SendBatch(t.Context(), batch).Close()
	})
}
