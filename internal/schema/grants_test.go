package schema_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// statements are the queries that a need consists of: all of a directory, or those of it that are named.
type statements struct {
	dir    string
	only   []string
	except []string
}

const storeQueries = "../../workflow/internal/store/queries"

var statementsOf = map[schema.Need][]statements{
	schema.Client: {{dir: storeQueries, only: []string{
		"StartRun", "StartRuns", "StartLater", "FindRuns", "DeliverMessages", "DeliverDirect", "SendEvents", "CancelRun",
		"RetryRun", "DiscardUnreceived", "FindErasable", "EraseRecords", "EraseMail", "EraseRuns", "GetInterruptions", "LoadHistory", "LoadAttempts", "GetRun", "GetHistory", "GetAttempts", "ListRuns", "LimitTime", "CheckPath", "DeliverToMore",
		"Guard", "GuardSession",
	}}},
	schema.Execute:   {{dir: storeQueries}},
	schema.Write:     {{dir: "../../outbox/queries", only: []string{"AddEvents", "AddEventsAndNotify"}}},
	schema.Relay:     {{dir: "../../outbox/queries", except: []string{"AddEvents", "AddEventsAndNotify"}}},
	schema.Subscribe: {{dir: "../../bus/queries"}},
	schema.Read: {
		{dir: storeQueries, only: []string{
			"GetRun", "GetHistory", "GetAttempts", "GetInterruptions", "ListRuns", "LimitTime", "CheckPath", "FindRuns", "FindUnexecuted", "CountReady", "Guard", "GuardSession",
		}},
		{dir: "../../outbox/queries", only: []string{"Stats", "DeadLetters", "Guard"}},
	},
}

func loadAll(t *testing.T, sets []statements) sqlfile.Queries {
	t.Helper()
	all := sqlfile.Queries{}
	for _, set := range sets {
		maps.Copy(all, set.load(t))
	}
	return all
}

func (s statements) load(t *testing.T) sqlfile.Queries {
	t.Helper()
	queries, err := sqlfile.Load(os.DirFS(s.dir), ".", schema.Default)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range s.only {
		queries.Get(name) // panics if the name is of the past
	}
	maps.DeleteFunc(queries, func(name, _ string) bool {
		return slices.Contains(s.except, name) || len(s.only) > 0 && !slices.Contains(s.only, name)
	})
	return queries
}

var parameter = regexp.MustCompile(`\$(\d+)`)

// explain has the server check what text needs, without executing it.
func explain(ctx context.Context, conn *pgx.Conn, text string) error {
	most := 0
	for _, match := range parameter.FindAllStringSubmatch(text, -1) {
		n, err := strconv.Atoi(match[1])
		if err != nil {
			return err
		}
		most = max(most, n)
	}
	execute := "explain execute asked"
	if most > 0 {
		execute += "(null" + strings.Repeat(", null", most-1) + ")"
	}
	_, err := conn.Exec(ctx, "begin; set local plan_cache_mode = force_generic_plan; prepare asked as "+text+"; "+execute, pgx.QueryExecModeSimpleProtocol)
	_, end := conn.Exec(ctx, "rollback", pgx.QueryExecModeSimpleProtocol)
	_, _ = conn.Exec(ctx, "deallocate asked", pgx.QueryExecModeSimpleProtocol) // it may not have come to be
	return errors.Join(err, end)
}

// newRole makes a role with exactly these privileges, and returns a connection that acts as it.
func newRole(t *testing.T, pool *pgxpool.Pool, name string, privileges []schema.Privilege) *pgx.Conn {
	t.Helper()
	exec(t, pool, "create role "+name)
	t.Cleanup(func() {
		if _, err := pool.Exec(context.WithoutCancel(t.Context()), "drop owned by "+name+"; drop role "+name); err != nil {
			t.Error(err)
		}
	})
	for _, statement := range schema.GrantStatements(schema.Default, name, privileges) {
		exec(t, pool, statement)
	}
	conn, err := pgx.ConnectConfig(t.Context(), pool.Config().ConnConfig)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close(context.WithoutCancel(t.Context())) })
	if _, err := conn.Exec(t.Context(), "set role "+name); err != nil {
		t.Fatal(err)
	}
	return conn
}

// What is listed is enough for every statement, and nothing of it could be left out.
func TestWhatIsListedIsExactlyWhatTheStatementsNeed(t *testing.T) {
	t.Parallel()
	for need, of := range statementsOf {
		t.Run(fmt.Sprint(need), func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Pool(t)
			exec(t, pool, "revoke execute on all functions in schema romancy from public")
			queries := loadAll(t, of)
			privileges := schema.Privileges(need)
			role := roleName(pool)
			conn := newRole(t, pool, role, privileges)
			for name, text := range queries {
				if err := explain(t.Context(), conn, text); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if t.Failed() {
				return
			}
			for _, p := range privileges {
				if p.Object == "" || p.Object == "schema_version" {
					continue // of Check
				}
				grant := schema.GrantStatements(schema.Default, role, []schema.Privilege{p})[0]
				exec(t, pool, strings.Replace(strings.Replace(grant, "grant ", "revoke ", 1), " to ", " from ", 1))
				missed := false
				for _, text := range queries {
					missed = missed || explain(t.Context(), conn, text) != nil
				}
				if !missed {
					t.Errorf("nothing needs %v", p)
				}
				exec(t, pool, grant)
			}
		})
	}
}

// Who may add events may not write what relays go by: by a highest id, or the most attempts, one row would stop them all.
func TestWhoAddsEventsWritesNothingOfTheRelays(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	conn := newRole(t, pool, roleName(pool), schema.Privileges(schema.Write))
	const event, values = "event_id, topic, key, slot, payload, headers", "'e', 't', 'k', 0, '', null"
	if _, err := conn.Exec(t.Context(), "insert into romancy.outbox ("+event+") values ("+values+")"); err != nil {
		t.Errorf("an event: %v", err)
	}
	for column, value := range map[string]string{
		"id": "9223372036854775807", "attempts": "2147483647", "taken": "1", "next_at": "'infinity'", "last_error": "''", "dead_at": "'infinity'", "created_at": "'-infinity'",
	} {
		_, err := conn.Exec(t.Context(), "insert into romancy.outbox ("+event+", "+column+") overriding system value values ("+values+", "+value+")")
		if refused := (*pgconn.PgError)(nil); !errors.As(err, &refused) || refused.Code != "42501" {
			t.Errorf("with %s: %v, want permission denied", column, err)
		}
	}
}

// roleName is one of this database's own: roles are the cluster's.
func roleName(pool *pgxpool.Pool) string { return pool.Config().ConnConfig.Database + "_role" }
