package pgtest_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestFaultProxyWithoutFaultsChangesNothing(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		conn := w.connect("app")
		eachWay(func(add addFunc, n int) {
			for range 3 {
				w.must(add(t.Context(), conn, n))
			}
			w.wantThings(n, 3)
		})
		var text string
		w.must(conn.QueryRow(t.Context(), "select repeat('x', $1::integer)", 3_000_000).Scan(&text))
		if len(text) != 3_000_000 {
			t.Errorf("%d bytes arrive", len(text))
		}
		w.must(conn.QueryRow(t.Context(), "select $1::text", text).Scan(&text))
		if len(text) != 3_000_000 {
			t.Errorf("%d bytes come back", len(text))
		}
		rows := [][]any{{7}, {7}, {7}}
		if n, err := conn.CopyFrom(t.Context(), pgx.Identifier{"things"}, []string{"n"}, pgx.CopyFromRows(rows)); err != nil || n != 3 {
			t.Errorf("copied %d, %v", n, err)
		}
		var n int
		w.wantCode(conn.QueryRow(t.Context(), "select 1/$1::integer", 0).Scan(&n), "22012")
		w.must(conn.DeallocateAll(t.Context()))
		w.must(addAlone(t.Context(), conn, 8))
		executed := w.proxy.Executed()
		for statement, want := range map[string]int{"AddThing": 10, "CountThings": 9, "begin": 3, "commit": 3, "copy": 1} {
			if got := executed[pgtest.Execution{Application: "app", Statement: statement}]; got != want {
				t.Errorf("%s was seen %d times, want %d: %v", statement, got, want, executed)
			}
		}
	})
}

func TestCutBeforeReachesNoServer(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		eachWay(func(add addFunc, n int) {
			conn := w.connect("app")
			fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultCutBefore, Nth: 2})
			w.must(add(t.Context(), conn, n))
			w.wantCut(add(t.Context(), conn, n))
			w.must(add(t.Context(), w.connect("app"), n))
			w.wantThings(n, 2)
			w.wantHits(fault, 1, 3)
		})
	})
}

func TestCutAfterRunHasTheServerRollBack(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		// A sequence is not rolled back: it tells that the statement has run.
		_, err := w.direct.Exec(t.Context(), "create sequence runs; alter table things add column run bigint default nextval('runs')")
		w.must(err)
		eachWay(func(add addFunc, n int) {
			conn := w.connect("app")
			fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultCutAfterRun, Nth: 2})
			w.must(add(t.Context(), conn, n))
			var before, after int64
			w.must(w.direct.QueryRow(t.Context(), "select last_value from runs").Scan(&before))
			w.wantCut(add(t.Context(), conn, n))
			w.must(w.direct.QueryRow(t.Context(), "select last_value from runs").Scan(&after))
			if after != before+1 {
				t.Errorf("the statement ran %d times, want once", after-before)
			}
			w.must(add(t.Context(), w.connect("app"), n))
			w.wantThings(n, 2)
			w.wantHits(fault, 1, 3)
		})
	})
}

func TestCutAfterCommitLosesNothingButTheAnswer(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		eachWay(func(add addFunc, n int) {
			conn := w.connect("app")
			fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultCutAfterCommit, Nth: 2})
			w.must(add(t.Context(), conn, n))
			w.wantCut(add(t.Context(), conn, n))
			w.wantThings(n, 2)
			w.must(add(t.Context(), w.connect("app"), n))
			w.wantThings(n, 3)
			w.wantHits(fault, 1, 3)
		})
	})
}

func TestCutAfterCommitWaitsForATransactionThatCommits(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		conn := w.connect("app")
		fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultCutAfterCommit, Nth: 1})
		tx, err := conn.Begin(t.Context())
		w.must(err)
		_, err = tx.Exec(t.Context(), addThing, 1)
		w.must(err)
		w.must(tx.Rollback(t.Context()))
		w.wantHits(fault, 0, 1)
		w.wantCut(addInTransaction(t.Context(), conn, 1))
		w.wantThings(1, 1)
		w.wantHits(fault, 1, 2)
	})
}

