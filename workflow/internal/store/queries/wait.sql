-- name: WaitRuns
-- One alone that neither competes nor has the mail of a line goes by WaitRun, which has to do the same.
-- A run that waits takes a message that is there, else notes that its deadline has passed, else parks. timer_position: the
-- deadline is new and is recorded there. position: where the outcome of a receive is recorded; null for a sleep. since: where
-- messages for whoever competes begin, because those that passed before are stepped over while an old snapshot is open.
-- kind: of the record. channels: all that a parked run listens to, as JSON; null: the one. nudge_us: when to wake it besides,
-- without a record. stay: do not park. heeds: a run that is to be cancelled is told so instead.
with ask as materialized (
    select a.*, case when a.at_us is not null then to_timestamp(0) + a.at_us * interval '1 microsecond'
                     else clock_timestamp() + a.delay_us * interval '1 microsecond' end as fires_at
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::boolean[], $6::integer[], $7::text[], $8::bigint[], $9::bigint[], $10::bigint[],
                $11::text[], $12::text[], $13::bigint[], $14::boolean[], $15::boolean[])
        with ordinality as a(id, token, position, channel, competing, timer_position, timer_name, delay_us, at_us, since,
                             kind, channels, nudge_us, stay, heeds, ord)
), owned as materialized (
    select a.*, i.cancelled, i.line, case when not i.cancelled then a.channel end as open_channel
    from ask a cross join lateral (
        select a.heeds and i.cancel is not null as cancelled, i.line from romancy.instances i
        where i.id = a.id and i.token = a.token and i.worker = $16::bigint and i.status || '' = 'running'
        for no key update
    ) i
), addressed as materialized (
    -- What was published to the run, or sent to it by an older build, and what was sent to its line: the first of them.
    select o.*, own.message_id as own_id, own.message as own_message
    from owned o left join lateral (
        select either.message_id, either.message
        from (
            select run.* from (
                select m.id as message_id,
                       json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                         'metadata', m.metadata, 'body', m.payload) as message
                from romancy.mailbox m
                where m.receiver = o.id and m.channel = o.open_channel
                order by m.id + 0
                limit 1
                for update skip locked
            ) run
            union all
            select line.* from (
                select m.id as message_id,
                       json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                         'metadata', m.metadata, 'body', m.payload) as message
                from romancy.mailbox m
                where m.receiver || '' = o.line and m.mode = 'direct' and m.channel = o.open_channel
                order by m.id + 0
                limit 1
                for update skip locked
            ) line
        ) either
        order by either.message_id
        limit 1
    ) own on true
), ranked as materialized (
    -- Among those that compete in this batch and have no message of their own, each looks at a message further down.
    select a.*, row_number() over (partition by a.open_channel, a.competing and a.own_id is null order by a.ord) - 1 as rank
    from addressed a
), taken as materialized (
    select r.*, coalesce(r.own_id, shared.message_id) as message_id, coalesce(r.own_message, shared.message) as message
    from ranked r left join lateral (
        select m.id as message_id,
               json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                 'metadata', m.metadata, 'body', m.payload) as message
        from romancy.mailbox m
        where r.competing and r.own_id is null and m.receiver is null and m.channel = r.open_channel and m.id + 0 >= r.since
        order by m.id + 0
        limit 1 offset r.rank
        for update skip locked
    ) shared on true
), outcome as materialized (
    -- A lock that others gave up meanwhile can make two of them find one message: the first has it.
    select t.*, case when t.cancelled then 'cancelled'
                     when t.message_id is not null and t.copy = 1 then 'message'
                     when t.fires_at <= clock_timestamp() then 'due'
                     when t.stay then 'nothing'
                     else 'parked' end as outcome
    from (select taken.*, row_number() over (partition by message_id order by ord) as copy from taken) t
), gone as (
    delete from romancy.mailbox m using outcome o where m.id = any (array[o.message_id]) and o.outcome = 'message'
), timers as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, o.timer_position, o.token, $16::bigint, 'timer', o.timer_name,
           json_build_object('fires_at_us', (extract(epoch from o.fires_at) * 1000000)::bigint)
    from outcome o
    where o.timer_position is not null and o.outcome <> 'cancelled'
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, o.position, o.token, $16::bigint, o.kind, case when o.kind = 'receive' then o.channel else '' end,
           case when o.outcome = 'message' then o.message else '{"timeout":true}'::json end
    from outcome o
    where o.position is not null and o.outcome in ('message', 'due')
), parked as (
    update romancy.instances i
    set status = 'waiting', wake_at = least(o.fires_at, o.nudge_at), wake_position = coalesce(o.timer_position, o.position),
        wake_channels = case when o.channels is not null then array(select json_array_elements_text(o.channels::json))
                             when o.channel is not null then array[o.channel] end
    from (select outcome.*, to_timestamp(0) + outcome.nudge_us * interval '1 microsecond' as nudge_at from outcome) o
    where i.id = any (array[o.id]) and o.outcome = 'parked'
)
select o.ord, o.outcome, case when o.outcome = 'message' then o.message::text end,
       (extract(epoch from o.fires_at) * 1000000)::bigint,
       (extract(epoch from least(o.fires_at, to_timestamp(0) + o.nudge_us * interval '1 microsecond') - clock_timestamp()) * 1000000)::bigint,
       case when o.outcome = 'message' and o.own_id is null then o.message_id end,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint
