-- name: MissingGrants
-- Which privileges on objects of schema $1 the current role lacks, of those named by kind ($2), object ($3) and privilege
-- ($4), as their places, and the role. An object that does not exist is not reported: the check of the version does that.
-- The catalogues are read instead of casting names, because that would be an error where the schema may not be used.
select m.place, current_user::text
from unnest($2::text[], $3::text[], $4::text[]) with ordinality as m (kind, object, privilege, place)
cross join pg_catalog.pg_namespace n
left join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = m.object and m.kind in ('table', 'sequence')
left join pg_catalog.pg_proc p on p.pronamespace = n.oid and p.proname = m.object and m.kind = 'function'
where n.nspname = $1::text
  and not case
          when m.kind = 'schema' then has_schema_privilege(n.oid, m.privilege)
          when m.kind = 'table' then has_table_privilege(c.oid, m.privilege)
          when m.kind = 'sequence' then has_sequence_privilege(c.oid, m.privilege)
          when m.kind = 'function' then has_function_privilege(p.oid, m.privilege)
          end
order by m.place;