func TestRefuseAbortsTheTransaction(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		conn := w.connect("app") // survives
		eachWay(func(add addFunc, n int) {
			fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultRefuse, Code: "53100", Nth: 2, Times: 2})
			w.must(add(t.Context(), conn, n))
			w.wantCode(add(t.Context(), conn, n), "53100")
			w.wantCode(add(t.Context(), conn, n), "53100")
			w.must(add(t.Context(), conn, n))
			w.wantThings(n, 2)
			w.wantHits(fault, 2, 4)
			fault.Stop()
		})
		fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultRefuse, Code: "55P03", Nth: 1})
		tx, err := conn.Begin(t.Context())
		w.must(err)
		_, err = tx.Exec(t.Context(), addThing, 9)
		w.wantCode(err, "55P03")
		_, err = tx.Exec(t.Context(), addThing, 9)
		w.wantCode(err, "25P02")
		if err := tx.Commit(t.Context()); !errors.Is(err, pgx.ErrTxCommitRollback) {
			t.Errorf("the commit of a failed transaction gives %v", err)
		}
		if fault.Hits() != 1 { // some modes describe the second first, which fails
			t.Errorf("hit %d times, want once", fault.Hits())
		}
	})
}

func TestRefusedCommitEndsTheTransaction(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		conn := w.connect("app")
		w.proxy.Inject(pgtest.Fault{Statement: "commit", Kind: pgtest.FaultRefuse, Code: "40001", Nth: 1})
		w.wantCode(addInTransaction(t.Context(), conn, 1), "40001")
		w.must(addInTransaction(t.Context(), conn, 1))
		w.wantThings(1, 1)
	})
}

func TestCutCommit(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		for kind, want := range map[pgtest.FaultKind]int{pgtest.FaultCutBefore: 0, pgtest.FaultCutAfterRun: 0, pgtest.FaultCutAfterCommit: 1} {
			conn := w.connect("app")
			fault := w.proxy.Inject(pgtest.Fault{Statement: "commit", Kind: kind, Nth: 1})
			n := slices.Index(pgtest.FaultKinds(), kind)
			w.wantCut(addInTransaction(t.Context(), conn, n))
			w.wantThings(n, want)
			w.wantHits(fault, 1, 1)
		}
	})
}

func TestDelayedStatementsAreExecutedAfterTheirClientHasGivenUp(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		conn := w.connect("app")
		fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultDelay, For: time.Second, Nth: 1})
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		defer cancel()
		if err := addAlone(ctx, conn, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a delayed statement gives %v", err)
		}
		w.wantHits(fault, 1, 1)
		for end := time.Now().Add(30 * time.Second); w.things(1) == 0; time.Sleep(5 * time.Millisecond) {
			if time.Now().After(end) {
				t.Fatal("what was delayed is never executed")
			}
		}
		w.wantThings(1, 1)
	})
}

func TestReadOnlySessionsStaySo(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		eachWay(func(add addFunc, n int) {
			conn := w.connect("app")
			fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultReadOnly, Nth: 2})
			w.must(add(t.Context(), conn, n))
			for range 3 {
				w.wantCode(add(t.Context(), conn, n), "25006")
			}
			w.wantThings(n, 1)
			w.must(add(t.Context(), w.connect("app"), n))
			w.wantHits(fault, 1, 5)
		})
	})
}

func TestReadOnlySessionsBecomeWritableAgain(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		eachWay(func(add addFunc, n int) {
			conn := w.connect("app")
			w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultReadOnly, For: 500 * time.Millisecond, Nth: 1})
			w.wantCode(add(t.Context(), conn, n), "25006")
			for end := time.Now().Add(30 * time.Second); add(t.Context(), conn, n) != nil; time.Sleep(20 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("it stays read-only")
				}
			}
			w.wantThings(n, 1)
		})
	})
}

func TestFaultsOfOneApplicationSpareTheOthers(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		spared, hit := w.connect("shop pool"), w.connect("shop engine")
		fault := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Application: " engine", Kind: pgtest.FaultRefuse, Code: "42501"})
		w.must(addAlone(t.Context(), spared, 1))
		w.wantCode(addAlone(t.Context(), hit, 1), "42501")
		w.wantCode(addAlone(t.Context(), hit, 1), "42501")
		fault.Stop()
		fault.Stop()
		w.must(addAlone(t.Context(), hit, 1))
		w.wantHits(fault, 2, 2)
	})
}