from outcome o;

-- name: WaitRun
-- WaitRuns for a single one that neither competes nor has the mail of a line, as most are that come to a wait alone.
with owned as materialized (
    select i.id, $13::boolean and i.cancel is not null as cancelled,
           case when $8::bigint is not null then to_timestamp(0) + $8::bigint * interval '1 microsecond'
                else clock_timestamp() + $7::bigint * interval '1 microsecond' end as fires_at
    from romancy.instances i
    where i.id = $1::text and i.token = $2::bigint and i.worker = $14::bigint and i.status || '' = 'running'
    for no key update
), own as materialized (
    select m.id, json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                   'metadata', m.metadata, 'body', m.payload) as message
    from romancy.mailbox m
    where m.receiver = (select o.id from owned o where not o.cancelled) and m.channel = $4::text
    order by m.id + 0
    limit 1
    for update skip locked
), outcome as materialized (
    select o.id, o.fires_at, m.id as message_id, m.message,
           case when o.cancelled then 'cancelled'
                when m.id is not null then 'message'
                when o.fires_at <= clock_timestamp() then 'due'
                when $12::boolean then 'nothing'
                else 'parked' end as outcome
    from owned o left join own m on true
), gone as (
    delete from romancy.mailbox m where m.id = (select o.message_id from outcome o)
), timers as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, $5::integer, $2::bigint, $14::bigint, 'timer', $6::text,
           json_build_object('fires_at_us', (extract(epoch from o.fires_at) * 1000000)::bigint)
    from outcome o
    where $5::integer is not null and o.outcome <> 'cancelled'
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, $3::integer, $2::bigint, $14::bigint, $9::text, case when $9::text = 'receive' then $4::text else '' end,
           case when o.outcome = 'message' then o.message else '{"timeout":true}'::json end
    from outcome o
    where $3::integer is not null and o.outcome in ('message', 'due')
), parked as (
    update romancy.instances i
    set status = 'waiting', wake_at = least(o.fires_at, to_timestamp(0) + $11::bigint * interval '1 microsecond'),
        wake_position = coalesce($5::integer, $3::integer),
        wake_channels = case when $10::text is not null then array(select json_array_elements_text($10::json))
                             when $4::text is not null then array[$4::text] end
    from outcome o
    where i.id = any (array[o.id]) and o.outcome = 'parked'
)
select 1, o.outcome, case when o.outcome = 'message' then o.message::text end,
       (extract(epoch from o.fires_at) * 1000000)::bigint,
       (extract(epoch from least(o.fires_at, to_timestamp(0) + $11::bigint * interval '1 microsecond') - clock_timestamp()) * 1000000)::bigint,
       null::bigint,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint
