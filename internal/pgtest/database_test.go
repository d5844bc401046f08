package pgtest_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
)

func TestDatabasesAreIsolated(t *testing.T) {
	t.Parallel()
	first, second := pgtest.Pool(t), pgtest.Pool(t)
	if _, err := first.Exec(t.Context(), "create table only_here ()"); err != nil {
		t.Fatal(err)
	}
	var found bool
	err := second.QueryRow(t.Context(), "select exists (select from pg_class where relname = 'only_here')").Scan(&found)
	if err != nil {
		t.Fatal(err)
	}
	if found {
		t.Error("a table made in one test's database is visible in another's")
	}
}

func TestURLIsMigratedAndEmptyURLIsNot(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]bool{pgtest.URL(t): true, pgtest.EmptyURL(t): false} {
		conn, err := pgx.Connect(t.Context(), url)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = conn.Close(t.Context()) }()
		var found bool
		if err := conn.QueryRow(t.Context(), "select to_regclass('romancy.instances') is not null").Scan(&found); err != nil {
			t.Fatal(err)
		}
		if found != want {
			t.Errorf("schema found: %v, want %v", found, want)
		}
	}
}