// A deferred constraint fails the batch in its Sync, and a statement fails by itself: that is no commit to cut after.
func TestAFailureOfTheServersOwnIsNoHit(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		const add = "-- name: AddUnique\ninsert into unique_things (n) values ($1::integer)"
		conn := w.connect("app")
		_, err := conn.Exec(t.Context(), add, 1)
		w.must(err)
		fault := w.proxy.Inject(pgtest.Fault{Statement: "AddUnique", Kind: pgtest.FaultCutAfterCommit, Nth: 1})
		_, err = conn.Exec(t.Context(), add, 1)
		w.wantCode(err, "23505")
		w.wantHits(fault, 0, 1)
		_, err = conn.Exec(t.Context(), add, 2)
		w.wantCut(err)
		w.wantHits(fault, 1, 2)
	})
}

func TestABatchSuffersOneFaultAndTheNextTheOther(t *testing.T) {
	inEveryMode(t, func(t *testing.T, w *faultWorld) {
		conn := w.connect("app")
		refused := w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: pgtest.FaultRefuse, Code: "53100", Nth: 1})
		first := w.proxy.Inject(pgtest.Fault{Statement: "CountThings", Kind: pgtest.FaultRefuse, Code: "42501", Nth: 1})
		w.wantCode(addInBatch(t.Context(), conn, 1), "42501")
		w.wantCode(addInBatch(t.Context(), conn, 1), "53100")
		w.must(addInBatch(t.Context(), conn, 1))
		if refused.Hits() != 1 || first.Hits() != 1 {
			t.Errorf("hit %d and %d times, want each once", refused.Hits(), first.Hits())
		}
	})
}

func TestFaultsReachListeners(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyURL(t)
	proxy := pgtest.NewFaultProxy(t, url)
	listening := func(kind pgtest.FaultKind, code string) error {
		conn := connect(t, proxy.URL())
		defer proxy.Inject(pgtest.Fault{Statement: "listen", Kind: kind, Code: code, Nth: 1}).Stop()
		if _, err := conn.Exec(t.Context(), "listen news"); err != nil {
			return err
		}
		if _, err := connect(t, proxy.URL()).Exec(t.Context(), "select pg_notify('news', $1)", "fresh"); err != nil {
			return err
		}
		got, err := conn.WaitForNotification(t.Context())
		if err == nil && got.Payload != "fresh" {
			err = fmt.Errorf("heard %q", got.Payload)
		}
		return err
	}
	for _, kind := range []pgtest.FaultKind{pgtest.FaultCutBefore, pgtest.FaultCutAfterRun, pgtest.FaultCutAfterCommit} {
		if err := listening(kind, ""); err == nil {
			t.Errorf("%s: LISTEN succeeds", kind)
		}
	}
	if err := listening(pgtest.FaultRefuse, "53200"); err == nil || !strings.Contains(err.Error(), "53200") {
		t.Errorf("a refused LISTEN gives %v", err)
	}
	proxy.Inject(pgtest.Fault{Statement: "select pg_notify", Kind: pgtest.FaultDelay, For: 50 * time.Millisecond, Nth: 1})
	if err := listening(pgtest.FaultReadOnly, ""); err != nil {
		t.Errorf("a read-only session hears nothing: %v", err) // LISTEN writes nothing
	}
}

// A cancel request comes on a connection of its own, and names a session by what the server has told its client.
func TestFaultProxyForwardsCancelRequests(t *testing.T) {
	t.Parallel()
	for _, disguised := range []bool{false, true} {
		proxy := pgtest.NewFaultProxy(t, pgtest.EmptyURL(t))
		if disguised {
			proxy.Disguise()
		}
		conn := connect(t, proxy.URL())
		var pid uint32
		if err := conn.QueryRow(t.Context(), "select pg_backend_pid()").Scan(&pid); err != nil {
			t.Fatal(err)
		}
		if (pid != conn.PgConn().PID()) != disguised {
			t.Errorf("the server has process id %d, the client is told %d", pid, conn.PgConn().PID())
		}
		cancelSleep(t, conn)
	}
}

