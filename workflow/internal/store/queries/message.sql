-- name: DeliverMessages
-- One alone to a run, without a key, goes by DeliverDirect, which has to do the same.
-- target given: to that run alone. None: one row for each broadcast subscriber, and one for whoever competes first, if
-- somebody competes or nobody is subscribed yet. position given: sent by a run, whose history records it. key given: sent
-- unless something was sent under that key, which is kept for keep_us. A caller's transaction that sends under a key holds
-- its advisory lock until it ends (LockSendKey); that is asked for here and not waited for. A sender's row is locked as by
-- AppendHistory, a receiver's never.
-- Rows come back as (what, ord, message, channel, mode, receiver): first 'line' a line (in place of the channel) with the run of it that
-- lives, for which what is sent to that line is; 'sent' a message, 'done' an operation carried out (with 0
-- for the message and the target's status, if there is such a run, for the mode: it has no receiver), 'held' one whose key
-- another transaction holds, 'later' one of which nothing was done, because it and those before it have more receivers than one
-- statement makes messages for (with what it weighs by itself). first given: it has as many as that at once, and
-- DeliverToMore goes on.
with ask as materialized (
    select a.*,
           case when a.position is not null
                then (select true from romancy.instances i
                      where i.id = a.sender and i.token = a.token and i.worker = $10::bigint and i.status || '' = 'running' limit 1 for share) is true
                else true end as allowed,
           case when a.target is not null
                then (select coalesce(i.line, i.id) from romancy.instances i
                      where i.id = a.target and i.status in ('ready', 'running', 'waiting', 'stuck') limit 1)
                end as live, -- the line of a target that lives
           case when a.target is null
                then (select true from romancy.subscriptions s where s.channel = a.channel and s.mode = 'competing' limit 1) is true
                     or (select true from romancy.subscriptions s where s.channel = a.channel limit 1) is null
                end as shared,
           case when a.key is not null
                then (select true from romancy.sent_keys k where k.key = a.key and k.expires_at > clock_timestamp() limit 1) is true
                end as known,
           case when a.target is null
                then (1 + octet_length(a.payload) / 8192) * (select count(*) from (
                    select 1 from romancy.subscriptions s where s.channel = a.channel and s.mode = 'broadcast' limit $11::bigint + 1
                ) s)
                else 0 end as weight, -- receivers, in messages of 8 KB
           case when a.key is null then true
                when pg_try_advisory_lock_shared(hashtextextended(a.key, 'romancy.sent_keys'::regclass::oid::bigint))
                then pg_advisory_unlock_shared(hashtextextended(a.key, 'romancy.sent_keys'::regclass::oid::bigint))
                else false end as free
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[], $7::text[], $8::text[], $9::bigint[])
        with ordinality as a(sender, token, position, target, channel, payload, metadata, key, keep_us, ord)
), fitting as materialized (
    select a.*, a.allowed and a.free and ($12::boolean or a.together <= $11::bigint) as fits
    from (select a.*, sum(a.weight) over (order by a.ord)::bigint as together from ask a) a
), resolved as materialized (
    -- A run that has continued as new is reached through its former ids. What is sent to a run is for its line.
    select a.*, case when a.live is not null then a.target else heir.id end as receiver, coalesce(a.live, heir.line) as line
    from fitting a left join lateral (
        select i.id, i.line
        from romancy.instances former cross join lateral (
            select i.id, i.line from romancy.instances i where i.line = coalesce(former.line, former.id) and i.ended_at is null limit 1
        ) i
        where former.id = a.target and a.live is null and former.status || '' = 'continued'
        limit 1
    ) heir on true
), keyed as materialized (
    select a.ord, a.key, a.keep_us, row_number() over (partition by a.key order by a.ord) as copy
    from resolved a
    where a.key is not null and a.fits and (a.target is null or a.receiver is not null)
), claimed as (
    insert into romancy.sent_keys as k (key, expires_at)
    select y.key, clock_timestamp() + y.keep_us * interval '1 microsecond' from keyed y where y.copy = 1 order by y.key
    on conflict (key) do update set expires_at = excluded.expires_at where k.expires_at <= clock_timestamp()
    returning k.key
), first as materialized (
    -- is true: looked up in a hash of the few, not joined.
    select y.ord from keyed y where y.copy = 1 and (y.key in (select c.key from claimed c)) is true
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select a.sender, a.position, a.token, $10::bigint, case when a.target is null then 'publish' else 'send' end, a.channel,
           case when a.target is not null and a.receiver is null and a.known is not true then '{"undeliverable":true}'::json end
    from resolved a
    where a.position is not null and a.fits
    order by a.ord
), sent as (
    insert into romancy.mailbox (channel, mode, receiver, sender, payload, metadata)
    select g.channel, g.mode, g.receiver, g.sender, g.payload::json, g.metadata::json
    from (
        select a.sender, a.channel, a.payload, a.metadata, a.fits, a.key, a.ord, 'direct' as mode, a.line as receiver from resolved a where a.receiver is not null
        union all
        select a.sender, a.channel, a.payload, a.metadata, a.fits, a.key, a.ord, 'competing', null from fitting a where a.shared
        union all
        select a.sender, a.channel, a.payload, a.metadata, a.fits, a.key, a.ord, 'broadcast', s.instance_id
        from fitting a cross join lateral (
            select s.instance_id from romancy.subscriptions s where s.channel = a.channel and s.mode = 'broadcast'
            order by s.instance_id limit greatest($11::bigint / (1 + octet_length(a.payload) / 8192), 1)
        ) s
        where a.target is null
    ) g
    where g.fits and (g.key is null or g.ord in (select f.ord from first f))
    order by g.ord
    returning id, channel, mode, receiver
)
select 'line', null::bigint, null::bigint, r.line, null, r.receiver from resolved r where r.receiver <> r.line
union all
select 'sent', null, id, channel, mode, receiver from sent
union all
select 'done', a.ord, case when a.lost then 0 else 1 end, null,
       case when a.lost then (select i.status from romancy.instances i where i.id = a.target limit 1) end, null
