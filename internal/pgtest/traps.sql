-- Traps in schema public: functions, operators, types, relations and a collation by the names of those that come with PostgreSQL.
-- Each does what its namesake does, and notes who has called it. They are made by a role that may create in public and nothing
-- else. Their own bodies name everything with its schema.

create table public.sprung (
    what pg_catalog.text not null,
    query pg_catalog.text not null,
    application pg_catalog.text not null
);

create function public.spring(what pg_catalog.text) returns boolean language plpgsql security definer
set search_path = pg_catalog, pg_temp as $$
begin
    if not current_setting('transaction_read_only')::boolean then
        insert into public.sprung values (what, coalesce(current_query(), ''), current_setting('application_name'));
    end if;
    raise log 'trap %: %', what, left(current_query(), 300);
    return true;
end $$;

-- Functions that are not polymorphic, by all their signatures.
do $do$
declare
    f record;
    call text;
begin
    for f in
        select p.oid, p.proname, p.pronargs, p.proretset, pg_catalog.pg_get_function_identity_arguments(p.oid) as arguments,
               pg_catalog.pg_get_function_result(p.oid) as result
        from pg_catalog.pg_proc p
        where p.pronamespace = 'pg_catalog'::pg_catalog.regnamespace and p.prokind = 'f' and p.provariadic = 0 and p.proargmodes is null
          and p.proname = any (array['age', 'chr', 'clock_timestamp', 'current_database', 'current_setting', 'current_query', 'format_type',
              'generate_series', 'has_function_privilege', 'has_schema_privilege', 'has_sequence_privilege', 'has_table_privilege',
              'hashtextextended', 'host', 'jsonb_path_exists', 'left', 'now', 'octet_length', 'pg_advisory_unlock_shared', 'pg_advisory_xact_lock',
              'pg_backend_pid', 'pg_blocking_pids', 'pg_current_snapshot', 'pg_current_xact_id', 'pg_describe_object', 'pg_get_userbyid',
              'pg_has_role', 'pg_is_in_recovery', 'pg_notify', 'pg_postmaster_start_time', 'pg_snapshot_xmax', 'pg_snapshot_xmin',
              'pg_try_advisory_lock_shared', 'pg_try_advisory_xact_lock', 'pg_xact_status', 'random', 'set_config', 'statement_timestamp',
              'string_to_array', 'to_char', 'to_timestamp', 'make_interval', 'array_to_string', 'json_strip_nulls', 'jsonb_strip_nulls',
              'transaction_timestamp', 'lower', 'upper', 'length', 'substring', 'replace', 'date_trunc', 'extract', 'get_bit', 'set_bit',
              'gen_random_uuid', 'to_regclass', 'jsonb_set', 'coalesce', 'timezone', 'date_part']::pg_catalog.name[])
          and not exists (select from pg_catalog.unnest(p.proargtypes) a (t) join pg_catalog.pg_type y on y.oid = a.t where y.typtype = 'p')
    loop
        select pg_catalog.format('pg_catalog.%I(%s)', f.proname, coalesce(pg_catalog.string_agg('$' || n, ', '), '')) into call
        from pg_catalog.generate_series(1, f.pronargs) n;
        execute pg_catalog.format('create function public.%I(%s) returns %s language plpgsql as %L', f.proname, f.arguments, f.result,
            pg_catalog.format('begin perform public.spring(%L); %s; return%s; end', f.proname || '(' || f.arguments || ')',
                case when f.result = 'void' then 'perform ' || call when f.proretset then 'return query select ' || call else 'null' end,
                case when f.result = 'void' or f.proretset then '' else ' ' || call end));
    end loop;
end $do$;

-- Polymorphic ones for the types that are asked for: they win under any search_path, because they need no conversion.
do $do$
declare
    t text;