func cancelSleep(t *testing.T, conn *pgx.Conn) {
	t.Helper()
	asleep := make(chan error, 1)
	go func() { _, err := conn.Exec(context.Background(), "select pg_sleep(60)"); asleep <- err }()
	for end := time.Now().Add(30 * time.Second); ; {
		if err := conn.PgConn().CancelRequest(t.Context()); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-asleep:
			if refused := new(pgconn.PgError); !errors.As(err, &refused) || refused.Code != "57014" {
				t.Errorf("a cancelled statement gives %v", err)
			}
			return
		case <-time.After(20 * time.Millisecond): // the statement may not have begun
		}
		if time.Now().After(end) {
			t.Fatal("nothing is cancelled")
		}
	}
}

func TestFaultProxyAnswersRequestsForEncryption(t *testing.T) {
	t.Parallel()
	proxy := pgtest.NewFaultProxy(t, pgtest.EmptyURL(t))
	preferred := strings.Replace(proxy.URL(), "sslmode=disable", "sslmode=prefer", 1)
	if err := connect(t, preferred).Ping(t.Context()); err != nil {
		t.Error(err)
	}
	if conn, err := pgx.Connect(t.Context(), strings.Replace(proxy.URL(), "sslmode=disable", "sslmode=require", 1)); err == nil {
		_ = conn.Close(t.Context())
		t.Error("a client that insists on encryption is let in")
	}
}

func TestFaultsUnderLoad(t *testing.T) {
	t.Parallel()
	const clients, each = 8, 400
	url := pgtest.EmptyURL(t)
	w := &faultWorld{t: t, proxy: pgtest.NewFaultProxy(t, url), direct: pgtest.Connect(t, url)}
	_, err := w.direct.Exec(t.Context(), "create table things (n integer not null)")
	w.must(err)
	pool := pgtest.Connect(t, w.proxy.URL(), func(c *pgxpool.Config) { c.MaxConns = clients })
	faults := map[pgtest.FaultKind]*pgtest.Injection{}
	for i, kind := range []pgtest.FaultKind{pgtest.FaultCutBefore, pgtest.FaultCutAfterRun, pgtest.FaultCutAfterCommit, pgtest.FaultRefuse} {
		faults[kind] = w.proxy.Inject(pgtest.Fault{Statement: "AddThing", Kind: kind, Code: "53100", Nth: 100 + 300*i, Times: 20})
	}
	var busy sync.WaitGroup
	var failed [clients]int
	began := time.Now()
	for client := range clients {
		busy.Go(func() {
			for range each {
				if _, err := pool.Exec(t.Context(), addThing, client); err != nil {
					failed[client]++
				}
			}
		})
	}
	busy.Wait()
	t.Logf("%d statements in %s", clients*each, time.Since(began))
	failures, committed := 0, 0
	for client := range clients {
		failures += failed[client]
		committed += w.things(client)
	}
	for kind, fault := range faults {
		if fault.Hits() != 20 {
			t.Errorf("%s hit %d times, want 20", kind, fault.Hits())
		}
	}
	if failures != 80 || committed != clients*each-60 {
		t.Errorf("%d failures and %d rows, want 80 and %d", failures, committed, clients*each-60)
	}
}

func TestStatementNames(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][]string{
		addThing:                             {"AddThing"},
		addThing + ";" + "\n" + countThing:   {"AddThing", "CountThings"},
		"-- name: JobGet :many\nselect 1":    {"river.JobGet"},
		"  LISTEN news":                      {"listen"},
		"commit":                             {"commit"},
		"begin isolation level serializable": {"begin"},
		"select pg_notify($1, $2)":           {"select pg_notify"},
		"select  pg_catalog.now()":           {"select pg_catalog.now"},
		"select 1":                           {"select"},
		"rollback;":                          {"rollback"},
		"":                                   {""},
	} {
		if got := pgtest.StatementNames(text); !slices.Equal(got, want) {
			t.Errorf("%q is named %q, want %q", text, got, want)
		}
	}
}
