package schema_test

import (
	"fmt"
	"testing"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/rivertables"
	"github.com/romancy-go/romancy/internal/schema"
)

// elsewhere are the objects of schema romancy that mean something in another schema than their own and pg_catalog.
const elsewhere = `select pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid) || ' means ' || pg_catalog.pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
	from (select classid, objid, objsubid, refclassid, refobjid, refobjsubid from pg_depend where classid <> 0 offset 0) d, pg_identify_object(d.classid, d.objid, d.objsubid) o, pg_identify_object(d.refclassid, d.refobjid, d.refobjsubid) r
	where r.schema = 'public' and (o.schema = 'romancy' or o.identity like '%romancy.%')`

// Whoever may create in public has made what looks like the names that migrations use: nothing of it is called, and nothing that
// migrations make means it.
func TestMigrationsSpringNoTraps(t *testing.T) {
	t.Parallel()
	for how, migrate := range map[string]func(t *testing.T, pool *pgxpool.Pool) error{
		"Migrate": func(t *testing.T, pool *pgxpool.Pool) error {
			if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
				return err
			}
			return rivertables.Migrate(t.Context(), pool, schema.Default, quiet())
		},
		"behind a pooler": func(t *testing.T, pool *pgxpool.Pool) error {
			pooled := pgtest.Connect(t, pgtest.PgBouncer(t, pool.Config().ConnString(), "transaction"))
			if err := schema.Migrate(t.Context(), pooled, schema.Default); err != nil {
				return err
			}
			return rivertables.Migrate(t.Context(), pooled, schema.Default, quiet())
		},
		"scripts": func(t *testing.T, pool *pgxpool.Pool) error {
			planned, err := schema.Scripts(schema.Default, 0, schema.Options{})
			if err != nil {
				return err
			}
			river, err := rivertables.Plan(schema.Default, 0)
			if err != nil {
				return err
			}
			for _, p := range append(planned, river...) {
				if err := byPsql(t, pool, p.SQL); err != nil {
					return fmt.Errorf("%s: %w", p.Name, err)
				}
			}
			return nil
		},
	} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			url := pgtest.TrapsURL(t)
			pool := pgtest.Connect(t, url)
			if err := migrate(t, pool); err != nil {
				t.Fatal(err)
			}
			// Once more there is nothing to do, which is also found out by statements.
			if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
				t.Error(err)
			}
			for what, ask := range map[string]func() error{
				"check": func() error { return schema.Check(t.Context(), pool, schema.Default) },
				"river": func() error { return rivertables.Check(t.Context(), pool, schema.Default) },
				"grants": func() error {
					return schema.CheckGrants(t.Context(), pool, schema.Default, schema.Execute, schema.Relay)
				},
				"plan": func() error {
					_, _, err := schema.Plan(t.Context(), pool, schema.Default, schema.Options{})
					return err
				},
			} {
				if err := ask(); err != nil {
					t.Errorf("%s: %v", what, err)
				}
			}
			for _, call := range pgtest.Sprung(t, url) {
				t.Errorf("called: %s", call)
			}
			wantNothingElsewhere(t, url)
		})
	}
}

// byPsql carries out a script statement by statement, as psql does.
func byPsql(t *testing.T, pool *pgxpool.Pool, script string) error {
	t.Helper()
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		return err
	}
	defer conn.Release()
	for _, statement := range schema.Split(script) {
		if _, err := conn.Conn().PgConn().Exec(t.Context(), statement).ReadAll(); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

func wantNothingElsewhere(t *testing.T, url string) {
	t.Helper()
	conn, err := pgx.Connect(t.Context(), url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close(t.Context()) }()
	if _, err := conn.Exec(t.Context(), "set search_path = pg_catalog"); err != nil {
		t.Fatal(err)
	}
	// An error of the query is reported by CollectRows.
	rows, _ := conn.Query(t.Context(), elsewhere)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatal(err)
	}
	for _, each := range found {
		t.Error(each)
	}
}

// The functions that migrations leave behind are called in sessions of others.
func TestFunctionsOfOursHaveASearchPath(t *testing.T) {
	t.Parallel()
	url := pgtest.TrapsURL(t)
	pool := pgtest.Connect(t, url)
	if err := schema.Migrate(t.Context(), pool, schema.Default); err != nil {
		t.Fatal(err)
	}
	var id string
	if err := pool.QueryRow(t.Context(), "select romancy.heir($1::pg_catalog.text)", "nobody").Scan(&id); err != nil || id != "nobody" {
		t.Errorf("the heir of nobody is %q (%v)", id, err)
	}
	for _, call := range pgtest.Sprung(t, url) {
		t.Errorf("called: %s", call)
	}
	var without []string
	if err := pool.QueryRow(t.Context(), `select array(select p.proname::pg_catalog.text from pg_catalog.pg_proc p
		where p.pronamespace operator(pg_catalog.=) 'romancy'::pg_catalog.regnamespace and p.proconfig is null)`).Scan(&without); err != nil || len(without) > 0 {
		t.Errorf("%v have none (%v)", without, err)
	}
}
