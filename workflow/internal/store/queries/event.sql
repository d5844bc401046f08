-- name: SendEvents
-- One row an event, whoever waits for it: nothing is handed out here, so a transaction that commits late is found like any
-- other. What has the source and the id of one that is kept is not sent; one that has expired and was not removed yet, which
-- nobody sees any more, gives up its row: under an id of its own, so that whoever has had or passed the old one sees the
-- new one. position given: sent by a run, whose history
-- records it. A caller's transaction that sends holds the advisory lock of the event's source and id until it ends (LockEvent);
-- that is asked for here and not waited for. A sender's row is locked as by AppendHistory.
-- Rows come back as (what, ord, event, type): 'sent' an event, 'done' an operation carried out, 'held' one whose source and
-- id another transaction has sent.
with ask as materialized (
    select a.*,
           case when a.position is not null
                then (select true from romancy.instances i
                      where i.id = a.sender and i.token = a.token and i.worker = $10::bigint and i.status || '' = 'running' limit 1 for share) is true
                else true end as allowed,
           case when pg_try_advisory_lock_shared(hashtextextended(a.event_id || ' ' || a.source, 'romancy.events'::regclass::oid::bigint))
                then pg_advisory_unlock_shared(hashtextextended(a.event_id || ' ' || a.source, 'romancy.events'::regclass::oid::bigint))
                else false end as free
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[])
        with ordinality as a(sender, token, position, type, source, event_id, attributes, data, keep_us, ord)
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name)
    select a.sender, a.position, a.token, $10::bigint, 'send_event', a.type
    from ask a
    where a.position is not null and a.allowed and a.free
    order by a.ord
), sent as (
    insert into romancy.events as e (type, source, event_id, match, data, expires_at)
    select a.type, a.source, a.event_id, a.attributes::jsonb || jsonb_build_object('', a.type), a.data::json,
           clock_timestamp() + a.keep_us * interval '1 microsecond'
    from (select a.*, row_number() over (partition by a.source, a.event_id order by a.ord) as copy
          from ask a where a.allowed and a.free) a
    where a.copy = 1
    order by a.source, a.event_id -- so that two flushes do not wait for each other
    on conflict (source, event_id) do update
    set id = default, type = excluded.type, match = excluded.match, data = excluded.data,
        created_at = clock_timestamp(), expires_at = excluded.expires_at
    where e.expires_at <= clock_timestamp()
    returning e.id, e.type
)
select 'sent', null::bigint, id, type from sent
union all
select case when a.free then 'done' else 'held' end, a.ord, null, null from ask a where a.allowed;

-- name: LockEvent
-- Waits for the other transactions that send an event of that source and id.
select pg_advisory_xact_lock(hashtextextended($2::text || ' ' || $1::text, 'romancy.events'::regclass::oid::bigint));

