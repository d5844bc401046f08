package schema_test

import (
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/romancy-go/romancy/internal/schema"
)

var update = flag.Bool("update", false, "write docs/roles.sql and docs/grants.sql")

// role is a role that docs/roles.sql makes, with what it is for.
type role struct {
	name  string
	what  string
	needs []schema.Need // none: it owns the schema
}

var roles = []role{
	{"romancy_migrate", "Owns the schema and migrates it.", nil},
	{"romancy_run", "Executes workflows, with all sweeps, and does all that a client does.", []schema.Need{schema.Execute, schema.River}},
	{"romancy_relay", "Publishes what is in the outbox and keeps its dead letters, with the sweeps.", []schema.Need{schema.Relay, schema.River}},
	{"romancy_client", "Starts runs, sends to them, cancels, retries and erases them, and reads what they did.", []schema.Need{schema.Client}},
	{"romancy_write", "Adds events to the outbox, in its own transactions.", []schema.Need{schema.Write}},
	{"romancy_subscribe", "Subscribes to the notification channels, with catch-up.", []schema.Need{schema.Subscribe}},
	{"romancy_read", "Reads runs, their histories and the outbox: dashboards.", []schema.Need{schema.Read}},
}

const madeFrom = "-- Made from internal/schema by: go test ./internal/schema -run TestRolesFiles -update"

func rolesFile() string {
	var text strings.Builder
	text.WriteString(`-- Roles for a database with Romancy in schema "romancy". Execute this once, as a superuser, before the first romancy.Migrate, and
-- grants.sql after each Migrate. It may be executed again. docs/operations.md says how logins get these roles.
` + madeFrom + `

do $$
declare
    name text;
begin
    foreach name in array array[
`)
	for i, r := range roles {
		comma := ","
		if i == len(roles)-1 {
			comma = ""
		}
		fmt.Fprintf(&text, "        '%s'%s -- %s\n", r.name, comma, r.what)
	}
	text.WriteString(`    ] loop
        if not exists (select from pg_catalog.pg_roles where rolname = name) then
            execute format('create role %I nologin', name);
        end if;
    end loop;
end
$$;

-- Nobody else creates anything here, and nobody uses it who is not granted that.
create schema if not exists romancy authorization romancy_migrate;
revoke all on schema romancy from public;

-- PostgreSQL lets everybody call every new function: not those that this role makes. This cannot be said of one schema alone, so let
-- this role make nothing else.
alter default privileges for role romancy_migrate revoke execute on functions from public;
`)
	return text.String()
}

func grantsFile() string {
	var text strings.Builder
	text.WriteString(`-- What each role of roles.sql may do in schema "romancy", and no more. Execute this after each romancy.Migrate and before the processes of the new
-- build start, as romancy_migrate or a superuser. It may be executed again. Nothing is granted for tables that do not exist yet: what
-- a later migration makes is granted by that build's file, and until then by nothing.
` + madeFrom + `

begin;

revoke execute on all functions in schema romancy from public;
revoke insert on table romancy.outbox from romancy_write; -- on all columns, which this file once granted
`)
	for _, r := range roles {
		if r.needs == nil {
			continue
		}
		fmt.Fprintf(&text, "\n-- %s\n", r.what)
		for _, statement := range schema.GrantStatements(schema.Default, r.name, schema.Privileges(r.needs...)) {
			fmt.Fprintln(&text, strings.ReplaceAll(statement, `"`, ""))
		}
	}
	text.WriteString("\ncommit;\n")
	return text.String()
}

// The files that users copy say what the parts of the library ask for, to the letter.
func TestRolesFiles(t *testing.T) {
	t.Parallel()
	for path, want := range map[string]string{"../../docs/roles.sql": rolesFile(), "../../docs/grants.sql": grantsFile()} {
		if *update {
			if err := os.WriteFile(path, []byte(want), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if string(got) != want {
			t.Errorf("%s is not what the parts need: %s", path, madeFrom[3:])
		}
	}
}
