package romancy

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"

	"github.com/romancy-go/romancy/bus"
	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/workflow"
)

func TestAnUnreachableDatabaseIsNamedWithARemedy(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	_ = listener.Close() // nobody is there now
	text := startError(t, WithDatabase("postgres://me:secret@"+address+"/shop"), WithWorkflows(echoFlow))
	wantSays(t, text, `database "shop" at `+address+" cannot be reached", `lets user "me" in`, "WithDatabase")
	if strings.Contains(text, "secret") {
		t.Errorf("the error tells the password:\n%s", text)
	}
}

func TestStartCanBeTriedAgainUntilTheDatabaseIsReady(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	app := NewApp(WithPool(pool), WithWorkflows(echoFlow))
	var version *SchemaVersionError
	err := app.Start(t.Context())
	if !errors.As(err, &version) || version.Found != 0 {
		t.Fatalf("start: %v, want a *SchemaVersionError", err)
	}
	wantSays(t, err.Error(), `schema "romancy" has no tables yet`, "run romancy.Migrate first", "WithAutoMigrate()")
	if err := Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	if err := app.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	shutdown(t, app)
}

func TestASchemaOfAnotherVersionIsRefused(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change string
		says   []string
	}{
		"newer":                  {"update romancy.schema_version set version = version + 1, compatible_since = version + 1", []string{"newer than version", "deploy a build at least as new"}},
		"half-migrated":          {"update romancy.schema_version set version = 1", []string{"is at version 1, older than version", "run romancy.Migrate first"}},
		"without River's tables": {"drop table romancy.river_migration cascade", []string{"River", "run romancy.Migrate first"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Connect(t, pgtest.EmptyURL(t))
			if err := Migrate(t.Context(), pool); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), test.change); err != nil {
				t.Fatal(err)
			}
			wantSays(t, startError(t, WithPool(pool), WithWorkflows(echoFlow)), test.says...)
			if acquired := pool.Stat().AcquiredConns(); acquired != 0 {
				t.Errorf("%d connections of the application's pool are still held", acquired)
			}
		})
	}
}

func TestAFailedStartStopsWhatItHadStarted(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	if err := Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	// The last part to start fails: River's tables are missing.
	if _, err := pool.Exec(t.Context(), "drop table romancy.river_migration cascade"); err != nil {
		t.Fatal(err)
	}
	app := NewApp(WithPool(pool), WithWorkflows(echoFlow), WithOutboxPublisher(&broker{}))
	if err := app.Start(t.Context()); err == nil {
		t.Fatal("it started")
	}
	if app.Engine() != nil || app.Status().State != StateNew {
		t.Errorf("engine %v, status %+v after a failed start", app.Engine(), app.Status())
	}
	var connections int
	eventually(t, "only the pool's connections are left", func() bool {
		err := pool.QueryRow(t.Context(), `select count(*) from pg_stat_activity where datname = current_database()
			and backend_type = 'client backend' and application_name like '% %'`).Scan(&connections)
		return err == nil && connections == 0
	})
}

func TestLifeAndDeath(t *testing.T) {
	t.Parallel()
	ctx := t.Context()
	app := NewApp(WithDatabase(pgtest.EmptyURL(t)), WithAutoMigrate(), WithWorkflows(echoFlow))

	if _, err := echoFlow.Start(ctx, app.Engine(), "early"); !errors.Is(err, workflow.ErrNotStarted) {
		t.Errorf("start a run before Start: %v, want ErrNotStarted", err)
	}
	if _, err := app.Subscriber(bus.SubscriberConfig{}); !errors.Is(err, ErrNotStarted) {
		t.Errorf("subscriber before Start: %v, want ErrNotStarted", err)
	}
	if app.Listener().Healthy() || app.Outbox() != nil || app.Pool() != nil || app.Status().State != StateNew {
		t.Error("there are parts before Start")
	}
	if err := app.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if err := app.Start(ctx); !errors.Is(err, ErrAlreadyStarted) {
		t.Errorf("second start: %v, want ErrAlreadyStarted", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := app.Shutdown(ended); err != nil { // as a deferred one after the signal has come
		t.Errorf("shutdown with a context that has ended: %v", err)
	}
	if err := app.Shutdown(ctx); err != nil {
		t.Errorf("second shutdown: %v", err)
	}
	if err := app.Start(ctx); !errors.Is(err, ErrShutDown) {
		t.Errorf("start after shutdown: %v, want ErrShutDown", err)
	}
	if _, err := echoFlow.Start(ctx, app.Engine(), "late"); !errors.Is(err, workflow.ErrClosed) {
		t.Errorf("start a run after Shutdown: %v, want ErrClosed", err)
	}
	if err := app.Pool().Ping(ctx); err == nil {
		t.Error("the App's own pool is still open")
	}
	if status := app.Status(); status.State != StateStopped {
		t.Errorf("state %s", status.State)
	}

	never := NewApp(WithDatabase("postgres://localhost/nowhere"))
	if err := never.Shutdown(ctx); err != nil {
		t.Errorf("shutdown without start: %v", err)
	}
	if err := never.Start(ctx); !errors.Is(err, ErrShutDown) {
		t.Errorf("start after that: %v, want ErrShutDown", err)
	}
}

func TestStartsAndShutdownsAtOnceLeaveNothingBehind(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	if err := Migrate(t.Context(), pool); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		app := NewApp(WithPool(pool), WithWorkflows(echoFlow), WithOutboxPublisher(&broker{}))
		var all sync.WaitGroup
		for range 2 {
			all.Go(func() {
				if err := app.Start(t.Context()); err != nil && !errors.Is(err, ErrAlreadyStarted) && !errors.Is(err, ErrShutDown) {
					t.Errorf("start: %v", err)
				}
			})
			all.Go(func() { shutdown(t, app) })
		}
		all.Wait()
		shutdown(t, app)
	}
}

func TestShutdownSaysWhoKeepsTheAppsPoolBusyAndMayBeTriedAgain(t *testing.T) {
	t.Parallel()
	app := start(t, WithDatabase(pgtest.EmptyURL(t)), WithAutoMigrate(), WithWorkflows(echoFlow))
	conn, err := app.Pool().Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	err = app.Shutdown(ctx)
	if err == nil || !strings.Contains(err.Error(), "stop the pool: 1 connections are still in use") {
		t.Errorf("shutdown: %v, want the pool named", err)
	}
	conn.Release()
	shutdown(t, app)
}

func TestWithRiverMistakes(t *testing.T) {
	t.Parallel()
	pool, err := pgxpool.New(t.Context(), "postgres://localhost/nowhere") // connects to nothing
	if err != nil {
		t.Fatal(err)
	}
	defer pool.Close()
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{Workers: river.NewWorkers()})
	if err != nil {
		t.Fatal(err)
	}
	wantSays(t, startError(t, WithPool(pool), WithRiver(client, river.NewWorkers())), "WithRiver without anything to sweep")
	wantSays(t, startError(t, WithPool(pool), WithRiver(client, river.NewWorkers()), WithWorkflows(echoFlow), WithMaxTimersPerBatch(-1)),
		"WithRiver: riverjobs: Workers is not the bundle that Client was made with", "WithMaxTimersPerBatch(-1)")
}
