package horizon

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// session is a connection under a name of its own, closed with the test.
func session(t *testing.T, pool *pgxpool.Pool, name string, change ...func(*pgx.ConnConfig)) *pgx.Conn {
	t.Helper()
	config := pool.Config().ConnConfig
	config.RuntimeParams["application_name"] = name
	for _, c := range change {
		c(config)
	}
	conn, err := pgx.ConnectConfig(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.Background()) }) // ends its transaction, whatever comes back
	return conn
}

func exec(t *testing.T, conn *pgx.Conn, statements ...string) {
	t.Helper()
	for _, statement := range statements {
		if _, err := conn.Exec(t.Context(), statement); err != nil {
			t.Fatalf("%s: %v", statement, err)
		}
	}
}

func lookAt(t *testing.T, db Querier) Reading {
	t.Helper()
	query, err := loadQuery()
	if err != nil {
		t.Fatal(err)
	}
	reading, err := look(t.Context(), db, query)
	if err != nil {
		t.Fatal(err)
	}
	return reading
}

func TestTheCulpritIsNamed(t *testing.T) {
	t.Parallel()
	for name, begin := range map[string][]string{
		"a snapshot":                          {"begin isolation level repeatable read", "select count(*) from pg_class"},
		"a transaction that wrote and forgot": {"begin", "create temporary table t ()"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			// Of its own: snapshots count the transactions of all databases of a server, so that another test's would make the
			// later one as old as itself. Autovacuum's would, too.
			pool := pgtest.Connect(t, pgtest.Private(t, pgtest.Setting("autovacuum", "off")).URL())
			culprit := session(t, pool, "analytics")
			exec(t, culprit, begin...)
			// A snapshot taken later is as old, because the first transaction is still running when it is taken.
			writer := session(t, pool, "writer")
			exec(t, writer, "create table others (n int)", "insert into others values (1)")
			later := session(t, pool, "later")
			exec(t, later, "begin isolation level repeatable read", "select count(*) from others")
			exec(t, writer, "insert into others values (2)")
			got := lookAt(t, pool).Oldest
			if got == nil {
				t.Fatal("nobody")
			}
			if got.Kind != Session || got.Name != "analytics" || got.PID != int32(culprit.PgConn().PID()) ||
				got.State != "idle in transaction" || got.Age <= 0 || got.Transactions < 1 || got.Role == "" || got.Statement != "" {
				t.Errorf("got %+v", *got)
			}
			exec(t, culprit, "rollback")
			if got := lookAt(t, pool).Oldest; got == nil || got.Name != "later" {
				t.Errorf("then got %+v", got)
			}
			exec(t, later, "rollback")
			if got := lookAt(t, pool).Oldest; got != nil {
				t.Errorf("in the end got %+v", *got)
			}
		})
	}
}

func TestOfASessionsStatementOnlyOurNamesAreShown(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.Private(t, pgtest.Setting("autovacuum", "off")).URL())
	for statement, want := range map[string]string{
		"select 'card-4111', pg_current_xact_id()":                                "",
		"-- name: ClaimReady\nselect 'card-4111', pg_current_xact_id()":           "ClaimReady",
		"-- name: CardHolder :one\nselect 'card-4111', pg_current_xact_id()":      "",
		"/* card-4111 */ -- name: ClaimReady\nselect pg_current_xact_id()":        "",
		"-- name: Card4111 'card-4111'\nselect pg_current_xact_id()":              "",
		"-- no name\n-- name: ClaimReady\nselect 'hunter2', pg_current_xact_id()": "",
	} {
		conn := session(t, pool, "analytics")
		exec(t, conn, "begin", statement)
		reading := lookAt(t, pool)
		got := reading.Oldest
		if got == nil || got.Name != "analytics" || got.Statement != want {
			t.Errorf("of %q is shown %+v, want the statement %q", statement, got, want)
		}
		if shown := fmt.Sprintf("%+v %v", got, got.attributes()); strings.Contains(shown, "card-4111") || strings.Contains(shown, "hunter2") {
			t.Errorf("of %q is shown %s", statement, shown)
		}
		exec(t, conn, "rollback")
	}
}

