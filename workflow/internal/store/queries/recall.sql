-- name: Recall
-- After a lost reply: what is there of operations that may have been carried out? Of each, the run's row as far as it is still this
-- owner's (a run that has ended or was made ready has no worker), and what this very owner has recorded at its positions. Rows of
-- history without a worker are of a build that wrote none.
select a.ord, i.status, i.output,
       (extract(epoch from i.wake_at) * 1000000)::bigint,
       (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint,
       r.recorded is true, r.payload, t.fires_at_us, x.next_at_us,
       (extract(epoch from clock_timestamp()) * 1000000)::bigint
from unnest($1::text[], $2::bigint[], $3::integer[], $4::integer[], $5::integer[])
    with ordinality as a(id, token, position, timer_position, attempt, ord)
left join lateral (
    select i.status, i.wake_at, case when i.status = 'continued' then i.output::text end as output
    from romancy.instances i
    where i.id = a.id and i.token = a.token and coalesce(i.worker, $6::bigint) = $6::bigint
    offset 0
) i on true
left join lateral (
    select true as recorded, h.payload::text as payload
    from romancy.history h
    where h.instance_id = a.id and h.position = a.position and h.token = a.token and coalesce(h.worker, $6::bigint) = $6::bigint
    offset 0
) r on true
left join lateral (
    select (h.payload ->> 'fires_at_us')::bigint as fires_at_us
    from romancy.history h
    where h.instance_id = a.id and h.position = a.timer_position and h.token = a.token and coalesce(h.worker, $6::bigint) = $6::bigint
    offset 0
) t on true
left join lateral (
    select (extract(epoch from x.next_at) * 1000000)::bigint as next_at_us
    from romancy.attempts x
    where x.instance_id = a.id and x.position = a.position and x.attempt = a.attempt
    offset 0
) x on true;

-- name: InterruptRuns
-- What has kept steps from being recorded without being their fault: they are executed again. Which time of the step's it is comes back.
-- One that is there already, because the answer to it was lost, is not counted again.
with ask as materialized (
    select * from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[]) with ordinality as a(id, token, position, error, ord)
), owned as materialized (
    select a.*, l.number as last, coalesce(l.once = a.error::json ->> 'once', false) as counted
    from ask a cross join lateral (
        select 1 from romancy.instances i
        where i.id = a.id and i.token = a.token and i.worker = $5::bigint and i.status || '' = 'running' for share
    ) fence left join lateral (
        select n.number, n.error ->> 'once' as once from romancy.interruptions n
        where n.instance_id = a.id and n.position = a.position order by n.number desc limit 1
    ) l on true
), added as (
    insert into romancy.interruptions (instance_id, position, number, token, worker, error)
    select o.id, o.position, coalesce(o.last, 0) + 1, o.token, $5::bigint, o.error::json
    from owned o
    where not o.counted
    order by o.ord
    returning instance_id, position, number
)
select instance_id, position, number from added
union all
select o.id, o.position, o.last from owned o where o.counted;
