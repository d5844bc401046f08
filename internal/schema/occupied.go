package schema

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// shown bounds how much of what is in a schema an error names.
const shown = 5

// others finds what is in a schema beside a version table, as pg_depend knows it. Default privileges are no such thing.
const others = `select pg_describe_object(d.classid, d.objid, 0) from pg_depend d
	where d.refclassid = 'pg_namespace'::regclass and d.refobjid = (select oid from pg_namespace where nspname = $1::text)
		and d.deptype = 'n' and d.classid <> 'pg_default_acl'::regclass
		and not (d.classid = 'pg_class'::regclass and d.objid in (
			select c.oid from pg_class c where c.relnamespace = d.refobjid and c.relname = 'schema_version'))
	order by 1 limit $2::int4`

// checkVacant returns an error if there is anything in a schema in which nothing of ours has been made: it may have been put
// there for us to find.
func checkVacant(ctx context.Context, tx pgx.Tx, schema string) error {
	// An error of the query is reported by CollectRows.
	rows, _ := tx.Query(ctx, others, schema, shown+1)
	found, err := pgx.CollectRows(rows, pgx.RowTo[string])
	if err != nil {
		return fmt.Errorf("what is in the schema: %w", err)
	}
	if len(found) == 0 {
		return nil
	}
	if len(found) > shown {
		found[shown] = "..."
	}
	return fmt.Errorf("the schema is not empty (%s), and nothing of it is this library's: use another schema, or, if the tables may be "+
		"made beside what is there, give romancy.WithNonEmptySchema()", strings.Join(found, ", "))
}

// expectVacant is a statement for a script that fails under the same condition.
func expectVacant(schema string) string {
	text := strings.NewReplacer("$1::text", "'"+schema+"'", "$2::int4", "1").Replace(others)
	return fmt.Sprintf(`do $romancy$ begin
    if exists (%[2]s) then
        raise exception 'schema %[1]s is not empty: use another, or see WithNonEmptySchema';
    end if;
end $romancy$;`, schema, text)
}