-- name: WaitEvents
-- A run that waits for an event takes the oldest there is, else notes that its deadline has passed, else parks. Its own list of
-- what it has had is what keeps an event from coming twice: there are no cursors, so one that comes to light late, behind
-- others, is found as well. Without attributes (bare) the oldest event is found by the index of the type, in order; with
-- attributes by that of the matches, among the few that match. The rest is as in WaitRuns.
with ask as materialized (
    select a.*, a.seen_ids::bigint[] as seen, a.attributes = '{}' as bare, a.attributes::jsonb || jsonb_build_object('', a.type) as match,
           case when a.at_us is not null then to_timestamp(0) + a.at_us * interval '1 microsecond'
                else clock_timestamp() + a.delay_us * interval '1 microsecond' end as fires_at
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::integer[], $8::text[], $9::bigint[], $10::bigint[],
                $11::bigint[], $12::boolean[], $13::boolean[])
        with ordinality as a(id, token, position, type, attributes, seen_ids, timer_position, timer_name, delay_us, at_us,
                             nudge_us, stay, heeds, ord)
), owned as materialized (
    select a.*, i.cancelled
    from ask a cross join lateral (
        select a.heeds and i.cancel is not null as cancelled from romancy.instances i
        where i.id = a.id and i.token = a.token and i.worker = $14::bigint and i.status || '' = 'running'
        for no key update
    ) i
), found as materialized (
    select o.*, coalesce(
        (select e.id from romancy.events e
         where o.bare and not o.cancelled and e.type = o.type and e.id <> all (o.seen) and e.expires_at > clock_timestamp()
         order by e.id + 0 limit 1),
        (select e.id from romancy.events e
         where not o.bare and not o.cancelled and e.match @> o.match and e.id <> all (o.seen) and e.expires_at > clock_timestamp()
         order by e.id + 0 limit 1)) as event_row
    from owned o
), outcome as materialized (
    select f.*, t.event,
           case when f.cancelled then 'cancelled'
                when t.event is not null then 'message'
                when f.fires_at <= clock_timestamp() then 'due'
                when f.stay then 'nothing'
                else 'parked' end as outcome
    from found f left join lateral (
        select json_build_object('id', e.id, 'type', e.type, 'source', e.source, 'event_id', e.event_id, 'attributes', e.match - '',
                                 'data', e.data, 'sent_at', e.created_at,
                                 'expires_us', (extract(epoch from e.expires_at) * 1000000)::bigint,
                                 'taken_us', (extract(epoch from clock_timestamp()) * 1000000)::bigint) as event
        from romancy.events e where e.id = f.event_row offset 0
    ) t on true
), timers as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, o.timer_position, o.token, $14::bigint, 'timer', o.timer_name,
           json_build_object('fires_at_us', (extract(epoch from o.fires_at) * 1000000)::bigint)
    from outcome o
    where o.timer_position is not null and o.outcome <> 'cancelled'
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, o.position, o.token, $14::bigint, 'wait_event', o.type,
           case when o.outcome = 'message' then o.event else '{"timeout":true}'::json end
    from outcome o
    where o.outcome in ('message', 'due')
), parked as (
    update romancy.instances i
    set status = 'waiting', wake_at = least(o.fires_at, o.nudge_at), wake_position = coalesce(o.timer_position, o.position),
        wake_channels = array['event:' || o.type]
    from (select outcome.*, to_timestamp(0) + outcome.nudge_us * interval '1 microsecond' as nudge_at from outcome) o
    where i.id = any (array[o.id]) and o.outcome = 'parked'
), waits as (
    insert into romancy.event_waits (instance_id, type, names, attributes, seen)
    select o.id, o.type, array(select n from jsonb_object_keys(o.attributes::jsonb) as k(n) order by n collate "C"), o.attributes::jsonb, o.seen
    from outcome o
    where o.outcome = 'parked'
    order by o.id
    on conflict (instance_id) do update
    set type = excluded.type, names = excluded.names, attributes = excluded.attributes, seen = excluded.seen
), gone as (
    delete from romancy.event_waits w using outcome o where w.instance_id = any (array[o.id]) and o.outcome <> 'parked'
)
select o.ord, o.outcome, case when o.outcome = 'message' then o.event::text end,
       (extract(epoch from o.fires_at) * 1000000)::bigint,
       (extract(epoch from least(o.fires_at, to_timestamp(0) + o.nudge_us * interval '1 microsecond') - clock_timestamp()) * 1000000)::bigint,
       null::bigint, (extract(epoch from clock_timestamp()) * 1000000)::bigint
from outcome o;

