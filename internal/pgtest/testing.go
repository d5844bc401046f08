package pgtest

import (
	"context"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.uber.org/goleak"
)

// patience bounds the setup and teardown of one test's database.
const patience = time.Minute

// shared is the server of this test binary, started by the first test that needs it and stopped by Main.
var shared struct {
	once   sync.Once
	server *Server
	err    error
}

func sharedServer(t testing.TB) *Server {
	t.Helper()
	shared.once.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*patience) // a download may be part of it
		defer cancel()
		shared.server, shared.err = Start(ctx)
	})
	if shared.err != nil {
		t.Fatalf("pgtest: %v", shared.err)
	}
	return shared.server
}

// Main runs a package's tests, stops the server they used, and fails if goroutines are left over. Opts are for goleak.
// It returns the exit code.
func Main(m *testing.M, opts ...goleak.Option) int {
	code := m.Run()
	if shared.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := shared.server.Stop(ctx); err != nil {
			fmt.Fprintf(os.Stderr, "pgtest: stop the server: %v\n", err)
			code = max(code, 1)
		}
	}
	// After a failure leftovers are expected, and would hide the cause.
	if code == 0 {
		if err := goleak.Find(opts...); err != nil {
			fmt.Fprintf(os.Stderr, "pgtest: goroutines left over after all tests: %v\n", err)
			code = 1
		}
	}
	return code
}

// Pool returns a pool on a fresh database with the library's schema. Mod changes its configuration before it is made.
// The pool is closed and the database dropped when the test ends; a test that still holds a connection then fails.
func Pool(t testing.TB, mod ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	return Connect(t, URL(t), mod...)
}

// Connect returns a pool on url that is closed when the test ends, see Pool.
func Connect(t testing.TB, url string, mod ...func(*pgxpool.Config)) *pgxpool.Pool {
	t.Helper()
	config, err := pgxpool.ParseConfig(url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	for _, change := range mod {
		change(config)
	}
	pool, err := pgxpool.NewWithConfig(t.Context(), config)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		closed := make(chan struct{})
		go func() {
			defer close(closed)
			pool.Close() // waits for all connections to be given back
		}()
		select {
		case <-closed:
		case <-time.After(patience / 2):
			t.Errorf("pgtest: %d of the pool's connections were not given back", pool.Stat().AcquiredConns())
		}
	})
	return pool
}

// URL returns the address of a fresh database with the library's schema, dropped when the test ends.
func URL(t testing.TB) string {
	t.Helper()
	return newDatabase(t, sharedServer(t).CreateDatabase)
}

// EmptyURL returns the address of a fresh database without the library's schema, dropped when the test ends.
func EmptyURL(t testing.TB) string {
	t.Helper()
	return newDatabase(t, sharedServer(t).CreateEmptyDatabase)
}

// Latin1 returns a pool on a fresh database without the library's schema, whose encoding has few characters: what is sent there is
// UTF-8, as ever. The database is dropped when the test ends.
func Latin1(t testing.TB) *pgxpool.Pool {
	t.Helper()
	admin := Pool(t)
	name := admin.Config().ConnConfig.Database + "_latin1"
	if _, err := admin.Exec(t.Context(), "create database "+name+" template template0 encoding 'LATIN1' lc_collate 'C' lc_ctype 'C'"); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if _, err := admin.Exec(ctx, "drop database "+name+" with (force)"); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return Connect(t, admin.Config().ConnString(), func(c *pgxpool.Config) {
		c.ConnConfig.Database = name
		c.ConnConfig.RuntimeParams["client_encoding"] = "UTF8"
	})
}

func newDatabase(t testing.TB, create func(context.Context) (string, func(context.Context) error, error)) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	url, drop, err := create(ctx)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := drop(ctx); err != nil {
			t.Errorf("pgtest: %v", err)
		}
	})
	return url
}

// Private starts a server of this test's own, whatever DATABASE_URL says, for tests that restart it. It is stopped when
// the test ends. Without PostgreSQL on the machine the test is skipped, see SkipOrFail.
func Private(t testing.TB, opts ...Option) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*patience)
	defer cancel()
	server, err := Start(ctx, append(opts, ownServer())...)
	if err != nil {
		SkipOrFail(t, "postgres", err.Error())
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := server.Stop(ctx); err != nil {
			t.Errorf("pgtest: stop the private server: %v", err)
		}
	})
	return server
}

// SkipOrFail skips a test that needs something this machine does not have, saying how to get it. If ROMANCY_REQUIRE (a
// comma-separated list) names it, the test fails instead, so that continuous integration cannot pass by skipping.
func SkipOrFail(t testing.TB, name, hint string) {
	t.Helper()
	required := strings.Split(os.Getenv("ROMANCY_REQUIRE"), ",")
	if slices.ContainsFunc(required, func(entry string) bool { return strings.TrimSpace(entry) == name }) {
		t.Fatalf("%s is missing but ROMANCY_REQUIRE asks for it: %s", name, hint)
	}
	t.Skipf("%s is missing: %s", name, hint)
}

// KillBackends ends the sessions in pool's database whose application_name is LIKE the pattern, the asking one excepted,
// waits until they are gone, and returns how many they were.
func KillBackends(t testing.TB, pool *pgxpool.Pool, applicationNameLike string) int {
	t.Helper()
	const wait = 5000 // milliseconds
	var killed int
	err := pool.QueryRow(t.Context(), `select count(*) filter (where pg_terminate_backend(pid, $2::bigint))
		from pg_stat_activity
		where datname = current_database() and pid <> pg_backend_pid() and application_name like $1::text`,
		applicationNameLike, wait).Scan(&killed)
	if err != nil {
		t.Fatalf("pgtest: kill backends: %v", err)
	}
	return killed
}
