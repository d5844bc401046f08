-- name: SweepMail
-- Parked runs with mail become ready. Driven by the mailbox, page by page after $1; the first page tells where the mailbox
-- begins. A run that a live, listening worker holds
-- in memory is left to that worker for $3 microseconds: it needs help only if the notification was lost. What was sent to a run
-- while it continued as new follows it: such messages come back with their new receiver, in place of a run and its workflow,
-- and runs whose rows are held at the moment without a workflow, with the channel.
with page as materialized (
    select m.id, m.channel, m.receiver, m.created_at
    from romancy.mailbox m
    where m.id > $1::bigint
    order by m.id
    limit $2::bigint
), shared as materialized (
    select p.channel, min(p.created_at) as created_at, count(*) as messages
    from page p where p.receiver is null group by p.channel
), candidates as materialized (
    select p.receiver as id, p.channel, p.created_at from page p where p.receiver is not null
    union all
    select s.instance_id, h.channel, h.created_at
    from shared h cross join lateral (
        select s.instance_id
        from romancy.subscriptions s cross join lateral (
            select 1 from romancy.instances i
            where i.id = s.instance_id and i.status || '' = 'waiting' and h.channel = any (i.wake_channels) offset 0
        ) waiting
        where s.channel = h.channel and s.mode = 'competing'
        limit h.messages
    ) s
), mailed as materialized (
    select i.id, c.channel
    from (select c.id, c.channel, min(c.created_at) as created_at from candidates c group by c.id, c.channel) c
    cross join lateral (
        select i.id from romancy.instances i
        where i.id = c.id and i.status || '' = 'waiting' and c.channel = any (i.wake_channels)
          and (c.created_at <= clock_timestamp() - $3::bigint * interval '1 microsecond'
               or not exists (select 1 from romancy.workers w
                              where w.id = i.worker and w.listening and w.lease_until > clock_timestamp()))
        offset 0
    ) i
), found as materialized (
    select i.id
    from mailed l cross join lateral (
        select i.id from romancy.instances i
        where i.id = l.id and i.status || '' = 'waiting' and i.wake_channels is not null
        for no key update of i skip locked
    ) i
), woken as (
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow
), strayed as materialized (
    select letter.id, romancy.heir(p.receiver) as heir
    from page p cross join lateral (
        select 1 from romancy.instances i where i.id = p.receiver and i.status || '' = 'continued' offset 0
    ) former cross join lateral (
        select m.id from romancy.mailbox m
        where m.id = p.id and m.receiver = p.receiver and m.mode = 'direct'
        for update skip locked
    ) letter
), forwarded as (
    update romancy.mailbox m set receiver = s.heir from strayed s where m.id = any (array[s.id]) and s.heir is not null
    returning m.id, m.channel, m.receiver
)
select (select min(id) from page), (select max(id) from page), (select count(*) from page), f.id, f.workflow, f.message, f.channel
from (select 1) as one left join (
    select w.id, w.workflow, null::bigint as message, null::text as channel from woken w
    union all
    select l.id, null, null, l.channel from mailed l where (l.id in (select f.id from found f)) is not true
    union all
    select o.receiver, null, o.id, o.channel from forwarded o
) f on true;

-- name: SweepMailFor
-- The same for runs ($1) and for the subscribers of channels ($2) that a message was announced for, unless a live, listening
-- worker holds them in memory. Messages for whoever competes count on those channels, from $3 on. A run may be one that has
-- continued as new. Runs whose rows are held at the moment come back without a workflow.
with candidates as materialized (
    select a.id from unnest($1::text[]) as a(id)
    union
    select s.instance_id
    from unnest($2::text[]) as c(name) cross join lateral (
        select s.instance_id from romancy.subscriptions s where s.channel = c.name offset 0
    ) s
), mailed as materialized (
    select i.id
    from candidates c cross join lateral (
        select i.id from romancy.instances i
        where i.id = c.id and i.status || '' = 'waiting' and i.wake_channels is not null
          and not exists (select 1 from romancy.workers w
                          where w.id = i.worker and w.listening and w.lease_until > clock_timestamp())
          and (select true from unnest(i.wake_channels) as on_channel(name)
               where (select true from romancy.mailbox m where m.receiver = i.id and m.channel = on_channel.name limit 1)
                  or ((select s.mode from romancy.subscriptions s where s.instance_id = i.id and s.channel = on_channel.name) = 'competing'
                      and (select true from romancy.mailbox m
                               where m.receiver is null and m.channel = on_channel.name
                                 and m.id + 0 >= (select c.since from unnest($2::text[], $3::bigint[]) as c(name, since)
                                                  where c.name = on_channel.name limit 1)
                               limit 1))
               limit 1)
        offset 0
    ) i
), found as materialized (
    select i.id
    from mailed l cross join lateral (
        select i.id from romancy.instances i
        where i.id = l.id and i.status || '' = 'waiting' and i.wake_channels is not null
        for no key update of i skip locked
    ) i
), woken as (
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow
), strayed as materialized (
    select letter.id, romancy.heir(a.id) as heir
    from unnest($1::text[]) as a(id) cross join lateral (
        select 1 from romancy.instances i where i.id = a.id and i.status || '' = 'continued' offset 0
    ) former cross join lateral (
        select m.id from romancy.mailbox m
        where m.receiver = a.id and m.mode = 'direct'
        for update skip locked
    ) letter
), forwarded as (
    update romancy.mailbox m set receiver = s.heir from strayed s where m.id = any (array[s.id]) and s.heir is not null
    returning m.id, m.channel, m.receiver
)
select w.id, w.workflow, null::bigint, null::text from woken w
union all
select l.id, null, null, null from mailed l where (l.id in (select f.id from found f)) is not true
union all
select o.receiver, null, o.id, o.channel from forwarded o;

