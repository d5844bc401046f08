-- name: Send
-- Sends message ($1, $2) if it is nobody's ($3 is '0') or belongs to a transaction ($3, its id) that has committed. Returns
-- the places of the others, and whether their transactions may still commit. synchronous_commit is set for this
-- transaction alone: behind a pooler the session is not ours. A transaction at or beyond the snapshot's xmax has not
-- ended; asking for its status would be an error after a failover to a server that never saw it. No status means that it
-- ended too long ago to be known: then a needless wake-up is better than a lost one; for the same reason
-- all messages of a transaction that commits between the first of them and the last are sent later, some of them again.
with moment as materialized (
    select set_config('synchronous_commit', 'off', true), pg_snapshot_xmax(pg_current_snapshot()) as xmax
)
select m.place, asked.status = 'in progress' as open
from moment
cross join unnest($1::text[], $2::text[], $3::xid8[]) with ordinality as m(channel, payload, xid, place)
cross join lateral (
    select case when m.xid = '0' then 'committed'
                when m.xid >= moment.xmax then 'in progress'
                else coalesce(pg_xact_status(m.xid), 'committed') end as status
    offset 0 -- asked once: the second answer could be another
) as asked
where case when asked.status = 'committed' then pg_notify(m.channel, m.payload) is null -- never, what it returns is void
                        else true end;

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