from outcome o;

-- name: WakeRuns
-- One alone that neither competes nor has the mail of a line goes by WakeRun, which has to do the same.
-- A parked run held in memory here: the message or the deadline it waits for, its outcome and the change of owner are one
-- statement. Rows that somebody else is busy with are left alone, and a worker whose lease has run out wakes nothing.
-- nudged: the moment it waits for is not the deadline of what is recorded.
with ask as materialized (
    select *
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::boolean[], $7::bigint[], $8::text[], $9::boolean[])
        with ordinality as a(id, token, position, channel, competing, since, kind, nudged, ord)
), owned as materialized (
    select a.*, i.wake_at, i.line
    from ask a cross join lateral (
        select i.wake_at, i.line from romancy.instances i
        where i.id = a.id and i.token = a.token and i.worker = $6::bigint and i.status || '' = 'waiting'
          and exists (select 1 from romancy.workers me where me.id = $6::bigint and me.lease_until > clock_timestamp())
        for no key update of i skip locked
    ) i
), addressed as materialized (
    -- What was published to the run, or sent to it by an older build, and what was sent to its line: the first of them.
    select o.*, own.message_id as own_id, own.message as own_message
    from owned o left join lateral (
        select either.message_id, either.message
        from (
            select run.* from (
                select m.id as message_id,
                       json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                         'metadata', m.metadata, 'body', m.payload) as message
                from romancy.mailbox m
                where m.receiver = o.id and m.channel = o.channel
                order by m.id + 0
                limit 1
                for update skip locked
            ) run
            union all
            select line.* from (
                select m.id as message_id,
                       json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                         'metadata', m.metadata, 'body', m.payload) as message
                from romancy.mailbox m
                where m.receiver || '' = o.line and m.mode = 'direct' and m.channel = o.channel
                order by m.id + 0
                limit 1
                for update skip locked
            ) line
        ) either
        order by either.message_id
        limit 1
    ) own on true
), ranked as materialized (
    -- Among those that compete in this batch and have no message of their own, each looks at a message further down.
    select a.*, row_number() over (partition by a.channel, a.competing and a.own_id is null order by a.ord) - 1 as rank
    from addressed a
), taken as materialized (
    select r.*, coalesce(r.own_id, shared.message_id) as message_id, coalesce(r.own_message, shared.message) as message
    from ranked r left join lateral (
        select m.id as message_id,
               json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                 'metadata', m.metadata, 'body', m.payload) as message
        from romancy.mailbox m
        where r.competing and r.own_id is null and m.receiver is null and m.channel = r.channel and m.id + 0 >= r.since
        order by m.id + 0
        limit 1 offset r.rank
        for update skip locked
    ) shared on true
), outcome as materialized (
    -- A lock that others gave up meanwhile can make two of them find one message: the first has it.
    select t.*, case when t.message_id is not null and t.copy = 1 then 'message'
                     when t.wake_at <= clock_timestamp() then case when t.nudged then 'nudged' else 'due' end
                     else 'parked' end as outcome
    from (select taken.*, row_number() over (partition by message_id order by ord) as copy from taken) t
), gone as (
    delete from romancy.mailbox m using outcome o where m.id = any (array[o.message_id]) and o.outcome = 'message'
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, o.position, o.token + 1, $6::bigint, o.kind, case when o.kind = 'receive' then o.channel else '' end,
           case when o.outcome = 'message' then o.message else '{"timeout":true}'::json end
    from outcome o
    where o.position is not null and o.outcome in ('message', 'due')
), resumed as (
    update romancy.instances i
    set status = 'running', worker = $6::bigint, token = i.token + 1
    from outcome o
    where i.id = any (array[o.id]) and o.outcome <> 'parked'
)
select o.ord, o.outcome, case when o.outcome = 'message' then o.message::text end,
       (extract(epoch from o.wake_at) * 1000000)::bigint,
       (extract(epoch from o.wake_at - clock_timestamp()) * 1000000)::bigint,
       case when o.outcome = 'message' and o.own_id is null then o.message_id end,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint
