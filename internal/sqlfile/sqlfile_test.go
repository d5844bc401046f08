package sqlfile_test

import (
	"io/fs"
	"maps"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"go.uber.org/goleak"

	"github.com/romancy-go/romancy/internal/sqlfile"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func files(texts map[string]string) fs.FS {
	fsys := fstest.MapFS{}
	for path, text := range texts {
		fsys[path] = &fstest.MapFile{Data: []byte(text)}
	}
	return fsys
}

func TestLoadKeepsTheHeadingAndQualifies(t *testing.T) {
	t.Parallel()
	queries, err := sqlfile.Load(files(map[string]string{
		"queries/a.sql": "\n-- name: One\nselect romancy.instances.id from romancy.instances;\n\n-- name: Two  \nselect 'a;b' -- tail\n;\n",
		"queries/b.sql": "-- name: Three\n-- why\nselect 1\n",
		"queries/c.txt": "not SQL",
		"other/d.sql":   "-- name: Elsewhere\nselect 1",
	}), "queries", "mine")
	if err != nil {
		t.Fatal(err)
	}
	want := sqlfile.Queries{
		"One":   "-- name: One\nselect mine.instances.id from mine.instances",
		"Two":   "-- name: Two  \nselect 'a;b' -- tail\n",
		"Three": "-- name: Three\n-- why\nselect 1",
	}
	if !maps.Equal(queries, want) {
		t.Errorf("got %q, want %q", queries, want)
	}
	if got := queries.Get("Three"); got != want["Three"] {
		t.Errorf("Get returns %q", got)
	}
}

func TestQualify(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"select * from romancy.instances i join romancy.history h": "select * from s2.instances i join s2.history h",
		"select xromancy.a, romancy_x.b, romancy":                  "select xromancy.a, romancy_x.b, romancy",
		"insert into romancy.outbox_slots(a) values ('x')":         "insert into s2.outbox_slots(a) values ('x')",
	} {
		if got := sqlfile.Qualify(query, "s2"); got != want {
			t.Errorf("%q becomes %q, want %q", query, got, want)
		}
	}
}

func TestMistakesInFiles(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		texts map[string]string
		want  string
	}{
		"no file":             {map[string]string{"q/readme": ""}, "no .sql file in q"},
		"no heading":          {map[string]string{"q/a.sql": "select 1"}, "q/a.sql: no '-- name:' heading"},
		"text before heading": {map[string]string{"q/a.sql": "select 1;\n-- name: A\nselect 2"}, "q/a.sql: text before"},
		"a name twice":        {map[string]string{"q/a.sql": "-- name: A\nselect 1", "q/b.sql": "-- name: A\nselect 2"}, "query A is defined twice"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if _, err := sqlfile.Load(files(c.texts), "q", "romancy"); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

func TestGetPanicsWithTheMissingName(t *testing.T) {
	t.Parallel()
	defer func() {
		if message, ok := recover().(string); !ok || !strings.Contains(message, "Missing") {
			t.Errorf("recovered %v, want the query's name", message)
		}
	}()
	sqlfile.Queries{}.Get("Missing")
}

func TestCheckSchema(t *testing.T) {
	t.Parallel()
	longest := strings.Repeat("x", sqlfile.MaxSchemaLength)
	if channel := longest + "_workflow_resumable"; len(channel) != 63 {
		t.Errorf("the longest schema makes a channel name of %d bytes, want 63", len(channel))
	}
	for _, name := range []string{"romancy", "_", "a1_b2", longest} {
		if err := sqlfile.CheckSchema(name); err != nil {
			t.Errorf("%q is refused: %v", name, err)
		}
	}
	for _, name := range []string{"", "Upper", "a-b", "a.b", "a b", "1a", `a"b`, "a\n", "a;drop", "é", longest + "x", "user", "order", "pg_x"} {
		if err := sqlfile.CheckSchema(name); err == nil {
			t.Errorf("%q is accepted", name)
		}
		if _, err := sqlfile.Load(files(map[string]string{"q/a.sql": "-- name: A\nselect 1"}), "q", name); err == nil {
			t.Errorf("Load accepts %q", name)
		}
	}
}

// Whatever is in a file, loading it never panics, and what it returns begins with its heading.
func FuzzLoad(f *testing.F) {
	f.Add("-- name: A\nselect 1;\n-- name: B\nselect romancy.x")
	f.Add("-- name: A")
	f.Add("select 1")
	f.Add("-- name: A\nwith a (b) as (select 'x'::text in ('y', $1) or -c = any (d[1]) from unnest($2, $3) as e (f)) update g.h set i = case when j then k end where not l")
	f.Fuzz(func(t *testing.T, text string) {
		queries, err := sqlfile.Load(files(map[string]string{"q/a.sql": text}), "q", "romancy")
		if err != nil {
			return
		}
		for _, name := range slices.Sorted(maps.Keys(queries)) {
			query := queries.Get(name)
			if !strings.HasPrefix(query, "-- name: "+name) {
				t.Errorf("query %q does not begin with its heading", query)
			}
		}
	})
}
