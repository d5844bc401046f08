-- name: OldestSnapshot
-- Who keeps deleted rows of this database from being removed, the worst first: the transactions it holds back, the
-- microseconds it has been at it (null where the server does not say), and how many sessions of the database this role may
-- not look at. Of a session's statement only the name is shown that those of ours begin with: the rest may have anybody's
-- literals in it. Vacuum's own snapshots hold nobody back. A session shows a snapshot as old as the oldest transaction that was
-- running when it was taken, so of equals the one that began first is the cause.
with hidden as materialized (
    select count(*) as sessions
    from pg_catalog.pg_stat_activity a
    where a.datname = current_database() and a.query = '<insufficient privilege>'
), holder as (
    select 'session' as kind, a.pid, a.application_name as name, a.usename::text as role, a.state,
           substring(a.query, '^-- name: ([A-Za-z]{1,63})(?:[[:cntrl:]]|$)') as statement, a.xact_start as since,
           greatest(age(a.backend_xmin), age(a.backend_xid)) as transactions,
           coalesce(a.backend_xmin, a.backend_xid)::text as horizon
    from pg_catalog.pg_stat_activity a
    where a.datname = current_database() and a.pid <> pg_backend_pid()
      and (a.backend_xmin is not null or a.backend_xid is not null)
      and a.backend_type <> 'autovacuum worker'
      and not exists (select 1 from pg_catalog.pg_stat_progress_vacuum v where v.pid = a.pid)
    union all
    select 'prepared transaction', null, p.gid, p.owner::text, null, null, p.prepared, age(p.transaction), p.transaction::text
    from pg_catalog.pg_prepared_xacts p
    where p.database = current_database()
    union all
    select 'replication slot', s.active_pid, s.slot_name::text, null, case when s.active then 'active' else 'inactive' end, null, null,
           age(s.xmin), s.xmin::text
    from pg_catalog.pg_replication_slots s
    where s.xmin is not null
    union all
    select 'standby', r.pid, r.application_name, r.usename::text, r.state, null, null, age(r.backend_xmin), r.backend_xmin::text
    from pg_catalog.pg_stat_replication r
    where r.backend_xmin is not null
)
select h.sessions, o.kind, o.pid, o.name, o.role, o.state, o.statement, o.transactions, o.horizon,
       (extract(epoch from clock_timestamp() - o.since) * 1000000)::bigint
from hidden h left join lateral (
    select * from holder order by transactions desc, since nulls last, pid limit 1
) o on true;