begin
    foreach t in array array['text', 'bigint', 'integer', 'smallint', 'boolean', 'bytea', 'json', 'jsonb', 'timestamptz', 'name', 'oid', 'xid8'] loop
        execute pg_catalog.format('create function public.unnest(%1$s[]) returns setof %1$s language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return query select pg_catalog.unnest($1); end', 'unnest(' || t || '[])'));
        execute pg_catalog.format('create function public.cardinality(%1$s[]) returns integer language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return pg_catalog.cardinality($1); end', 'cardinality(' || t || '[])'));
        execute pg_catalog.format('create function public.to_jsonb(%1$s) returns jsonb language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return pg_catalog.to_jsonb($1); end', 'to_jsonb(' || t || ')'));
        execute pg_catalog.format('create function public.pg_column_size(%1$s) returns integer language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return pg_catalog.pg_column_size($1); end', 'pg_column_size(' || t || ')'));
        execute pg_catalog.format('create function public.array_position(%1$s[], %1$s) returns integer language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return pg_catalog.array_position($1, $2); end', 'array_position(' || t || '[])'));
        execute pg_catalog.format('create function public.array_remove(%1$s[], %1$s) returns %1$s[] language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return pg_catalog.array_remove($1, $2); end', 'array_remove(' || t || '[])'));
        execute pg_catalog.format('create function public.counted(bigint, %1$s) returns bigint language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return pg_catalog.int8pl($1, case when $2 is null then 0 else 1 end); end', 'count(' || t || ')'));
        execute pg_catalog.format('create aggregate public.count(%1$s) (sfunc = public.counted, stype = bigint, initcond = ''0'')', t);
        execute pg_catalog.format('create function public.appended(%1$s[], %1$s) returns %1$s[] language plpgsql as %2$L', t,
            pg_catalog.format('begin perform public.spring(%L); return pg_catalog.array_append($1, $2); end', 'array_agg(' || t || ')'));
        execute pg_catalog.format('create aggregate public.array_agg(%1$s) (sfunc = public.appended, stype = %1$s[])', t);
        if t in ('text', 'bigint', 'integer', 'smallint', 'timestamptz') then
            execute pg_catalog.format('create function public.greater(%1$s, %1$s) returns %1$s language plpgsql as %2$L', t,
                pg_catalog.format('begin perform public.spring(%L); return greatest($1, $2); end', 'max(' || t || ')'));
            execute pg_catalog.format('create function public.lesser(%1$s, %1$s) returns %1$s language plpgsql as %2$L', t,
                pg_catalog.format('begin perform public.spring(%L); return least($1, $2); end', 'min(' || t || ')'));
            execute pg_catalog.format('create aggregate public.max(%1$s) (sfunc = public.greater, stype = %1$s)', t);
            execute pg_catalog.format('create aggregate public.min(%1$s) (sfunc = public.lesser, stype = %1$s)', t);
        end if;
    end loop;
end $do$;

create function public.counted(bigint) returns bigint language plpgsql as
$$ begin perform public.spring('count(*)'); return pg_catalog.int8pl($1, 1); end $$;
create aggregate public.count(*) (sfunc = public.counted, stype = bigint, initcond = '0');

create function public.json_build_object(variadic pg_catalog.text[]) returns pg_catalog.json language plpgsql as
$$ begin perform public.spring('json_build_object'); return pg_catalog.json_object($1); end $$;

-- Operators between types that are not polymorphic, and the polymorphic ones for arrays of some.
do $do$
declare
    o record;
    n integer := 0;
