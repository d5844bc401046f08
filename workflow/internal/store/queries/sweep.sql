-- name: SweepMail
-- Parked runs with mail become ready. Driven by the mailbox, page by page after $1; the first page tells where the mailbox
-- begins. A run that a live, listening worker holds
-- in memory is left to that worker for $3 microseconds: it needs help only if the notification was lost. What was sent to a run
-- that has continued as new is for the run of its line that lives. What an older build has addressed to the run itself is moved to the
-- line; such messages come back with that run, in place of a run and its workflow. Runs whose rows are held at the moment come back
-- without a workflow, with the channel.
with page as materialized (
    select m.id, m.channel, m.mode, m.receiver, m.created_at
    from romancy.mailbox m
    where m.id > $1::bigint
    order by m.id
    limit $2::bigint
), shared as materialized (
    select p.channel, min(p.created_at) as created_at, count(*) as messages
    from page p where p.receiver is null group by p.channel
), addressed as materialized (
    select p.id, p.channel, p.receiver, p.created_at, former.line, living.id as living
    from page p left join lateral (
        select coalesce(i.line, i.id) as line from romancy.instances i
        where i.id = p.receiver and p.mode = 'direct' and i.status || '' = 'continued' offset 0
    ) former on true left join lateral (
        select i.id from romancy.instances i where i.line = former.line and i.ended_at is null limit 1
    ) living on true
    where p.receiver is not null
), candidates as materialized (
    select coalesce(a.living, a.receiver) as id, a.channel, a.created_at from addressed a
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
    select letter.id, a.line, a.living
    from addressed a cross join lateral (
        select m.id from romancy.mailbox m
        where m.id = a.id and m.receiver = a.receiver
        for update skip locked
    ) letter
    where a.receiver <> a.line and a.living is not null
), moved as (
    update romancy.mailbox m set receiver = s.line from strayed s where m.id = any (array[s.id])
    returning m.id, m.channel, s.living
)
select (select min(id) from page), (select max(id) from page), (select count(*) from page), f.id, f.workflow, f.message, f.channel
from (select 1) as one left join (
    select w.id, w.workflow, null::bigint as message, null::text as channel from woken w
    union all
    select l.id, null, null, l.channel from mailed l where (l.id in (select f.id from found f)) is not true
    union all
    select o.living, null, o.id, o.channel from moved o
) f on true;

