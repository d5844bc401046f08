package pgtest_test

import (
	"errors"
	"fmt"
	"runtime"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestKillBackends(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	var victims []*pgx.Conn
	for _, name := range []string{"victim 1", "victim 2", "bystander"} {
		config := pool.Config().ConnConfig.Copy()
		config.RuntimeParams["application_name"] = name
		conn, err := pgx.ConnectConfig(t.Context(), config)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(t.Context()) }()
		victims = append(victims, conn)
	}
	if got := pgtest.KillBackends(t, pool, "victim%"); got != 2 {
		t.Errorf("killed %d, want 2", got)
	}
	for _, conn := range victims[:2] {
		var ended *pgconn.PgError
		if _, err := conn.Exec(t.Context(), "select 1"); !errors.As(err, &ended) || ended.Code != "57P01" {
			t.Errorf("a killed session gives %v, want 57P01", err)
		}
	}
	if err := victims[2].Ping(t.Context()); err != nil {
		t.Errorf("the bystander was hit: %v", err)
	}
	if got := pgtest.KillBackends(t, pool, "victim%"); got != 0 {
		t.Errorf("killed %d of the dead, want 0", got)
	}
}

func TestPoolTakesConfiguration(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t, func(config *pgxpool.Config) { config.MaxConns = 7 })
	if got := pool.Config().MaxConns; got != 7 {
		t.Errorf("MaxConns is %d, want 7", got)
	}
}

// verdict is a testing.TB that notes how the test ended.
type verdict struct {
	testing.TB

	skipped, failed string
}

func (v *verdict) Helper() {}

func (v *verdict) Skipf(format string, args ...any) {
	v.skipped = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (v *verdict) Fatalf(format string, args ...any) {
	v.failed = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func TestSkipOrFail(t *testing.T) {
	t.Setenv("ROMANCY_REQUIRE", "postgres, pgbouncer")
	for name, wantFail := range map[string]bool{"postgres": true, "pgbouncer": true, "nats": false, "": false} {
		v := &verdict{}
		done := make(chan struct{})
		go func() { defer close(done); pgtest.SkipOrFail(v, name, "get one") }()
		<-done
		if (v.failed != "") != wantFail || (v.skipped != "") == wantFail {
			t.Errorf("%q: failed %q, skipped %q", name, v.failed, v.skipped)
		}
	}
}

func TestPgBouncer(t *testing.T) {
	t.Parallel()
	pooled := pgtest.PgBouncer(t, pgtest.URL(t), "transaction")
	config, err := pgx.ParseConfig(pooled)
	if err != nil {
		t.Fatal(err)
	}
	config.DefaultQueryExecMode = pgx.QueryExecModeExec
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	// Through a pooler in transaction mode a session setting does not stay with its client.
	if _, err := conn.Exec(t.Context(), "listen news"); err != nil {
		t.Fatal(err)
	}
	var instances bool
	if err := conn.QueryRow(t.Context(), "select to_regclass('romancy.instances') is not null").Scan(&instances); err != nil {
		t.Fatal(err)
	}
	if !instances {
		t.Error("the pooler leads to another database")
	}
	config.Password = "guess"
	if conn, err := pgx.ConnectConfig(t.Context(), config); err == nil {
		_ = conn.Close(t.Context())
		t.Error("the pooler lets anybody in")
	}
}
