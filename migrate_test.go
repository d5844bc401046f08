package romancy

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/migrator"
	"github.com/romancy-go/romancy/internal/pgtest"
)

// A later build has migrated: this one starts in the middle of a rolling deploy, or after a rollback.
func TestStartOnANewerSchema(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		since    string
		starts   bool
		migrates bool
	}{
		"compatible":                 {"version", true, false},
		"compatible, auto-migrate":   {"version", true, true},
		"incompatible":               {"version + 1", false, false},
		"incompatible, auto-migrate": {"version + 1", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			pool := pgtest.Connect(t, pgtest.EmptyURL(t))
			if err := Migrate(t.Context(), pool); err != nil {
				t.Fatal(err)
			}
			if _, err := pool.Exec(t.Context(), "update romancy.schema_version set version = version + 1, compatible_since = "+c.since); err != nil {
				t.Fatal(err)
			}
			opts := []Option{WithPool(pool), WithWorkflows(echoFlow)}
			if c.migrates {
				opts = append(opts, WithAutoMigrate())
			}
			if !c.starts {
				wantSays(t, startError(t, opts...), "newer than version", "only builds that know version", "deploy a build at least as new")
				return
			}
			app := start(t, opts...)
			run, err := echoFlow.Start(t.Context(), app.Engine(), "hello")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := run.Result(t.Context()); err != nil || got != "hello" {
				t.Errorf("the result is %q (%v)", got, err)
			}
		})
	}
}

func TestConcurrentStartsBehindAPooler(t *testing.T) {
	t.Parallel()
	direct := pgtest.EmptyURL(t)
	pooled := pgtest.PgBouncer(t, direct, "transaction") + "&default_query_exec_mode=exec"
	apps := make([]*App, 4)
	errs := make([]error, len(apps))
	var all sync.WaitGroup
	for i := range apps {
		apps[i] = NewApp(WithDatabase(pooled), WithListenURL(direct), WithAutoMigrate(), WithWorkflows(echoFlow))
		all.Go(func() { errs[i] = apps[i].Start(t.Context()) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Error(err)
	}
	for i, app := range apps {
		if errs[i] == nil {
			shutdown(t, app)
		}
	}
	pool := pgtest.Connect(t, direct)
	var locks int
	if err := pool.QueryRow(t.Context(), "select count(*) from pg_locks where locktype = 'advisory' and database = (select oid from pg_database where datname = current_database())").
		Scan(&locks); err != nil || locks > 0 {
		t.Errorf("%d advisory locks are left (%v)", locks, err)
	}
}

func TestAutoMigrateSaysWhomItWaitsForToTheAppsLogger(t *testing.T) {
	t.Parallel()
	pool := pgtest.Connect(t, pgtest.EmptyURL(t))
	tx, err := pool.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = tx.Rollback(context.WithoutCancel(t.Context())) }()
	if _, err := tx.Exec(t.Context(), fmt.Sprintf("select pg_advisory_xact_lock(%d)", migrator.LockKey(DefaultSchema))); err != nil {
		t.Fatal(err)
	}
	log := &logBuffer{}
	app := NewApp(WithPool(pool), WithAutoMigrate(), WithWorkflows(echoFlow), WithLogger(log.logger()))
	started := make(chan error, 1)
	go func() { started <- app.Start(t.Context()) }()
	eventually(t, "the wait is said", func() bool {
		text := log.String()
		return strings.Contains(text, "waiting for another migration") && strings.Contains(text, fmt.Sprintf("pid=%d", tx.Conn().PgConn().PID()))
	})
	if err := tx.Rollback(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	shutdown(t, app)
}

// definitions lists what the schema's tables, views, indexes and functions are made of.
func definitions(t *testing.T, pool *pgxpool.Pool, schema string) []string {
	t.Helper()
	rows, err := pool.Query(t.Context(), `select c.relkind::text || ' ' || c.relname || ' ' || a.attname || ' ' || format_type(a.atttypid, a.atttypmod) || ' ' || a.attnotnull
			|| coalesce(' ' || pg_get_expr(d.adbin, d.adrelid), '')
		from pg_class c join pg_attribute a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
		left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum where c.relnamespace = $1::text::regnamespace
		union all select pg_get_constraintdef(oid) || ' of ' || conrelid::regclass from pg_constraint where connamespace = $1::text::regnamespace
		union all select pg_get_functiondef(oid) from pg_proc where pronamespace = $1::text::regnamespace
		order by 1`, schema)
	if err != nil {
		t.Fatal(err)
	}
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// concurrently is a statement that psql sends by itself, because no transaction can have it.
var concurrently = regexp.MustCompile(`(?m)^(create|drop) index concurrently [^;]*;`)

// runScript executes what psql would.
func runScript(t *testing.T, pool *pgxpool.Pool, script string) {
	t.Helper()
	var parts []string
	rest := 0
	for _, at := range concurrently.FindAllStringIndex(script, -1) {
		parts = append(parts, script[rest:at[0]], script[at[0]:at[1]])
		rest = at[1]
	}
	for _, part := range append(parts, script[rest:]) {
		if _, err := pool.Exec(t.Context(), part); err != nil {
			t.Fatalf("%v in\n%s", err, part)
		}
	}
}

func TestMigrationSQLDoesWhatMigrateDoes(t *testing.T) {
	t.Parallel()
	const name = "orders_1"
	migrated, byHand := pgtest.Connect(t, pgtest.EmptyURL(t)), pgtest.Connect(t, pgtest.EmptyURL(t))
	plan, err := PlanMigration(t.Context(), migrated, WithSchema(name))
	if err != nil {
		t.Fatal(err)
	}
	if plan.Found != (MigrationState{}) || plan.Schema != name {
		t.Errorf("found %+v in %q", plan.Found, plan.Schema)
	}
	sql, err := MigrationSQL(MigrationState{}, WithSchema(name))
	if err != nil {
		t.Fatal(err)
	}
	if planned := plan.SQL(); planned != sql {
		t.Errorf("for an empty database the plan is\n%s\nwithout one it is\n%s", planned, sql)
	}
	if err := Migrate(t.Context(), migrated, WithSchema(name)); err != nil {
		t.Fatal(err)
	}
	runScript(t, byHand, sql)
	if got, want := definitions(t, byHand, name), definitions(t, migrated, name); !slices.Equal(got, want) {
		t.Errorf("by hand:\n%s\nby Migrate:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	for _, pool := range []*pgxpool.Pool{byHand, migrated} {
		plan, err := PlanMigration(t.Context(), pool, WithSchema(name))
		if err != nil || len(plan.Steps) > 0 || plan.SQL() != "" {
			t.Errorf("afterwards there is %v to do (%v)", plan, err)
		}
	}
	start(t, WithPool(byHand), WithSchema(name), WithWorkflows(echoFlow)) // without WithAutoMigrate
}

func TestMigrationSQLRefusesWhatItCannotBeginAt(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		from MigrationState
		opts []MigrateOption
		says string
	}{
		"a newer version": {MigrationState{Version: 9999}, nil, "no migration from version 9999"},
		"a bad schema":    {MigrationState{}, []MigrateOption{WithSchema("Bad Name")}, "Bad Name"},
	} {
		_, err := MigrationSQL(c.from, c.opts...)
		if err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v, want %q", name, err, c.says)
		}
	}
}
