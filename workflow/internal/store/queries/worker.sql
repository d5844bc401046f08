-- name: RegisterWorker
-- Also returned, as by Heartbeat: what time it is, in microseconds since 1970.
insert into romancy.workers (label, listening, lease_until)
values ($1::text, $2::boolean, clock_timestamp() + $3::bigint * interval '1 microsecond')
returning id, (extract(epoch from clock_timestamp()) * 1000000)::bigint;

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
-- The runs of workers whose lease has run out become ready again. A full look ($2) finds also those of a worker that was
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
    select r.id
    from dead d cross join lateral (
        select i.id from romancy.instances i
        where i.status = 'running' and i.worker = d.id
        limit $1::bigint
        for no key update skip locked
    ) r
)
update romancy.instances i
set status = 'ready', ready_at = clock_timestamp(), worker = null
from found f
where i.id = any (array[f.id])
returning i.id, i.workflow;

-- name: BuryWorkers
-- Dead workers that own nothing any more.
delete from romancy.workers w
where w.lease_until <= clock_timestamp()
  and (select true from romancy.instances i where i.status = 'running' and i.worker = w.id limit 1) is null;
