package schema_test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/jackc/pgx/v5"

	"github.com/romancy-go/romancy/internal/pgtest"
	"github.com/romancy-go/romancy/internal/sqlfile"
)

var headings = regexp.MustCompile(`(?m)^-- name: (\w+)`)

// asWritten returns all statements of this library as they are in their files, by name.
func asWritten(t *testing.T) map[string]string {
	t.Helper()
	statements := map[string]string{}
	for _, pattern := range []string{"../../*/queries/*.sql", "../*/queries/*.sql", "../../*/internal/*/queries/*.sql"} {
		files, err := filepath.Glob(pattern)
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: no files (%v)", pattern, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			heads := headings.FindAllSubmatchIndex(text, -1)
			for i, head := range heads {
				end := len(text)
				if i+1 < len(heads) {
					end = heads[i+1][0]
				}
				name := file + ":" + string(text[head[2]:head[3]])
				statements[name] = strings.TrimSuffix(strings.TrimSpace(string(text[head[0]:end])), ";")
			}
		}
	}
	return statements
}

// planOf returns the plan of a statement with all its expressions.
func planOf(t *testing.T, conn *pgx.Conn, text string) string {
	t.Helper()
	ctx := t.Context()
	if _, err := conn.Exec(ctx, "prepare asked as "+text, pgx.QueryExecModeSimpleProtocol); err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	defer func() { _, _ = conn.Exec(ctx, "deallocate asked", pgx.QueryExecModeSimpleProtocol) }()
	var parameters int
	if err := conn.QueryRow(ctx, "select cardinality(parameter_types) from pg_prepared_statements where name = 'asked'").Scan(&parameters); err != nil {
		t.Fatal(err)
	}
	execute := "explain (verbose, costs off) execute asked"
	if parameters > 0 {
		execute += "(null" + strings.Repeat(", null", parameters-1) + ")"
	}
	rows, err := conn.Query(ctx, execute, pgx.QueryExecModeSimpleProtocol)
	if err != nil {
		t.Fatal(err)
	}
	lines, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		t.Fatalf("%s: %v", text, err)
	}
	lines = slices.DeleteFunc(lines, func(line string) bool { return strings.HasPrefix(line, "Query Identifier:") })
	return strings.Join(lines, "\n")
}

// What is pinned means what is written: the same plan with the same expressions.
func TestPinnedStatementsMeanWhatIsWritten(t *testing.T) {
	t.Parallel()
	pool := pgtest.Pool(t)
	conn, err := pool.Acquire(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Release()
	if _, err := conn.Exec(t.Context(), "set search_path = pg_catalog; set plan_cache_mode = force_generic_plan"); err != nil {
		t.Fatal(err)
	}
	for name, written := range asWritten(t) {
		pinned, err := sqlfile.Pin(written)
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if want, got := planOf(t, conn.Conn(), written), planOf(t, conn.Conn(), pinned); got != want {
			t.Errorf("%s: pinned it is\n%s\nand as written\n%s", name, got, want)
		}
	}
}
