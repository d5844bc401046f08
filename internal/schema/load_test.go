package schema_test

import (
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/romancy-go/romancy/internal/schema"
)

func TestMistakesInMigrationsAreFound(t *testing.T) {
	t.Parallel()
	const text = "create table {{.schema}}.t ();"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"none":                      {nil, "no migrations"},
		"a gap":                     {map[string]string{"001_a.sql": text, "003_c.sql": text}, "the number 002 comes next"},
		"a number given twice":      {map[string]string{"001_a.sql": text, "001_b.sql": text}, "none is given twice"},
		"a first number of 2":       {map[string]string{"002_b.sql": text}, "the number 001 comes next"},
		"a name without a number":   {map[string]string{"runs.sql": text}, "name it like 001_runs.sql"},
		"nothing in it":             {map[string]string{"001_a.sql": "-- create table t ();\n"}, "no statement"},
		"another template":          {map[string]string{"001_a.sql": "create table {{.name}}.t ();"}, "template"},
		"a marker misspelt":         {map[string]string{"001_a.sql": "-- compatible with: 1\n" + text}, "write '-- compatible since"},
		"another transaction":       {map[string]string{"001_a.sql": "-- Transaction: None\n" + text}, "write '-- compatible since"},
		"a version that is to come": {map[string]string{"001_a.sql": "-- compatible since: 2\n" + text}, "from 1 to 1"},
		"no version":                {map[string]string{"001_a.sql": "-- compatible since: long\n" + text}, "from 1 to 1"},
		"what cannot be repeated":   {map[string]string{"001_a.sql": "-- transaction: none\n" + text}, "cannot be executed again"},
		"an index without the name's check": {
			map[string]string{"001_a.sql": "-- transaction: none\ncreate index concurrently i on {{.schema}}.t (a);"}, "cannot be executed again",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			directory := fstest.MapFS{}
			for file, text := range c.files {
				directory[file] = &fstest.MapFile{Data: []byte(text)}
			}
			_, err := schema.NewBuild(directory)
			wantError(t, err, c.want)
		})
	}
}

func TestStatementsAreSplit(t *testing.T) {
	t.Parallel()
	got := schema.Split(`-- one; not a statement
create index a on t (x) where y = 'a;''b' ; /* ; */ create index ";" on t (z);
do $$ begin; end $$; do $x$ $$;$$ $x$;
select 1 -- ; the last
;;`)
	want := []string{
		`create index a on t (x) where y = 'a;''b'`, `create index ";" on t (z)`, "do $$ begin; end $$", "do $x$ $$;$$ $x$", "select 1",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