from outcome o;

-- name: WakeRun
-- WakeRuns for a single one that neither competes nor has the mail of a line. Most runs are woken alone, and this is most of the time that takes.
with owned as materialized (
    select i.id, i.wake_at from romancy.instances i
    where i.id = $1::text and i.token = $2::bigint and i.worker = $5::bigint and i.status || '' = 'waiting'
      and exists (select 1 from romancy.workers me where me.id = $5::bigint and me.lease_until > clock_timestamp())
    for no key update of i skip locked
), own as materialized (
    select m.id, json_build_object('id', m.id, 'channel', m.channel, 'sender', m.sender, 'sent_at', m.created_at,
                                   'metadata', m.metadata, 'body', m.payload) as message
    from romancy.mailbox m
    where m.receiver = (select o.id from owned o) and m.channel = $4::text
    order by m.id + 0
    limit 1
    for update skip locked
), outcome as materialized (
    select o.id, o.wake_at, m.id as message_id, m.message,
           case when m.id is not null then 'message'
                when o.wake_at <= clock_timestamp() then case when $7::boolean then 'nudged' else 'due' end
                else 'parked' end as outcome
    from owned o left join own m on true
), gone as (
    delete from romancy.mailbox m where m.id = (select o.message_id from outcome o)
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, $3::integer, $2::bigint + 1, $5::bigint, $6::text, case when $6::text = 'receive' then $4::text else '' end,
           case when o.outcome = 'message' then o.message else '{"timeout":true}'::json end
    from outcome o
    where $3::integer is not null and o.outcome in ('message', 'due')
), resumed as (
    update romancy.instances i
    set status = 'running', worker = $5::bigint, token = i.token + 1
    where i.id = (select o.id from outcome o where o.outcome <> 'parked')
)
select 1, o.outcome, o.message::text,
       (extract(epoch from o.wake_at) * 1000000)::bigint,
       (extract(epoch from o.wake_at - clock_timestamp()) * 1000000)::bigint,
       null::bigint,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint
from outcome o;

-- name: LookForMail
-- The look after a park has committed: which of these runs have mail that came in between?
select a.ord
from unnest($1::text[], $2::text[], $3::boolean[], $4::bigint[], $5::boolean[]) with ordinality as a(id, channel, competing, since, heir, ord)
where (select true from romancy.mailbox m where m.receiver = a.id and m.channel = a.channel limit 1)
   or (a.heir and (select true from romancy.mailbox m
       where m.receiver || '' = (select i.line from romancy.instances i where i.id = a.id) and m.mode = 'direct' and m.channel = a.channel limit 1))
   or (a.competing and (select true from romancy.mailbox m where m.receiver is null and m.channel = a.channel and m.id + 0 >= a.since limit 1));

-- name: LetGo
-- Parked runs that this worker no longer holds in memory.
update romancy.instances i
set worker = null
from unnest($1::text[], $2::bigint[]) as a(id, token)
where i.id = any (array[a.id]) and i.token = a.token and i.worker = $3::bigint and i.status || '' = 'waiting';

