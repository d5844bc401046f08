package schema

import (
	"context"
	"embed"
	"fmt"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/romancy-go/romancy/internal/sqlfile"
)

//go:embed queries/*.sql
var queryFiles embed.FS

// Need is something that a process does with the tables.
type Need int

const (
	// Client starts runs, sends to them, cancels and retries them, and reads what they did.
	Client Need = iota
	// Execute executes runs, with all sweeps and the retention that belong to it.
	Execute
	// Write adds events to the outbox. It has no say in what relays keep in an event's other columns: by an id or a count of attempts of
	// its own it would stop them. CheckGrants does not know columns, so it is not asked for this.
	Write
	// Relay publishes what is in the outbox, and keeps its dead letters.
	Relay
	// Subscribe reads what lost notifications would have said.
	Subscribe
	// River runs the sweeps in a River client of our own, whose tables are in our schema.
	River
	// Read reads what runs did and what is in the outbox, and changes nothing: dashboards.
	Read
)

// Privilege is one that a role needs on an object of the schema.
type Privilege struct {
	Kind   string // schema, table (also a view), sequence or function
	Object string // without its schema; "" for the schema itself
	Name   string // as GRANT writes it, with columns if it is for those alone
}

// object is what a need asks for on one object: the privileges separated by blanks.
type object struct{ kind, name, privileges string }

const (
	table    = "table"
	function = "function"

	selects    = "select"
	noUpdates  = "select insert delete"
	everything = "select insert update delete"
	executes   = "execute"
)

// needs is the one place that says what a role must be allowed to do: docs/grants.sql is made from it. A test explains every statement
// as a role that has exactly this. Identity columns draw from their sequences by themselves; River's sequence is a serial's, which does not.
var needs = map[Need][]object{
	Client: {
		{table, "schema_version", selects},
		{table, "instances", "select insert update"},
		{table, "history", noUpdates},
		{table, "attempts", "select delete"},
		{table, "interruptions", "select delete"},
		{table, "mailbox", noUpdates},
		{table, "subscriptions", noUpdates},
		{table, "workers", selects},
		{table, "sent_keys", "select insert update"},
		{table, "events", "select insert update"},
		{table, "event_waits", "select delete"},
		{function, "heir", executes},
		{function, "input_matches", executes},
	},
	Execute: {
		{table, "schema_version", selects},
		{table, "instances", everything},
		{table, "history", noUpdates},
		{table, "attempts", noUpdates},
		{table, "interruptions", noUpdates},
		{table, "mailbox", everything},
		{table, "subscriptions", everything},
		{table, "workers", everything},
		{table, "sent_keys", everything},
		{table, "events", everything},
		{table, "event_waits", everything},
		{function, "heir", executes},
		{function, "input_matches", executes},
	},
	Write: {
		{table, "outbox", "insert(event_id,topic,key,slot,payload,headers)"},
	},
	Relay: {
		{table, "schema_version", selects},
		{table, "outbox", "select update delete"},
		{table, "outbox_slots", "select insert update"},
	},
	Subscribe: {
		{table, "pending_workflow_resumable", selects},
		{table, "pending_timer_expired", selects},
		{table, "pending_channel_message", selects},
		{table, "pending_outbox_pending", selects},
	},
	River: {
		{table, "river_job", everything},
		{table, "river_leader", everything},
		{table, "river_queue", everything},
		{table, "river_migration", selects},
		{"sequence", "river_job_id_seq", "usage"},
		{function, "river_job_state_in_bitmask", executes},
	},
	Read: {
		{table, "instances", selects},
		{table, "history", selects},
		{table, "attempts", selects},
		{table, "interruptions", selects},
		{table, "workers", selects},
		{table, "outbox", selects},
		{function, "input_matches", executes},
	},
}

// Privileges returns what a role needs for all of what, without repetition, in an order that does not change.
func Privileges(what ...Need) []Privilege {
	list := []Privilege{{"schema", "", "usage"}}
	for _, need := range what {
		for _, o := range needs[need] {
			for name := range strings.FieldsSeq(o.privileges) {
				if p := (Privilege{o.kind, o.name, name}); !slices.Contains(list, p) {
					list = append(list, p)
				}
			}
		}
	}
	return list
}

// GrantError says that the role this process connects as is not allowed to do what it has to do.
type GrantError struct {
	Schema  string
	Role    string
	Missing []Privilege // all of them
}

func (e *GrantError) Error() string {
	return fmt.Sprintf("role %q lacks %d of the privileges it needs in schema %q: have their owner execute: %s",
		e.Role, len(e.Missing), e.Schema, strings.Join(GrantStatements(e.Schema, e.Role, e.Missing), " "))
}

// GrantStatements returns the statements that grant privileges on objects of schema to role, one for each object.
func GrantStatements(schema, role string, privileges []Privilege) []string {
	var statements []string
	for i, first := range privileges {
		same := func(p Privilege) bool { return p.Kind == first.Kind && p.Object == first.Object }
		if slices.ContainsFunc(privileges[:i], same) {
			continue
		}
		var names []string
		for _, p := range privileges[i:] {
			if same(p) {
				names = append(names, p.Name)
			}
		}
		on := first.Kind + " " + schema
		if first.Kind != "schema" {
			on += "." + first.Object
		}
		statements = append(statements, fmt.Sprintf("grant %s on %s to %s;", strings.Join(names, ", "), on, pgx.Identifier{role}.Sanitize()))
	}
	return statements
}

// CheckGrants returns a *GrantError that names everything missing, unless the role that pool connects as may do all of
// what in schema. What does not exist is not its concern: see Check.
func CheckGrants(ctx context.Context, pool *pgxpool.Pool, schema string, what ...Need) error {
	queries, err := sqlfile.Load(queryFiles, "queries", schema)
	if err != nil {
		return err
	}
	privileges := Privileges(what...)
	var kinds, objects, names []string
	for _, p := range privileges {
		kinds, objects, names = append(kinds, p.Kind), append(objects, p.Object), append(names, p.Name)
	}
	missing := &GrantError{Schema: schema}
	// An error of the query is reported by CollectRows.
	rows, _ := pool.Query(ctx, queries.Get("MissingGrants"), schema, kinds, objects, names)
	places, err := pgx.CollectRows(rows, func(row pgx.CollectableRow) (place int, err error) {
		return place, row.Scan(&place, &missing.Role)
	})
	if err != nil {
		return fmt.Errorf("check the privileges in schema %q: %w", schema, err)
	}
	if len(places) == 0 {
		return nil
	}
	for _, place := range places {
		missing.Missing = append(missing.Missing, privileges[place-1])
	}
	return missing
}
