-- name: RegisterWorker
-- Also returned, as by Heartbeat: what time it is, in microseconds since 1970.
insert into romancy.workers (id, label, listening, lease_until)
values ($4::bigint, $1::text, $2::boolean, clock_timestamp() + $3::bigint * interval '1 microsecond')
returning (extract(epoch from clock_timestamp()) * 1000000)::bigint;

-- name: Heartbeat
-- A lease that has run out is never revived. Also: in how many microseconds does the first lease of another worker end, and
-- how many others are there?
with beat as (
    update romancy.workers
    set lease_until = clock_timestamp() + $2::bigint * interval '1 microsecond', listening = $3::boolean
    where id = $1::bigint and lease_until > clock_timestamp()
    returning id
)
select (select count(*) from beat),
       (select (extract(epoch from min(w.lease_until) - clock_timestamp()) * 1000000)::bigint
        from romancy.workers w where w.id <> $1::bigint),
       (select count(*) from romancy.workers w where w.id <> $1::bigint),
       (extract(epoch from clock_timestamp()) * 1000000)::bigint;

-- name: DeregisterWorker
delete from romancy.workers where id = $1::bigint;

-- name: TakeOver
-- The runs of workers whose lease has run out become ready again, and stuck ($4: why) if $3 workers in a row have died with
-- them and had recorded nothing. What the last owner has recorded says that it was not the run that killed it; what anybody has
-- recorded since an earlier death, that the count begins anew. Only the last 1,000 records and attempts are looked at. $1 runs at most,
-- and no more are locked: the limit at the end stops the loop over the workers. From the second death
-- on a run waits for a moment, longer each time and at random: who died beside the one that kills does not meet it again.
-- A full look ($2) finds also those of a worker that was
-- buried while a write of its was still on the way: owners steps through the index from one owner to the next, over all that
-- has ever been running if an old snapshot is open.
with recursive owners (id) as (
    (select i.worker from romancy.instances i where $2::boolean and i.status = 'running' order by i.worker limit 1)
    union all
    select (select i.worker from romancy.instances i where i.status = 'running' and i.worker > o.id order by i.worker limit 1)
    from owners o where o.id is not null
), dead as materialized (
    select o.id from owners o
    where o.id is not null
      and not exists (select 1 from romancy.workers w where w.id = o.id and w.lease_until > clock_timestamp())
    union
    select w.id from romancy.workers w where w.lease_until <= clock_timestamp()
), found as materialized (
    select r.*
    from dead d cross join lateral (
        select i.id, i.token, i.worker, i.deaths, i.died_at from romancy.instances i
        where i.status = 'running' and i.worker = d.id
        limit $1::bigint
        for no key update skip locked
    ) r
    limit $1::bigint
), counted as materialized (
    select f.id, case when h.own then 0
                      when h.since or (select true
                                       from (select a.failed_at from romancy.attempts a where a.instance_id = f.id order by a.position desc, a.attempt desc limit 1000) a
                                       where a.failed_at > f.died_at limit 1) then 1
                      else least(f.deaths + 1, 32767) end as deaths
    from found f cross join lateral (
        select coalesce(bool_or(h.token = f.token and coalesce(h.worker, f.worker) = f.worker), false) as own, coalesce(bool_or(h.created_at > f.died_at), false) as since
        from (select h.token, h.worker, h.created_at from romancy.history h where h.instance_id = f.id order by h.position desc limit 1000) h
    ) h
)
update romancy.instances i
set status = case when c.deaths >= $3::integer then 'stuck' when c.deaths > 1 then 'waiting' else 'ready' end,
    ready_at = clock_timestamp(), worker = null, wake_position = null, wake_channels = null,
    wake_at = case when c.deaths > 1 and c.deaths < $3::integer then clock_timestamp() + random() * 2 ^ least(c.deaths, 8) * interval '1 second' end,
    deaths = c.deaths, died_at = clock_timestamp(), error = case when c.deaths >= $3::integer then $4::text::json end
from counted c
where i.id = any (array[c.id])
returning i.id, i.workflow, i.token, i.status = 'stuck', (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint;

-- name: BuryWorkers
-- Dead workers that own nothing any more: up to 1,000 at once.
with found as materialized (
    select w.id
    from romancy.workers w
    where w.lease_until <= clock_timestamp()
      and (select true from romancy.instances i where i.status = 'running' and i.worker = w.id limit 1) is null
    limit 1000
    for update skip locked
)
delete from romancy.workers w using found f where w.id = any (array[f.id]);
