package pgtest_test

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
)

const (
	addThing   = "-- name: AddThing\ninsert into things (n) values ($1::integer)"
	countThing = "-- name: CountThings\nselect count(*) from things where n = $1::integer"
)

// faultWorld is a database with a table of things, and a client of it behind a proxy.
type faultWorld struct {
	t      *testing.T
	proxy  *pgtest.FaultProxy
	direct *pgxpool.Pool
	mode   pgx.QueryExecMode
}

// inEveryMode runs a test in each of pgx's ways to execute a statement.
func inEveryMode(t *testing.T, test func(t *testing.T, w *faultWorld)) {
	t.Helper()
	t.Parallel()
	for _, mode := range []pgx.QueryExecMode{
		pgx.QueryExecModeCacheStatement, pgx.QueryExecModeCacheDescribe, pgx.QueryExecModeDescribeExec,
		pgx.QueryExecModeExec, pgx.QueryExecModeSimpleProtocol,
	} {
		t.Run(strings.ReplaceAll(mode.String(), " ", "-"), func(t *testing.T) {
			t.Parallel()
			w := &faultWorld{t: t, mode: mode}
			url := pgtest.EmptyURL(t)
			w.direct = pgtest.Connect(t, url)
			w.proxy = pgtest.NewFaultProxy(t, url)
			_, err := w.direct.Exec(t.Context(), `create table things (n integer not null);
				create table unique_things (n integer primary key deferrable initially deferred)`)
			w.must(err)
			test(t, w)
		})
	}
}

func (w *faultWorld) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

// connect returns a connection through the proxy.
func (w *faultWorld) connect(application string) *pgx.Conn {
	w.t.Helper()
	config, err := pgx.ParseConfig(w.proxy.URL())
	w.must(err)
	config.DefaultQueryExecMode = w.mode
	config.RuntimeParams["application_name"] = application
	conn, err := pgx.ConnectConfig(w.t.Context(), config)
	w.must(err)
	w.t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		_ = conn.Close(ctx)
	})
	return conn
}

// things counts what has been committed.
func (w *faultWorld) things(n int) (count int) {
	w.t.Helper()
	w.must(w.direct.QueryRow(w.t.Context(), "select count(*) from things where n = $1", n).Scan(&count))
	return count
}

func (w *faultWorld) wantThings(n, want int) {
	w.t.Helper()
	if got := w.things(n); got != want {
		w.t.Errorf("%d rows with %d, want %d", got, n, want)
	}
}

// wantHits also checks that a fault for one execution has hit one.
func (w *faultWorld) wantHits(i *pgtest.Injection, hits, matched int) {
	w.t.Helper()
	if i.Hits() != hits || i.Matched() != matched {
		w.t.Errorf("hit %d of %d executions, want %d of %d", i.Hits(), i.Matched(), hits, matched)
	}
	select {
	case <-i.Hit():
		if hits == 0 {
			w.t.Error("it says that it has hit")
		}
	default:
		if hits > 0 {
			w.t.Error("it does not say that it has hit")
		}
	}
}

func (w *faultWorld) wantCut(err error) {
	w.t.Helper()
	if refused := new(pgconn.PgError); err == nil || errors.As(err, &refused) {
		w.t.Errorf("got %v, want a connection that broke", err)
	}
}

func (w *faultWorld) wantCode(err error, code string) {
	w.t.Helper()
	if refused := new(pgconn.PgError); !errors.As(err, &refused) || refused.Code != code {
		w.t.Errorf("got %v, want SQLSTATE %s", err, code)
	}
}

// add adds a thing in a way of its own: alone, as the second of a batch, or in a transaction.
type addFunc func(ctx context.Context, conn *pgx.Conn, n int) error

func addAlone(ctx context.Context, conn *pgx.Conn, n int) error {
	_, err := conn.Exec(ctx, addThing, n)
	return err
}

func addInBatch(ctx context.Context, conn *pgx.Conn, n int) error {
	batch := &pgx.Batch{}
	batch.Queue(countThing, n)
	batch.Queue(addThing, n)
	batch.Queue(countThing, n)
	return conn.SendBatch(ctx, batch).Close()
}

func addInTransaction(ctx context.Context, conn *pgx.Conn, n int) error {
	return pgx.BeginFunc(ctx, conn, func(tx pgx.Tx) error {
		if _, err := tx.Exec(ctx, countThing, n); err != nil {
			return err
		}
		_, err := tx.Exec(ctx, addThing, n)
		return err
	})
}

func eachWay(test func(add addFunc, n int)) {
	for n, add := range []addFunc{addAlone, addInBatch, addInTransaction} {
		test(add, n)
	}
}