from (select r.ord, r.target, r.target is not null and r.receiver is null and r.known is not true as lost
      from resolved r where r.fits) a
union all
select case when a.free then 'later' else 'held' end, a.ord, a.weight, null, null, null from fitting a where a.allowed and not a.fits;

-- name: DeliverToMore
-- What message $1 brings goes to the next subscribers of its channel after the run given. DeliverMessages has come before in the same
-- transaction, with first.
with message as materialized (
    select m.channel, m.sender, m.payload, m.metadata from romancy.mailbox m where m.id = $1::bigint
), more as materialized (
    select s.instance_id
    from message m cross join lateral (
        select s.instance_id from romancy.subscriptions s
        where s.channel = m.channel and s.mode = 'broadcast' and s.instance_id > $2::text
        order by s.instance_id limit $3::bigint
    ) s
)
insert into romancy.mailbox (channel, mode, receiver, sender, payload, metadata)
select m.channel, 'broadcast', r.instance_id, m.sender, m.payload, m.metadata from message m cross join more r
order by r.instance_id
returning id, channel, receiver;

-- name: DeliverDirect
-- DeliverMessages for a single message to one run, without a key.
with sender as materialized (
    select case when $3::integer is null then true
                else (select true from romancy.instances i
                      where i.id = $1::text and i.token = $2::bigint and i.worker = $8::bigint and i.status || '' = 'running' limit 1 for share) is true end as allowed
), target as materialized (
    select i.id, i.status, coalesce(i.line, i.id) as line, i.status in ('ready', 'running', 'waiting', 'stuck') as live
    from romancy.instances i where i.id = $4::text
), receiver as materialized (
    -- A run that has continued as new is reached through its former ids. What is sent to a run is for its line.
    select t.line,
           case when t.live then t.id
                when t.status = 'continued'
                then (select i.id from romancy.instances i where i.line = t.line and i.ended_at is null limit 1)
                end as id
    from target t
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select $1::text, $3::integer, $2::bigint, $8::bigint, 'send', $5::text,
           case when (select r.id from receiver r) is null then '{"undeliverable":true}'::json end
    from sender s
    where $3::integer is not null and s.allowed
), sent as (
    insert into romancy.mailbox (channel, mode, receiver, sender, payload, metadata)
    select $5::text, 'direct', r.line, $1::text, ($6::text)::json, ($7::text)::json
    from sender s cross join receiver r
    where s.allowed and r.id is not null
    returning id, channel, mode
)
select 'sent', null::bigint, id, channel, mode, (select r.id from receiver r) from sent
union all
select 'done', 1, case when l.lost then 0 else 1 end, null, case when l.lost then (select t.status from target t) end, null
from (select (select r.id from receiver r) is null as lost from sender s where s.allowed) l;

