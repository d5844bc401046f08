package pgtest

import (
	"context"
	"crypto/rand"
	_ "embed"
	"fmt"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"
)

//go:embed traps.sql
var trapsSQL string

// TrapsURL returns the address of a fresh database without the library's schema in which everybody may create in public, as up to
// PostgreSQL 14 by default, and has: functions, operators, types, views, tables and a collation by the names of those that come
// with PostgreSQL, made by a role of no other rights. Sessions look in public first. The traps do as their namesakes do, and note
// their callers, see Sprung.
func TrapsURL(t testing.TB) string {
	t.Helper()
	url := EmptyURL(t)
	role := "trapper_" + strings.ToLower(rand.Text()[:12])
	inOne(t, url, "create role "+role+"; grant create on schema public to "+role)
	t.Cleanup(func() { inOne(t, url, "drop owned by "+role+" cascade; drop role "+role) })
	inOne(t, url, "set role "+role+";\nset search_path = pg_catalog;\n"+trapsSQL)
	inOne(t, url, "do $$ begin execute pg_catalog.format('alter database %I set search_path = public, pg_catalog', pg_catalog.current_database()); end $$")
	return url
}

// inOne carries out statements in a session of their own that looks for names in pg_catalog alone.
func inOne(t testing.TB, url, statements string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.PgConn().Exec(ctx, "set search_path = pg_catalog;"+statements).ReadAll(); err != nil {
		t.Fatalf("pgtest: traps: %v", err)
	}
}

// Sprung returns which traps were called, and by which statements.
func Sprung(t testing.TB, url string) (calls []string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, url)
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	defer func() { _ = conn.Close(ctx) }()
	if _, err := conn.Exec(ctx, "set search_path = pg_catalog"); err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	// An error of the query is reported by CollectRows.
	rows, _ := conn.Query(ctx, "select distinct application, what, left(query, 200) from public.sprung order by 3, 1, 2")
	type call struct{ Application, What, Query string }
	found, err := pgx.CollectRows(rows, pgx.RowToStructByPos[call])
	if err != nil {
		t.Fatalf("pgtest: %v", err)
	}
	for _, c := range found {
		calls = append(calls, fmt.Sprintf("%s: %s in %s", c.Application, c.What, c.Query))
	}
	return calls
}
