package schema_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/schema"
)

// build returns a build with migrations of the given texts.
func build(t *testing.T, texts ...string) schema.Build {
	t.Helper()
	directory := fstest.MapFS{}
	for i, text := range texts {
		directory[fmt.Sprintf("%03d_test.sql", i+1)] = &fstest.MapFile{Data: []byte(text)}
	}
	b, err := schema.NewBuild(directory)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// journal is a log that can be read while it is written.
type journal struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (j *journal) Write(p []byte) (int, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.Write(p)
}

func (j *journal) String() string {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.text.String()
}

func (j *journal) logger() *slog.Logger { return slog.New(slog.NewTextHandler(j, nil)) }

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

// eventually fails the test when condition stays false.
func eventually(t *testing.T, what string, condition func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !condition(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("it never came about that %s", what)
		}
	}
}

func ask[T any](t *testing.T, pool *pgxpool.Pool, query string, args ...any) (answer T) {
	t.Helper()
	if err := pool.QueryRow(t.Context(), query, args...).Scan(&answer); err != nil {
		t.Fatalf("%s: %v", query, err)
	}
	return answer
}

// executing waits for a migration's backend to execute a statement that contains text, and returns its process id.
func executing(t *testing.T, pool *pgxpool.Pool, text string) (pid int32) {
	t.Helper()
	eventually(t, "a migration executes "+text, func() bool {
		return pool.QueryRow(t.Context(), `select pid from pg_stat_activity where datname = current_database() and state = 'active'
			and application_name like '% migrate' and query ilike '%' || $1 || '%'`, text).Scan(&pid) == nil
	})
	return pid
}

// wantNoLocks fails the test unless all advisory locks are soon released.
func wantNoLocks(t *testing.T, pool *pgxpool.Pool) {
	t.Helper()
	eventually(t, "no advisory lock is held", func() bool {
		return ask[int](t, pool, `select count(*) from pg_locks
			where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())`) == 0
	})
}

func wantVersion(t *testing.T, pool *pgxpool.Pool, version, compatible int32) {
	t.Helper()
	got := ask[string](t, pool, "select version || ' since ' || compatible_since from romancy.schema_version")
	if want := fmt.Sprintf("%d since %d", version, compatible); got != want {
		t.Errorf("the version is %s, want %s", got, want)
	}
}

func wantError(t *testing.T, err error, says ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("no error, want one that says %q", says)
		return
	}
	for _, say := range says {
		if !strings.Contains(err.Error(), say) {
			t.Errorf("the error %q does not say %q", err, say)
		}
	}
}