-- name: SweepDeadlines
-- Parked runs whose deadline has passed become ready: those waiting for messages ($1 true) or for time alone ($1 false). A
-- run that a live worker holds in memory is left to that worker for $3 microseconds. Begins at the low-water mark ($4,
-- microseconds; 0 for a full look), or $5 microseconds ago if the clock has been set back beyond that.
-- Also returned, whether there are rows or not: where the mark may be now; and of each run, how many microseconds late it is.
with found as materialized (
    select i.id, i.wake_at
    from romancy.instances i
    where i.status = 'waiting' and i.wake_at <= statement_timestamp()
      and i.wake_at >= least(to_timestamp(0) + $4::bigint * interval '1 microsecond', statement_timestamp() - $5::bigint * interval '1 microsecond')
      and (i.wake_channels is not null) = $1::boolean
      and (i.wake_at <= clock_timestamp() - $3::bigint * interval '1 microsecond'
           or not exists (select 1 from romancy.workers w where w.id = i.worker and w.lease_until > clock_timestamp()))
    order by i.wake_at
    limit $2::bigint
    for no key update skip locked
), woken as (
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow, (extract(epoch from clock_timestamp() - f.wake_at) * 1000000)::bigint as late_us
), seen as materialized (
    select least(statement_timestamp() - $5::bigint * interval '1 microsecond',
                 case when count(*) = $2::bigint then max(f.wake_at) end) as until
    from found f
)
select (extract(epoch from s.until) * 1000000)::bigint, w.id, w.workflow, w.late_us
from seen s left join woken w on true;

-- name: ColdDeadlines
-- Parked runs of the workflows $1 that no live worker holds in memory and whose deadline comes within $2 microseconds, from
-- the low-water mark $4 on.
select i.id, i.token, (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint
from romancy.instances i
where i.status = 'waiting' and i.wake_at <= statement_timestamp() + $2::bigint * interval '1 microsecond'
  and i.wake_at >= to_timestamp(0) + $4::bigint * interval '1 microsecond'
  and i.workflow = any ($1::text[])
  and not exists (select 1 from romancy.workers w where w.id = i.worker and w.lease_until > clock_timestamp())
order by i.wake_at
limit $3::bigint;

-- name: Glance
-- Whether there is anything for the sweeps, or for a claim of runs of the workflows $1, to find: the first of everything.
select (select true from romancy.workers w where w.lease_until <= clock_timestamp() limit 1) is true,
       (select true from romancy.instances i where i.status = 'running' and i.worker >= 0 limit 1) is true,
       (select true from romancy.instances i where i.status = 'ready' and i.workflow = any ($1::text[]) limit 1) is true,
       (select true from romancy.mailbox m where m.id > 0 limit 1) is true,
       (select true from romancy.event_waits w where w.instance_id > '' limit 1) is true,
       (select (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint
        from romancy.instances i where i.status = 'waiting' and i.wake_at >= to_timestamp(0) order by i.wake_at limit 1),
       (extract(epoch from clock_timestamp()) * 1000000)::bigint;

-- name: NextDeadline
-- Microseconds until the earliest deadline of any parked run, from the low-water mark $1 on; no row when none has one.
select (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint
from romancy.instances i
where i.status = 'waiting' and i.wake_at is not null and i.wake_at >= to_timestamp(0) + $1::bigint * interval '1 microsecond'
order by i.wake_at
limit 1;

-- name: DiscardOrphanedMail
-- Mail that reached a run while it ended, or was committed when retention had deleted it already: its sender has seen the run, so one
-- that is not there now is gone. Undelivered mail of a live run is never touched, what was sent to one that has
-- continued as new follows it, and what was sent to one that has failed is kept with it, as by FinishRuns.
with page as materialized (
    select m.id, m.mode, m.receiver from romancy.mailbox m where m.id > $1::bigint order by m.id limit $2::bigint
), ended as materialized (
    select p.id, case when i.status = 'continued' and p.mode = 'direct' then romancy.heir(p.receiver) end as heir
    from page p left join lateral (
        select i.status, i.compensating from romancy.instances i where i.id = p.receiver offset 0
    ) i on true
    where p.receiver is not null
      and (i.status is null or i.status in ('completed', 'failed', 'cancelled', 'continued')
                               and not (i.status = 'failed' and not i.compensating and p.mode = 'direct'))
), forwarded as (
    update romancy.mailbox m set receiver = e.heir from ended e where m.id = any (array[e.id]) and e.heir is not null
), gone as (
    delete from romancy.mailbox m using ended e where m.id = any (array[e.id]) and e.heir is null returning m.id
)
select (select max(id) from page), (select count(*) from page), (select count(*) from gone);