begin
    for o in
        select p.oprname::text as name, nullif(p.oprleft, 0)::pg_catalog.regtype::text as l, p.oprright::pg_catalog.regtype::text as r, p.oprresult::pg_catalog.regtype::text as result
        from pg_catalog.pg_operator p
        where p.oprnamespace = 'pg_catalog'::pg_catalog.regnamespace
          and p.oprname = any (array['=', '<>', '<', '>', '<=', '>=', '||', '+', '-', '*', '/', '%', '->', '->>', '@>', '<@', '~~', '!~~', '~~*', '@?', '?', '&', '|', '<<', '>>', '~']::pg_catalog.name[])
          and (p.oprleft = 0 or p.oprleft = any (array['text', 'bigint', 'integer', 'smallint', 'boolean', 'json', 'jsonb', 'timestamptz', 'interval', 'oid', 'name', 'xid', 'xid8', 'float8', 'numeric', 'bytea', '"char"', 'bit']::pg_catalog.regtype[]::pg_catalog.oid[]))
          and p.oprright = any (array['text', 'bigint', 'integer', 'smallint', 'boolean', 'json', 'jsonb', 'timestamptz', 'interval', 'oid', 'name', 'xid', 'xid8', 'float8', 'numeric', 'bytea', '"char"', 'bit', 'jsonpath']::pg_catalog.regtype[]::pg_catalog.oid[])
        union all
        select each.name, each.l, each.r, each.result
        from (values ('||', 'text', 'bigint', 'text'), ('||', 'text', 'integer', 'text'), ('||', 'integer', 'text', 'text'), ('||', 'bigint', 'text', 'text'),
                     ('=', 'text[]', 'text[]', 'boolean'), ('@>', 'text[]', 'text[]', 'boolean'), ('&&', 'text[]', 'text[]', 'boolean'),
                     ('||', 'text[]', 'text[]', 'text[]'), ('||', 'bigint[]', 'bigint[]', 'bigint[]'), ('||', 'bigint[]', 'bigint', 'bigint[]'),
                     ('=', 'bigint[]', 'bigint[]', 'boolean'), ('<>', 'bigint[]', 'bigint[]', 'boolean')) each (name, l, r, result)
    loop
        n := n + 1;
        if o.l is null then
            execute pg_catalog.format('create function public.trap_%s(%s) returns %s language plpgsql as %L', n, o.r, o.result,
                pg_catalog.format('begin perform public.spring(%L); return operator(pg_catalog.%s) $1; end', o.name || ' ' || o.r, o.name));
            execute pg_catalog.format('create operator public.%s (rightarg = %s, function = public.trap_%s)', o.name, o.r, n);
        else
            execute pg_catalog.format('create function public.trap_%s(%s, %s) returns %s language plpgsql as %L', n, o.l, o.r, o.result,
                pg_catalog.format('begin perform public.spring(%L); return $1 operator(pg_catalog.%s) $2; end', o.l || ' ' || o.name || ' ' || o.r, o.name));
            execute pg_catalog.format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.trap_%s)', o.name, o.l, o.r, n);
        end if;
    end loop;
end $do$;

-- Relations. Those by our names have nothing in them, so that whoever finds them fails.
do $do$
declare
    name text;
begin
    foreach name in array array['pg_settings', 'pg_stat_activity', 'pg_locks', 'pg_class', 'pg_namespace', 'pg_proc', 'pg_database', 'pg_index',
        'pg_depend', 'pg_replication_slots', 'pg_prepared_xacts', 'pg_stat_replication', 'pg_stat_progress_vacuum', 'pg_roles'] loop
        execute pg_catalog.format('create view public.%1$I as select * from pg_catalog.%1$I where public.spring(%2$L)', name, 'view ' || name);
    end loop;
    foreach name in array array['instances', 'history', 'attempts', 'interruptions', 'mailbox', 'subscriptions', 'workers', 'sent_keys', 'events',
        'event_waits', 'outbox', 'outbox_slots', 'schema_version', 'river_job', 'river_leader', 'river_queue', 'river_migration',
        'pending_workflow_resumable', 'pending_timer_expired', 'pending_channel_message', 'pending_outbox_pending'] loop
        execute pg_catalog.format('create table public.%I ()', name);
    end loop;
end $do$;

create view public.pg_attribute as select attrelid, attname, atttypid, attnum, attisdropped from pg_catalog.pg_attribute
where public.spring('view pg_attribute');

create collation public."C" from pg_catalog."POSIX";

-- Types come last: a domain notes that a value is cast to it.
do $do$
declare
    name text;
begin
    foreach name in array array['text', 'json', 'jsonb', 'jsonpath', 'bytea', 'timestamptz', 'float8', 'int4', 'int8', 'oid', 'name', 'regclass', 'xid8'] loop
        execute pg_catalog.format('create domain public.%1$I as pg_catalog.%1$I check (public.spring(%2$L))', name, 'type ' || name);
    end loop;
end $do$;