-- name: WakeEvents
-- A parked run held in memory here: the event or the deadline it waits for, its outcome and the change of owner are one
-- statement. Rows that somebody else is busy with are left alone, and a worker whose lease has run out wakes nothing.
with ask as materialized (
    select a.*, a.seen_ids::bigint[] as seen, a.attributes = '{}' as bare, a.attributes::jsonb || jsonb_build_object('', a.type) as match
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $8::boolean[])
        with ordinality as a(id, token, position, type, attributes, seen_ids, nudged, ord)
), owned as materialized (
    select a.*, i.wake_at
    from ask a cross join lateral (
        select i.wake_at from romancy.instances i
        where i.id = a.id and i.token = a.token and i.worker = $7::bigint and i.status || '' = 'waiting'
          and exists (select 1 from romancy.workers me where me.id = $7::bigint and me.lease_until > clock_timestamp())
        for no key update of i skip locked
    ) i
), found as materialized (
    select o.*, coalesce(
        (select e.id from romancy.events e
         where o.bare and e.type = o.type and e.id <> all (o.seen) and e.expires_at > clock_timestamp()
         order by e.id + 0 limit 1),
        (select e.id from romancy.events e
         where not o.bare and e.match @> o.match and e.id <> all (o.seen) and e.expires_at > clock_timestamp()
         order by e.id + 0 limit 1)) as event_row
    from owned o
), outcome as materialized (
    select f.*, t.event,
           case when t.event is not null then 'message'
                when f.wake_at <= clock_timestamp() then case when f.nudged then 'nudged' else 'due' end
                else 'parked' end as outcome
    from found f left join lateral (
        select json_build_object('id', e.id, 'type', e.type, 'source', e.source, 'event_id', e.event_id, 'attributes', e.match - '',
                                 'data', e.data, 'sent_at', e.created_at,
                                 'expires_us', (extract(epoch from e.expires_at) * 1000000)::bigint,
                                 'taken_us', (extract(epoch from clock_timestamp()) * 1000000)::bigint) as event
        from romancy.events e where e.id = f.event_row offset 0
    ) t on true
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, o.position, o.token + 1, $7::bigint, 'wait_event', o.type,
           case when o.outcome = 'message' then o.event else '{"timeout":true}'::json end
    from outcome o
    where o.outcome in ('message', 'due')
), resumed as (
    update romancy.instances i
    set status = 'running', worker = $7::bigint, token = i.token + 1
    from outcome o
    where i.id = any (array[o.id]) and o.outcome <> 'parked'
), gone as (
    delete from romancy.event_waits w using outcome o where w.instance_id = any (array[o.id]) and o.outcome <> 'parked'
)
select o.ord, o.outcome, case when o.outcome = 'message' then o.event::text end,
       (extract(epoch from o.wake_at) * 1000000)::bigint,
       (extract(epoch from o.wake_at - clock_timestamp()) * 1000000)::bigint, null::bigint,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint
from outcome o;

-- name: LookForEvents
-- The look after a park has committed: for which of these runs is there an event that came in between?
select a.ord
from (select a.*, a.seen_ids::bigint[] as seen, a.attributes = '{}' as bare, a.attributes::jsonb || jsonb_build_object('', a.type) as match
      from unnest($1::text[], $2::text[], $3::text[]) with ordinality as a(type, attributes, seen_ids, ord) offset 0) a
where (select true from romancy.events e
       where a.bare and e.type = a.type and e.id <> all (a.seen) and e.expires_at > clock_timestamp()
       order by e.id + 0 limit 1)
   or (select true from romancy.events e
       where not a.bare and e.match @> a.match and e.id <> all (a.seen) and e.expires_at > clock_timestamp() limit 1);

-- name: DiscardEvents
-- Up to $1 that have expired, and of those no more than $2 bytes and one more. Returned: how many, and whether there may be others.
with found as materialized (
    select e.id, coalesce(pg_column_size(e.data), 0) as size
    from romancy.events e
    where e.expires_at <= statement_timestamp()
    order by e.expires_at
    limit $1::bigint
    for update skip locked
), light as materialized (
    select f.id from (select found.*, sum(found.size) over (order by found.id) - found.size as before from found) f where f.before < $2::bigint
), gone as (
    delete from romancy.events e using light l where e.id = any (array[l.id]) returning e.id
)
select (select count(*) from gone), (select count(*) from found) = $1::bigint or (select count(*) from light) < (select count(*) from found);
