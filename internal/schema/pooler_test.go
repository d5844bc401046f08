package schema_test

import (
	"context"
	"errors"
	"net"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
)

// behindPooler returns a pool that reaches an empty database through PgBouncer in transaction mode, and one that reaches it
// directly.
func behindPooler(t *testing.T, mod ...func(*pgxpool.Config)) (pooled, direct *pgxpool.Pool) {
	t.Helper()
	url := pgtest.EmptyURL(t)
	direct = pgtest.Connect(t, url)
	pooled = pgtest.Connect(t, pgtest.PgBouncer(t, url, "transaction"), append(mod, func(config *pgxpool.Config) {
		config.MaxConns = 2
	})...)
	return pooled, direct
}

func TestConcurrentMigrationsBehindAPooler(t *testing.T) {
	t.Parallel()
	pooled, direct := behindPooler(t)
	_, newer := indexes(t)
	for round := range 3 {
		exec(t, direct, "drop schema if exists romancy cascade")
		errs := make([]error, 8)
		var done sync.WaitGroup
		for i := range errs {
			done.Go(func() { errs[i] = newer.Migrate(t.Context(), pooled, quiet()) })
		}
		done.Wait()
		if err := errors.Join(errs...); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
		wantIndexes(t, direct)
		wantVersion(t, direct, 3, 3)
		wantNoLocks(t, direct)
	}
}

// cable is a network connection that can be cut, with all that follow it, as when the process at this end is killed.
type cable struct {
	mu    sync.Mutex
	conns []net.Conn
	cut   bool
}

func (c *cable) dial(ctx context.Context, network, address string) (net.Conn, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, address)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err == nil && c.cut {
		_ = conn.Close()
		return nil, errors.New("cut") // no request to cancel, either
	}
	c.conns = append(c.conns, conn)
	return conn, err
}

func (c *cable) sever() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.cut = true
	for _, conn := range c.conns {
		_ = conn.Close()
	}
}

func TestKilledClientLeavesNoLock(t *testing.T) {
	t.Parallel()
	for _, way := range []string{"directly", "behind a pooler"} {
		t.Run(way, func(t *testing.T) {
			t.Parallel()
			url := pgtest.EmptyURL(t)
			direct, reached := pgtest.Connect(t, url), url
			if way != "directly" {
				reached = pgtest.PgBouncer(t, url, "transaction")
			}
			var wire cable
			killed := pgtest.Connect(t, reached, func(config *pgxpool.Config) { config.ConnConfig.DialFunc = wire.dial })
			newer := slow(t)
			if err := build(t, "create table {{.schema}}.slow (seconds int)").Migrate(t.Context(), direct, quiet()); err != nil {
				t.Fatal(err)
			}
			exec(t, direct, "insert into romancy.slow values (3600)")
			result := make(chan error, 1)
			go func() { result <- newer.Migrate(t.Context(), killed, quiet()) }()
			executing(t, direct, "pg_sleep")
			wire.sever()
			if err := <-result; err == nil {
				t.Fatal("the migration succeeded")
			}
			wantNoLocks(t, direct)
			wantVersion(t, direct, 2, 2)
			exec(t, direct, "delete from romancy.slow")
			if err := newer.Migrate(t.Context(), pgtest.Connect(t, reached), quiet()); err != nil {
				t.Fatal(err)
			}
			wantVersion(t, direct, 4, 4)
		})
	}
}

// What a migration sets would be there for whichever client has the server's connection next.
func TestNoSettingIsLeftBehindThePooler(t *testing.T) {
	t.Parallel()
	url := pgtest.EmptyURL(t)
	direct := pgtest.Connect(t, url)
	alterDatabase(t, direct, "search_path = nowhere")
	alterDatabase(t, direct, "statement_timeout = '33s'")
	pooled := pgtest.Connect(t, pgtest.PgBouncer(t, url, "transaction"))
	const settings = `select current_setting('search_path') || ' ' || current_setting('statement_timeout') || ' ' || current_setting('lock_timeout')`
	_, newer := indexes(t)
	if err := newer.Migrate(t.Context(), pooled, quiet()); err != nil {
		t.Fatal(err)
	}
	wantIndexes(t, direct)
	// Many at a time, to be given every connection that the pooler has.
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			conn, err := pgxpool.New(t.Context(), pooled.Config().ConnString()+"&default_query_exec_mode=exec")
			if err != nil {
				t.Error(err)
				return
			}
			defer conn.Close()
			var got string
			if err := conn.QueryRow(t.Context(), settings+", pg_sleep(0.2)").Scan(&got, nil); err != nil || got != "nowhere 33s 0" {
				t.Errorf("a session has the settings %q (%v)", got, err)
			}
		})
	}
	all.Wait()
}

// Behind a pooler no session is ours to take the limit away from.
func TestStatementTimeoutBehindAPoolerIsExplained(t *testing.T) {
	t.Parallel()
	pooled, direct := behindPooler(t)
	older, newer := indexes(t)
	if err := older.Migrate(t.Context(), pooled, quiet()); err != nil {
		t.Fatal(err)
	}
	alterDatabase(t, direct, "statement_timeout = '300ms'")
	release := oldSnapshot(t, direct)
	defer release()
	fresh := pgtest.Connect(t, pgtest.PgBouncer(t, direct.Config().ConnString(), "transaction"))
	err := newer.Migrate(t.Context(), fresh, quiet())
	wantError(t, err, "migration 002_test", "statement timeout", "statement_timeout of the role")
	release()
	if err := newer.Migrate(t.Context(), pgtest.Connect(t, direct.Config().ConnString()), quiet()); err != nil {
		t.Fatal(err)
	}
	wantIndexes(t, direct)
}

func TestMigrationBehindAPoolerInEveryMode(t *testing.T) {
	t.Parallel()
	for _, mode := range []string{"session", "transaction"} {
		t.Run(mode, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Connect(t, pgtest.PgBouncer(t, pgtest.EmptyURL(t), mode))
			if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
				t.Fatal(err)
			}
		})
	}
}
