package migrator

import (
	"context"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5"
)

// CheckOwner reports whether schema exists, and returns an error if it belongs to a role of which the current one is no member.
// Somebody who made it first could have put anything there, and could replace our tables by others.
func CheckOwner(ctx context.Context, tx pgx.Tx, schema string) (exists bool, err error) {
	var owner, role string
	var member bool
	err = tx.QueryRow(ctx, `select pg_get_userbyid(nspowner)::text, current_user::text, pg_has_role(nspowner, 'member')
		from pg_namespace where nspname = $1::text`, schema).Scan(&owner, &role, &member)
	switch {
	case errors.Is(err, pgx.ErrNoRows):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("who owns the schema: %w", err)
	case !member:
		return true, fmt.Errorf("the schema belongs to role %q, of which role %q is no member, so others may change what is in it: "+
			"migrate as its owner, have it given to your role (alter schema %s owner to %s), or use another schema",
			owner, role, schema, pgx.Identifier{role}.Sanitize())
	}
	return true, nil
}

// CreateSchema returns a statement that fails if there is such a schema: it would be somebody else's.
func CreateSchema(schema string) string { return "create schema " + schema + ";\n" }

// Expectation returns a statement for a script that fails under the same condition.
func Expectation(schema string) string {
	return fmt.Sprintf(`do $romancy$ begin
    if not (select pg_has_role(nspowner, 'member') from pg_namespace where nspname = '%[1]s') then
        raise exception 'schema %[1]s belongs to another role: migrate as its owner, or use another schema';
    end if;
end $romancy$;`, schema)
}
