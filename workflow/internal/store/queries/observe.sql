-- name: CountReady
-- Of each of these workflows: how many runs are ready, up to $2, and since how many microseconds the first of them, in the order
-- in which they are claimed. For whoever collects metrics, not for the committer.
select w.name, r.runs, coalesce((extract(epoch from clock_timestamp() - r.since) * 1000000)::bigint, 0)
from unnest($1::text[]) as w(name) cross join lateral (
    select count(*) as runs, min(first.ready_at) as since
    from (
        select i.ready_at
        from romancy.instances i
        where i.status = 'ready' and i.workflow = w.name
        order by i.priority desc, i.ready_at
        limit $2::bigint
    ) first
) r;

-- name: AdoptTrace
-- A run that has no trace, which its owner may have parked in the same flush. Whoever holds its row is not waited for.
with found as materialized (
    select i.id from romancy.instances i
    where i.id = $1::text and i.token = $2::bigint and i.trace is null
    for no key update skip locked
)
update romancy.instances i set trace = ($3::text)::json
from found f
where i.id = any (array[f.id]);
