package schema_test

import (
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/schema"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

// A word that the server does not take for the name of a schema is refused before it is asked, and no other word of SQL is.
func TestReservedWordsAreNoSchemas(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	rows, err := pool.Query(t.Context(), "select word, catcode::text from pg_get_keywords()")
	if err != nil {
		t.Fatal(err)
	}
	type keyword struct{ Word, Code string }
	words, err := pgx.CollectRows(rows, pgx.RowToStructByPos[keyword])
	if err != nil || len(words) < 400 {
		t.Fatalf("%d words, %v", len(words), err)
	}
	names := 0 // that are words which mean something elsewhere
	for _, word := range words {
		_, refused := pool.Exec(t.Context(), "create schema "+word.Word+"; create table "+word.Word+".t (id int); drop schema "+word.Word+" cascade")
		err := sqlfile.CheckSchema(word.Word)
		if (err != nil) != (refused != nil) {
			t.Errorf("%s: %v, the server says %v", word.Word, err, refused)
		}
		if err == nil && word.Code == "C" {
			if names++; names%10 == 0 {
				if err := schema.Migrate(t.Context(), pool, word.Word); err != nil {
					t.Errorf("%s: %v", word.Word, err)
				}
			}
		}
	}
	for _, name := range []string{"pg_x", "pg_catalog", "information_schema"} {
		if err := sqlfile.CheckSchema(name); err == nil {
			t.Errorf("%s is accepted", name)
		}
	}
}