-- name: SweepMailFor
-- The same for runs ($1) and for the subscribers of channels ($2) that a message was announced for, unless a live, listening
-- worker holds them in memory. Messages for whoever competes count on those channels, from $3 on. A run may be one that has
-- continued as new. Of each run $4 strayed messages at most are moved, and of each channel as many subscribers looked at. Runs whose
-- rows are held at the moment come back without a workflow.
-- Of each run that has continued as new the run of its line that lives comes back too, unless it was made ready: a worker that has it
-- in memory has been told of the former one only.
-- Also returned, whether there are rows or not: whether something may be left, for SweepMail.
with asked as materialized (
    select a.id, former.line, living.id as living
    from unnest($1::text[]) as a(id) left join lateral (
        select coalesce(i.line, i.id) as line from romancy.instances i where i.id = a.id and i.status || '' = 'continued' offset 0
    ) former on true left join lateral (
        select i.id from romancy.instances i where i.line = former.line and i.ended_at is null limit 1
    ) living on true
), subscribed as materialized (
    select s.instance_id, c.name
    from unnest($2::text[]) as c(name) cross join lateral (
        select s.instance_id from romancy.subscriptions s where s.channel = c.name order by s.mode limit $4::bigint
    ) s
), candidates as materialized (
    select coalesce(a.living, a.id) as id from asked a
    union
    select s.instance_id from subscribed s
), mailed as materialized (
    select i.id
    from candidates c cross join lateral (
        select i.id from romancy.instances i
        where i.id = c.id and i.status || '' = 'waiting' and i.wake_channels is not null
          and not exists (select 1 from romancy.workers w
                          where w.id = i.worker and w.listening and w.lease_until > clock_timestamp())
          and (select true from unnest(i.wake_channels) as on_channel(name)
               where (select true from romancy.mailbox m where m.receiver = i.id and m.channel = on_channel.name limit 1)
                  or (select true from romancy.mailbox m
                      where m.receiver || '' = i.line and m.mode = 'direct' and m.channel = on_channel.name limit 1)
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
    select letter.id, a.id as receiver, a.line, a.living
    from asked a cross join lateral (
        select m.id from romancy.mailbox m
        where m.receiver || '' = a.id and m.mode = 'direct' and a.id <> a.line
        order by m.channel, m.id + 0
        limit $4::bigint
        for update skip locked
    ) letter
    where a.living is not null
), moved as (
    update romancy.mailbox m set receiver = s.line from strayed s where m.id = any (array[s.id])
    returning m.id, m.channel, s.living
)
select exists (select from subscribed s group by s.name having count(*) = $4::bigint)
       or exists (select from strayed s group by s.receiver having count(*) = $4::bigint), f.heir, f.id, f.workflow, f.message, f.channel
from (select 1) as one left join (
    select w.id, w.workflow, null::bigint as message, null::text as channel, false as heir from woken w
    union all
    select l.id, null, null, null, false from mailed l where (l.id in (select f.id from found f)) is not true
    union all
    select o.living, null, o.id, o.channel, false from moved o
    union all
    select distinct a.living, null, null::bigint, null, true from asked a
    where a.living is not null and (a.living in (select f.id from found f)) is not true
) f on true;

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
        from romancy.instances i where i.status = 'waiting' and i.wake_at >= to_timestamp(0) and i.wake_at < 'infinity' order by i.wake_at limit 1),
       (extract(epoch from clock_timestamp()) * 1000000)::bigint;

-- name: NextDeadline
-- Microseconds until the earliest deadline of any parked run, from the low-water mark $1 on; no row when none has one.
select (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint
from romancy.instances i
where i.status = 'waiting' and i.wake_at is not null and i.wake_at >= to_timestamp(0) + $1::bigint * interval '1 microsecond'
  and i.wake_at < 'infinity' -- by somebody's hand
order by i.wake_at
limit 1;

-- name: DiscardOrphanedMail
-- Mail that nobody receives any more: what a run had left when it ended, what reached it meanwhile, or was committed when retention had
-- deleted it already: its sender has seen the run, so one that is not there now is gone. Undelivered mail of a live run is never touched,
-- nor what is for a line of which a run lives; what was sent to one that has failed is kept with it, as by FinishRuns. Looks at $2
-- messages after $1 at most, and at no more than $3 bytes of them and one more. What others are busy with is left to them.
with next as materialized (
    select m.id, m.mode, m.receiver, pg_column_size(m.payload) as size from romancy.mailbox m where m.id > $1::bigint order by m.id limit $2::bigint
), page as materialized (
    select n.id, n.mode, n.receiver
    from (select next.*, sum(next.size) over (order by next.id) - next.size as before from next) n
    where n.before < $3::bigint
), addressed as materialized (
    -- The line: of a message to one run whose line has gone on without that run.
    select p.id, p.mode, p.receiver, i.status, i.status = 'failed' and not i.compensating as retryable,
           case when p.mode = 'direct' and coalesce(i.status, 'continued') = 'continued' then coalesce(i.line, p.receiver) end as line
    from page p left join lateral (
        select i.status, i.compensating, i.line from romancy.instances i where i.id = p.receiver offset 0
    ) i on true
    where p.receiver is not null
), ended as materialized (
    select a.id, a.receiver, a.line,
           coalesce((select true from romancy.instances i where i.line = a.line and i.ended_at is null limit 1),
                    (select true from romancy.instances i where i.line = a.line and i.status = 'failed' and not i.compensating limit 1)) is true as awaited
    from addressed a
    where (a.status is null or a.status in ('completed', 'failed', 'cancelled', 'continued'))
      and not (a.retryable is true and a.mode = 'direct')
), free as materialized (
    select e.id, e.line, e.awaited
    from ended e cross join lateral (
        select m.id from romancy.mailbox m where m.id = e.id and m.receiver = e.receiver for update skip locked
    ) letter
    where not (e.awaited and e.receiver = e.line)
), moved as (
    update romancy.mailbox m set receiver = f.line from free f where m.id = any (array[f.id]) and f.awaited
), gone as (
    delete from romancy.mailbox m using free f where m.id = any (array[f.id]) and not f.awaited returning m.id
)
select (select max(id) from page),
       (select count(*) from next) = $2::bigint or (select count(*) from page) < (select count(*) from next),
       (select count(*) from gone);
