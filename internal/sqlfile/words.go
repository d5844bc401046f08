package sqlfile

import "strings"

func set(words string) map[string]bool {
	all := map[string]bool{}
	for each := range strings.FieldsSeq(words) {
		all[each] = true
	}
	return all
}

// keywords separate expressions. Those that are part of one, such as IN and CASE, are not among them, nor those that are
// harmless if they are taken for a name.
var keywords = set(`select distinct from where group order by having limit offset union all except intersect with recursive as
	materialized not and or is insert into values update delete set returning using join left right full inner outer cross
	lateral natural on for of skip locked nowait no when then else end asc desc partition window conflict do nothing ordinality
	create drop index concurrently if unique`)

// takesRelation are those that a relation follows.
var takesRelation = set("from join into update using")

// constructs look like functions and are part of the grammar, and have no operator in them.
var constructs = set("exists any all some array row coalesce greatest least")

// grammarTypes mean the same under any search_path.
var grammarTypes = set("bigint boolean integer smallint interval int real")

var builtinTypes = set("bytea float8 int4 int8 json jsonb jsonpath name oid regclass text timestamptz xid8")

var builtinFunctions = set(`age array_agg array_position array_remove bool_and bool_or cardinality chr clock_timestamp count current_database current_setting
	first_value generate_series has_function_privilege has_schema_privilege has_sequence_privilege has_table_privilege
	hashtextextended json_agg json_array_elements_text json_build_object jsonb_build_object jsonb_object_agg jsonb_object_keys jsonb_path_exists left max
	min now octet_length pg_advisory_unlock_shared pg_advisory_xact_lock pg_backend_pid pg_column_size pg_current_snapshot
	pg_current_xact_id pg_notify pg_postmaster_start_time pg_snapshot_xmax pg_snapshot_xmin pg_try_advisory_lock_shared
	pg_xact_status random row_number set_config statement_timestamp string_to_array substring sum to_jsonb to_timestamp unnest`)