-- name: ParkedRuns
-- What has become of runs that are, or were, parked in this worker's memory, and the microseconds until they are due.
select i.id, i.status, i.token, coalesce(i.worker, 0), (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint
from unnest($1::text[]) as a(id) cross join lateral (
    select i.id, i.status, i.token, i.worker, i.wake_at from romancy.instances i where i.id = a.id offset 0
) i;

-- name: RouseRuns
-- Parked runs that this worker has, or had, in memory, and that are to be executed to look at what they wait for. With another
-- token, so that what a wake without an answer has left here owns nothing. Returned: the workflow of each that is ready now, and null
-- for each whose row is held at the moment. The others are not parked under that token any more.
with parked as materialized (
    select a.id, a.token
    from unnest($1::text[], $2::bigint[]) as a(id, token) cross join lateral (
        select 1 from romancy.instances i
        where i.id = a.id and i.token = a.token and i.status || '' = 'waiting' and coalesce(i.worker, $3::bigint) = $3::bigint offset 0
    ) i
), found as materialized (
    select i.id
    from parked p cross join lateral (
        select i.id from romancy.instances i
        where i.id = p.id and i.token = p.token and i.status || '' = 'waiting' and coalesce(i.worker, $3::bigint) = $3::bigint
        for no key update of i skip locked
    ) i
), roused as (
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null, token = i.token + 1
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow
)
select r.id, r.workflow from roused r
union all
select p.id, null from parked p where (p.id in (select f.id from found f)) is not true;

-- name: TakeMore
-- Up to $5 messages more of a channel, at once, for a run that has just received one there: those sent to it, and, if it
-- competes ($6), those for whoever competes, from $7 on; no more than $8 bytes in all. They become one record. No row: the
-- run is not owned any more. Also returned: whether messages for whoever competes are left that others have found locked meanwhile.
with owned as materialized (
    select i.id, i.token, i.line from romancy.instances i
    where i.id = $1::text and i.token = $2::bigint and i.worker = $9::bigint and i.status || '' = 'running'
    for no key update
), own as materialized (
    select m.id, m.channel, m.sender, m.created_at, m.metadata, m.payload
    from owned o cross join lateral (
        select run.* from (
            select * from romancy.mailbox m
            where m.receiver = o.id and m.channel = $4::text
            order by m.id + 0
            limit $5::integer
            for update skip locked
        ) run
        union all
        select line.* from (
            select * from romancy.mailbox m
            where m.receiver || '' = o.line and m.mode = 'direct' and m.channel = $4::text
            order by m.id + 0
            limit $5::integer
            for update skip locked
        ) line
    ) m
    order by m.id
    limit $5::integer
), shared as materialized (
    select m.id, m.channel, m.sender, m.created_at, m.metadata, m.payload
    from owned o cross join lateral (
        select * from romancy.mailbox m
        where $6::boolean and m.receiver is null and m.channel = $4::text and m.id + 0 >= $7::bigint
        order by m.id + 0
        limit $5::integer - (select count(*) from own)
        for update skip locked
    ) m
), small as materialized (
    -- As they are stored, first: none is unpacked that cannot be among those that are taken.
    select c.*
    from (
        select u.*, sum(u.stored) over (order by u.common, u.id) - u.stored as stored_before
        from (
            select v.*, pg_column_size(v.payload) + coalesce(pg_column_size(v.metadata), 0) as stored
            from (select own.*, false as common from own union all select shared.*, true from shared) v
        ) u
    ) c
    where c.stored_before < $8::bigint
), taken as materialized (
    select b.*
    from (
        select f.*, sum(f.size) over (order by f.common, f.id) - f.size as before
        from (
            select s.*, octet_length(s.payload::text) + coalesce(octet_length(s.metadata::text), 0) as size
            from small s
        ) f
    ) b
    where b.before + b.size <= $8::bigint
), gone as (
    delete from romancy.mailbox m using taken t where m.id = any (array[t.id])
), messages as materialized (
    select coalesce(json_agg(json_build_object('id', t.id, 'channel', t.channel, 'sender', t.sender, 'sent_at', t.created_at,
                                               'metadata', t.metadata, 'body', t.payload) order by t.id), '[]') as list
    from taken t
), recorded as (
    insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
    select o.id, $3::integer, o.token, $9::bigint, 'receive_more', $4::text, m.list
    from owned o cross join messages m
)
select m.list::text, (select max(t.id) from taken t where t.common),
       (select count(*) from shared) > (select count(*) from taken t where t.common)
from owned o cross join messages m;
