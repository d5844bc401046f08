-- name: FindUnexecuted
-- Workflows with runs that have been ready for $4 microseconds and that no living worker executes: how many are ready, up to $5, and for
-- how many microseconds the oldest of those counted. names steps through the index of ready runs from one
-- workflow to the next, $3 of them, after $2. One process of the cluster searches: the living worker ($1) that was registered first, or,
-- while there is none, those that execute nothing ($1 is no worker's); and one that has to find out what became of what it found before
-- ($6). Workers of older builds do not say what they execute.
with recursive first as materialized (
    select not exists (
        select 1 from romancy.workers k
        where k.workflows is not null and k.lease_until > clock_timestamp()
          and (k.started_at, k.id) < (coalesce((select o.started_at from romancy.workers o where o.id = $1::bigint), 'infinity'), $1::bigint)
    ) as it_is
), names (name, number) as (
    (select i.workflow, 1
     from romancy.instances i
     where i.status = 'ready' and i.workflow > $2::text and ($6::boolean or (select f.it_is from first f))
     order by i.workflow limit 1)
    union all
    select (select i.workflow from romancy.instances i where i.status = 'ready' and i.workflow > n.name order by i.workflow limit 1),
           n.number + 1
    from names n
    where n.name is not null and n.number < $3::integer
), unexecuted as (
    select n.name, r.runs, (extract(epoch from clock_timestamp() - r.since) * 1000000)::bigint as age
    from names n cross join lateral (
        select count(*) as runs, min(c.ready_at) as since
        from (select i.ready_at from romancy.instances i
              where i.status = 'ready' and i.workflow = n.name
              order by i.priority desc, i.ready_at
              limit $5::bigint) c
    ) r
    where n.name is not null
      and not exists (
          select 1 from romancy.workers k
          where k.lease_until > clock_timestamp() and (k.workflows is null or n.name = any (k.workflows)))
      and r.since <= clock_timestamp() - $4::bigint * interval '1 microsecond'
)
select (select f.it_is from first f), coalesce((select max(n.name) from names n), ''), (select count(n.name) from names n), u.name, u.runs, u.age
from (select 1) as one left join unexecuted u on true;