func TestAPreparedTransactionIsNamed(t *testing.T) {
	t.Parallel()
	server := pgtest.Private(t, pgtest.Setting("max_prepared_transactions", "2"))
	pool := pgtest.Connect(t, server.URL())
	exec(t, session(t, pool, "two-phase"), "begin", "create table t ()", "prepare transaction 'forgotten'")
	got := lookAt(t, pool).Oldest
	if got == nil || got.Kind != PreparedTransaction || got.Name != "forgotten" || got.Age <= 0 {
		t.Errorf("got %+v", got)
	}
	exec(t, session(t, pool, "two-phase"), "rollback prepared 'forgotten'")
}

// Without the right to look at others' sessions, the answer says that something is hidden.
func TestWhatARoleMayNotSeeIsSaidToBeHidden(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	admin := session(t, pool, "admin")
	role := fmt.Sprintf("nobody_%d", admin.PgConn().PID())
	exec(t, admin, "create role "+role)
	t.Cleanup(func() {
		if _, err := admin.Exec(context.Background(), "drop role "+role); err != nil {
			t.Error(err)
		}
	})
	exec(t, session(t, pool, "analytics"), "begin isolation level repeatable read", "select 1")
	asking := session(t, pool, "asking")
	exec(t, asking, "set role "+role)
	got := lookAt(t, asking)
	if got.Oldest != nil || got.Hidden < 2 {
		t.Errorf("got %+v, %+v, want nobody and at least 2 hidden", got, got.Oldest)
	}
	exec(t, asking, "reset role")
	if got := lookAt(t, asking); got.Oldest == nil || got.Hidden != 0 {
		t.Errorf("got %+v with the right to look", got)
	}
}

func TestTheFirstLookComesAtOnce(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	exec(t, session(t, pool, "analytics"), "begin isolation level repeatable read", "select 1")
	w, err := New(Config{Pool: pool, Logger: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	w.Start(t.Context())
	t.Cleanup(w.Stop)
	for deadline := time.Now().Add(30 * time.Second); w.Last().Oldest == nil; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("still nobody")
		}
	}
}

func TestEachOldSnapshotIsSaidOnceAndWhenItIsOver(t *testing.T) {
	t.Parallel()
	var said bytes.Buffer
	w, err := New(Config{WarnAfter: time.Minute, Logger: slog.New(slog.NewTextHandler(&said, nil))})
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	at := func(after time.Duration, holder *Holder) {
		if holder != nil {
			copied := *holder
			if holder.Kind == Session {
				copied.Age = after
			}
			holder = &copied
		}
		w.note(t.Context(), Reading{Oldest: holder, At: start.Add(after)})
	}
	expect := func(warnings, overs int, name string) {
		t.Helper()
		text := said.String()
		if strings.Count(text, "level=WARN") != warnings || strings.Count(text, "is gone") != overs || !strings.Contains(text, name) {
			t.Fatalf("want %d warnings and %d ends, the last of %q:\n%s", warnings, overs, name, text)
		}
	}
	report := &Holder{Kind: Session, PID: 1, Name: "report", horizon: "100"}
	at(59*time.Second, report)
	expect(0, 0, "")
	for range 3 {
		at(time.Minute, report)
		expect(1, 0, "name=report")
	}
	at(time.Minute, nil)
	expect(1, 1, "name=report")

	// The server says no age of a slot: it counts from the first look.
	slot := &Holder{Kind: ReplicationSlot, PID: 7, Name: "replica", horizon: "200"}
	at(0, slot)
	slot.PID = 0 // its standby has gone
	at(59*time.Second, slot)
	expect(1, 1, "")
	at(60*time.Second, slot)
	expect(2, 1, "name=replica")
	if age := w.Last().Oldest.Age; age != time.Minute {
		t.Errorf("its age is %s, want 1m", age)
	}
	slot.horizon = "300" // it moves on
	at(61*time.Second, slot)
	expect(2, 2, "")
	at(120*time.Second, slot)
	expect(2, 2, "")
}
