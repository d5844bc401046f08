package sqlfile_test

import (
	"strings"
	"testing"

	"github.com/romancy-go/romancy/internal/sqlfile"
)

func TestPin(t *testing.T) {
	t.Parallel()
	eq := "operator(pg_catalog.=)"
	for query, want := range map[string]string{
		// Functions, and what only looks like one.
		"select now()":                                  "select pg_catalog.now()",
		"select count(*) from s.t":                      "select pg_catalog.count(*) from s.t",
		"select coalesce(max(a), 0)":                    "select coalesce(pg_catalog.max(a), 0)",
		"select pg_catalog.now(), s.f(min(a))":          "select pg_catalog.now(), s.f(pg_catalog.min(a))",
		"select exists (select 1), array(select now())": "select exists (select 1), array(select pg_catalog.now())",
		"insert into s.t (a, b) values (now(), $1) on conflict (a) do nothing returning a":  "insert into s.t (a, b) values (pg_catalog.now(), $1) on conflict (a) do nothing returning a",
		"select left(a, 1) from s.t left join s.u on true":                                  "select pg_catalog.left(a, 1) from s.t left join s.u on true",
		"select sum(a) filter (where b) over (partition by c order by min(d)) - e from s.t": "select pg_catalog.sum(a) filter (where b) over (partition by c order by pg_catalog.min(d)) operator(pg_catalog.-) e from s.t",
		"select extract(epoch from now() - a)":                                              "select extract(epoch from pg_catalog.now() operator(pg_catalog.-) a)",
		// Of several arrays the grammar makes calls with a schema; it would not know the name with one.
		"select * from unnest($1::text[]) as a (b)":                                 "select * from pg_catalog.unnest($1::pg_catalog.text[]) as a (b)",
		"select * from unnest($1::text[], array[1, 2]) with ordinality a (b, c, d)": "select * from unnest($1::pg_catalog.text[], array[1, 2]) with ordinality a (b, c, d)",
		"select jsonb_path_exists(a, b, silent => c = d)":                           "select pg_catalog.jsonb_path_exists(a, b, silent => c " + eq + " d)",
		// Operators, as they bound before.
		"select a = b + 1":                                  "select a " + eq + " (b operator(pg_catalog.+) 1)",
		"select a + b * c - d":                              "select (a operator(pg_catalog.+) (b operator(pg_catalog.*) c)) operator(pg_catalog.-) d",
		"select a || b || '' = c":                           "select ((a operator(pg_catalog.||) b) operator(pg_catalog.||) '') " + eq + " c",
		"select a = b || c":                                 "select a " + eq + " (b operator(pg_catalog.||) c)",
		"select a -> 'x' ->> 'y' <> b":                      "select ((a operator(pg_catalog.->) 'x') operator(pg_catalog.->>) 'y') operator(pg_catalog.<>) b",
		"select not a = b and c is null":                    "select not a " + eq + " b and c is null",
		"select (a, b) > ($1, $2)":                          "select (a, b) operator(pg_catalog.>) ($1, $2)",
		"select a = any ($1::bigint[])":                     "select a " + eq + " any ($1::bigint[])",
		"select -1, a - -1, -b":                             "select -1, a operator(pg_catalog.-) -1, operator(pg_catalog.-) b",
		"select a /* b = c */ = 'd = e' -- f = g":           "select a /* b = c */ " + eq + " 'd = e' -- f = g",
		"select a operator(pg_catalog.=) (b + 1)":           "select a operator(pg_catalog.=) (b operator(pg_catalog.+) 1)",
		"select case when a = 1 then b else c + 1 end as d": "select case when a " + eq + " 1 then b else c operator(pg_catalog.+) 1 end as d",
		// What has an operator in it.
		"select a in ('b', 'c'), d not in ($1)":  "select a " + eq + " any (array['b', 'c']), d operator(pg_catalog.<>) all (array[$1])",
		"select a not in (select b from s.t)":    "select (not a " + eq + " any (select b from s.t))",
		"select a || b in (c) from s.t":          "select (a operator(pg_catalog.||) b) " + eq + " any (array[c]) from s.t",
		"select a like 'b%' and c not like d||e": "select a operator(pg_catalog.~~) 'b%' and c operator(pg_catalog.!~~) (d operator(pg_catalog.||)e)",
		// The sign of SET is none.
		"update s.t set a = b = c, (d, e) = (select 1, 2), f = now() from s.u where t.g = u.g":           "update s.t set a = b " + eq + " c, (d, e) = (select 1, 2), f = pg_catalog.now() from s.u where t.g " + eq + " u.g",
		"insert into s.t as x (a) values (1) on conflict (a) do update set a = excluded.a where x.a < 1": "insert into s.t as x (a) values (1) on conflict (a) do update set a = excluded.a where x.a operator(pg_catalog.<) 1",
		// Types, collations, relations.
		"select $1::text, ($2::jsonb[])[1], interval '1 s', timestamptz '2026-01-01', a::oid::bigint": "select $1::pg_catalog.text, ($2::pg_catalog.jsonb[])[1], interval '1 s', pg_catalog.timestamptz '2026-01-01', a::pg_catalog.oid::bigint",
		`select a collate "C" > b`: `select a collate pg_catalog."C" operator(pg_catalog.>) b`,
		"with recursive a (b) as (select 1), c as materialized (select 2) select * from a, c join pg_locks l on true": "with recursive a (b) as (select 1), c as materialized (select 2) select * from a, c join pg_catalog.pg_locks l on true",
		"create index concurrently if not exists i on s.t ((a || ''), (b + 0)) where c = 'd'":                         "create index concurrently if not exists i on s.t ((a operator(pg_catalog.||) ''), (b operator(pg_catalog.+) 0)) where c " + eq + " 'd'",
	} {
		got, err := sqlfile.Pin(query)
		if err != nil || got != want {
			t.Errorf("%s\n\tbecomes %s (%v)\n\twant    %s", query, got, err, want)
		}
		if again, err := sqlfile.Pin(got); err != nil || again != got {
			t.Errorf("%s\n\tonce more becomes %s (%v)", got, again, err)
		}
	}
}

