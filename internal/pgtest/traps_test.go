package pgtest_test

import (
	"strings"
	"testing"

	"github.com/romancy-go/romancy/internal/pgtest"
)

// A statement that leaves out schemas is caught, by each kind of trap, and one that does not is not.
func TestTrapsAreSprung(t *testing.T) {
	t.Parallel()
	url := pgtest.TrapsURL(t)
	pool := pgtest.Connect(t, url)
	for statement, want := range map[string]string{
		"select * from unnest(array['a'])":              "unnest(text[])",
		"select now()":                                  "now()",
		"select count(*) from pg_catalog.pg_class":      "count(*)",
		"select 1 from pg_settings":                     "view pg_settings",
		"select 'a'::text":                              "type text",
		"select pg_catalog.now() > pg_catalog.now()":    ">",
		"select pg_catalog.now() in (pg_catalog.now())": "=",
	} {
		if _, err := pool.Exec(t.Context(), statement); err != nil {
			t.Errorf("%s: %v", statement, err)
		}
		if calls := strings.Join(pgtest.Sprung(t, url), "\n"); !strings.Contains(calls, want+" in "+statement) && !strings.Contains(calls, want+" timestamp with time zone in "+statement) {
			t.Errorf("%s has sprung no %s, but\n%s", statement, want, calls)
		}
	}
	const safe = "select pg_catalog.count(*) from pg_catalog.pg_class c where c.relname operator(pg_catalog.=) 'x'::pg_catalog.name"
	if _, err := pool.Exec(t.Context(), safe); err != nil {
		t.Error(err)
	}
	if calls := strings.Join(pgtest.Sprung(t, url), "\n"); strings.Contains(calls, safe) {
		t.Error(calls)
	}
}
