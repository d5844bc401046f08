-- name: Send
-- Sends what is committed, looks which of the transactions $1 have ended, and sends what belongs to those that committed.
-- $4 tells whose each message is: 0 for nobody's, else the transaction's place in $1. synchronous_commit is set for this
-- transaction alone: behind a pooler the session is not ours. A transaction at or beyond the snapshot's xmax has not
-- ended; asking for its status would be an error after a failover to a server that never saw it. No status means that it
-- ended too long ago to be known: then a needless wake-up is better than a lost one.
with quick as materialized (
    select set_config('synchronous_commit', 'off', true)
), tx as materialized (
    select t.n, case when t.xid::xid8 >= pg_snapshot_xmax(pg_current_snapshot()) then 'in progress'
                     else coalesce(pg_xact_status(t.xid::xid8), 'committed') end as status
    from unnest($1::text[]) with ordinality as t(xid, n)
), sent as materialized (
    select pg_notify(m.channel, m.payload)
    from quick
    cross join unnest($2::text[], $3::text[], $4::int[]) as m(channel, payload, n)
    where m.n = 0 or m.n in (select tx.n from tx where tx.status = 'committed')
)
select 0::bigint as n, count(*)::text as status from sent
union all
select tx.n, tx.status from tx;

-- name: NotifyInTransaction
select count(pg_notify(m.channel, m.payload))
from unnest($1::text[], $2::text[]) as m(channel, payload);

-- name: CurrentTransaction
select pg_current_xact_id()::text;

-- name: CheckText
select octet_length($1::text);

-- name: Publish
-- Like Send, a transaction of its own that need not wait for the disk: what it says is in none of our tables.
with quick as materialized (
    select set_config('synchronous_commit', 'off', true)
)
select count(pg_notify(m.channel, m.payload))
from quick
cross join unnest($1::text[], $2::text[]) as m(channel, payload);