-- name: LockSendKey
-- Waits for the other transactions that send under the key. A statement of its own before DeliverMessages, which then sees
-- what they have done.
select pg_advisory_xact_lock(hashtextextended($1::text, 'romancy.sent_keys'::regclass::oid::bigint));

-- name: DiscardSentKeys
with found as materialized (
    select k.key
    from romancy.sent_keys k
    where k.expires_at <= statement_timestamp()
    order by k.expires_at
    limit $1::bigint
    for update skip locked
), gone as (
    delete from romancy.sent_keys k using found f where k.key = any (array[f.key]) returning k.key
)
select count(*) from gone;

-- name: LockChannels
-- Two that subscribe to a channel in different modes at the same moment must not both find it free. Held until the commit of
-- the flush, which waits for nobody else; in one order, so that two flushes do not wait for each other.
select pg_advisory_xact_lock(hashtextextended(c.channel, 'romancy.subscriptions'::regclass::oid::bigint))
from (select distinct a.channel from unnest($1::text[]) as a(channel) order by 1) c;

-- name: SubscribeRuns
-- A channel has one mode at a time, for as long as anybody is subscribed. mode null unsubscribes. LockChannels comes before it. The
-- run's row is locked as by AppendHistory.
with ask as materialized (
    select *
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[])
        with ordinality as a(id, token, position, channel, mode, ord)
), owned as materialized (
    select a.*, (select s.mode from romancy.subscriptions s
                 where s.channel = a.channel and s.mode = any (array_remove(array['broadcast', 'competing', 'direct'], a.mode))
                   and s.instance_id <> a.id limit 1) as held
    from ask a cross join lateral (
        select 1 from romancy.instances i where i.id = a.id and i.token = a.token and i.worker = $6::bigint and i.status || '' = 'running' for share
    ) fence
), decided as materialized (
    -- Of those in this batch the first that can be has its mode, and the others have to agree with it.
    select f.*, coalesce(f.held, case when f.mode <> f.leading then f.leading end) as taken
    from (select o.*, first_value(o.mode) over (partition by o.channel order by o.mode is null or o.held is not null, o.ord) as leading
          from owned o) f
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select d.id, d.position, d.token, $6::bigint, case when d.mode is null then 'unsubscribe' else 'subscribe' end, d.channel,
           json_build_object('mode', d.mode, 'taken', case when d.mode is not null then d.taken end)
    from decided d
), added as (
    insert into romancy.subscriptions (instance_id, channel, mode)
    select d.id, d.channel, d.mode from decided d where d.mode is not null and d.taken is null
    on conflict (instance_id, channel) do update set mode = excluded.mode
), removed as (
    delete from romancy.subscriptions s using decided d where d.mode is null and s.instance_id = any (array[d.id]) and s.channel = any (array[d.channel])
)
select d.ord, case when d.mode is not null then d.taken end from decided d;