func TestPinRefusesWhatItDoesNotKnow(t *testing.T) {
	t.Parallel()
	for query, want := range map[string]string{
		"select magic(1)":                         "function magic is not known",
		`select "now"()`:                          `function "now" is not known`,
		"select nullif(a, b)":                     "function nullif is not known",
		"select a::hstore":                        "type hstore is not known",
		`select a collate "de_DE"`:                `collation "de_DE" is not known`,
		"select 1 from instances":                 "relation instances has no schema",
		"delete from s.t using outbox where true": "relation outbox has no schema",
		"select a is distinct from b":             "IS DISTINCT FROM",
		"select a is not distinct from b":         "IS DISTINCT FROM",
		"select a between 1 and 2":                "between uses an operator",
		"select case a when 1 then 2 end":         "CASE with an operand",
		"select 1 from s.t join s.u using (a)":    "using joins",
		"select 1 from s.t natural join s.u":      "natural joins",
		"select (1":                               `no ")"`,
		"select 1 +":                              "ends too early",
		"select a + from s.t":                     `"from" where an expression is expected`,
		"select 'open":                            "no SQL that is known",
		"update s.t set a":                        "ends too early",
	} {
		if got, err := sqlfile.Pin(query); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s becomes %q (%v), want an error that says %q", query, got, err, want)
		}
	}
}

func TestMustPinPanicsWithTheStatement(t *testing.T) {
	t.Parallel()
	defer func() {
		if message, ok := recover().(string); !ok || !strings.Contains(message, "magic is not known") || !strings.Contains(message, "select magic()") {
			t.Errorf("recovered %v, want what is wrong with which statement", message)
		}
	}()
	sqlfile.MustPin("select magic()")
}
