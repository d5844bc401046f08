-- name: DeliverMessages
-- target given: to that run alone. None: one row for each broadcast subscriber, and one for whoever competes first, if
-- somebody competes or nobody is subscribed yet. position given: sent by a run, whose history records it.
-- Rows come back as (what, ord, message, channel, mode, receiver): 'sent' a message, 'done' an operation carried out.
with ask as materialized (
    select *
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[])
        with ordinality as a(sender, token, position, target, channel, payload, metadata, ord)
), goal as materialized (
    select a.ord, t.id as receiver
    from ask a cross join lateral (
        select i.id from romancy.instances i
        where i.id = a.target and i.status in ('ready', 'running', 'waiting', 'stuck') offset 0
    ) t
    union all
    select a.ord, s.instance_id
    from ask a cross join lateral (
        select s.instance_id from romancy.subscriptions s where s.channel = a.channel and s.mode = 'broadcast' offset 0
    ) s
    where a.target is null
    union all
    select a.ord, null
    from ask a
    where a.target is null
      and (exists (select 1 from romancy.subscriptions s where s.channel = a.channel and s.mode = 'competing')
           or not exists (select 1 from romancy.subscriptions s where s.channel = a.channel))
), fenced as materialized (
    select a.ord
    from ask a cross join lateral (
        select 1 from romancy.instances i
        where i.id = a.sender and i.token = a.token and i.status = 'running' offset 0
    ) i
    where a.position is not null
), recorded as (
    insert into romancy.history (instance_id, position, token, kind, name, payload)
    select a.sender, a.position, a.token, case when a.target is null then 'publish' else 'send' end, a.channel,
           case when a.target is not null and not exists (select 1 from goal g where g.ord = a.ord)
                then '{"undeliverable":true}'::json end
    from ask a join fenced f on f.ord = a.ord
    order by a.ord
    returning instance_id, position
), done as materialized (
    select a.ord from ask a where a.position is null
    union all
    select a.ord from ask a join recorded r on r.instance_id = a.sender and r.position = a.position
), sent as (
    insert into romancy.mailbox (channel, mode, receiver, sender, payload, metadata)
    select a.channel,
           case when a.target is not null then 'direct' when g.receiver is not null then 'broadcast' else 'competing' end,
           g.receiver, a.sender, a.payload::json, a.metadata::json
    from ask a join done d on d.ord = a.ord join goal g on g.ord = a.ord
    order by a.ord
    returning id, channel, mode, receiver
)
select 'sent', null::bigint, id, channel, mode, receiver from sent
union all
select 'done', d.ord, (select count(*) from goal g where g.ord = d.ord), null, null, null from done d;

-- name: SubscribeRuns
-- A channel has one mode at a time, for as long as anybody is subscribed. mode null unsubscribes.
with ask as materialized (
    select *
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[])
        with ordinality as a(id, token, position, channel, mode, ord)
), owned as materialized (
    select a.*, (select s.mode from romancy.subscriptions s
                 where s.channel = a.channel and s.mode <> a.mode and s.instance_id <> a.id limit 1) as taken
    from ask a cross join lateral (
        select 1 from romancy.instances i where i.id = a.id and i.token = a.token and i.status = 'running' offset 0
    ) fence
), recorded as (
    insert into romancy.history (instance_id, position, token, kind, name, payload)
    select o.id, o.position, o.token, case when o.mode is null then 'unsubscribe' else 'subscribe' end, o.channel,
           json_build_object('mode', o.mode, 'taken', o.taken)
    from owned o
), added as (
    insert into romancy.subscriptions (instance_id, channel, mode)
    select o.id, o.channel, o.mode from owned o where o.mode is not null and o.taken is null
    on conflict (instance_id, channel) do update set mode = excluded.mode
), removed as (
    delete from romancy.subscriptions s using owned o where o.mode is null and s.instance_id = o.id and s.channel = o.channel
)
select o.ord, o.taken from owned o;
