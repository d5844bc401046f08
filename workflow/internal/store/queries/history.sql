-- name: AppendHistory
-- One alone goes by AppendRecord, which has to do the same.
-- A position that is taken is an error, so that nothing else of that run's commits with it: it would follow from a result
-- that history does not have. The lock keeps whoever cancels the run, or takes it over, until this has committed.
with ask as materialized (
    select * from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[])
        with ordinality as a(id, token, position, kind, name, payload, ord)
)
insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
select a.id, a.position, a.token, $7::bigint, a.kind, a.name, a.payload::json
from ask a cross join lateral (
    select 1 from romancy.instances i where i.id = a.id and i.token = a.token and i.worker = $7::bigint and i.status || '' = 'running' for share
) fence
order by a.ord
returning instance_id, position;

-- name: AppendRecord
-- AppendHistory for a single row. It is also the one write of a run outside the committer: in the transaction of an activity, with
-- which it commits. The lock keeps a successor from claiming the run in between; the primary key refuses the second of two records.
insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
select i.id, $3::integer, i.token, i.worker, $4::text, $5::text, ($6::text)::json
from romancy.instances i
where i.id = $1::text and i.token = $2::bigint and i.worker = $7::bigint and i.status || '' = 'running'
for share of i
returning instance_id, position;

-- name: RetrySteps
-- A failed attempt and the wait for the next one. stay: other steps of the run execute, so it does not park. heeds: a run that
-- is to be cancelled is told so instead.
with ask as materialized (
    select a.*, clock_timestamp() + a.delay_us * interval '1 microsecond' as next_at
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::integer[], $5::text[], $6::bigint[], $7::boolean[], $8::boolean[])
        with ordinality as a(id, token, position, attempt, error, delay_us, stay, heeds, ord)
), owned as materialized (
    select a.*, case when i.cancelled then 'cancelled' when a.stay then 'nothing' else 'parked' end as outcome
    from ask a cross join lateral (
        select a.heeds and i.cancel is not null as cancelled from romancy.instances i
        where i.id = a.id and i.token = a.token and i.worker = $9::bigint and i.status || '' = 'running'
        for no key update
    ) i
), parked as (
    update romancy.instances i
    set status = 'waiting', wake_at = o.next_at, wake_position = o.position, wake_channels = null
    from owned o
    where i.id = any (array[o.id]) and o.outcome = 'parked'
), noted as (
    insert into romancy.attempts (instance_id, position, attempt, error, next_at)
    select o.id, o.position, o.attempt, o.error::json, o.next_at
    from owned o
    where o.outcome <> 'cancelled'
)
select o.ord, o.outcome, (extract(epoch from o.next_at) * 1000000)::bigint,
       (extract(epoch from o.next_at - clock_timestamp()) * 1000000)::bigint
from owned o;

-- name: FailRuns
-- A run begins to undo what it has done: from here on it cannot complete. cancelled: it does so because it was asked to. If it was
-- asked, and does not know it yet, it has to learn of it first: see FindCancel.
with ask as materialized (
    select * from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $6::boolean[])
        with ordinality as a(id, token, position, payload, cancelled, ord)
), owned as (
    update romancy.instances i
    set compensating = true
    from ask a
    where i.id = any (array[a.id]) and i.token = a.token and i.worker = $5::bigint and i.status || '' = 'running'
      and (i.cancel is null or i.compensating or a.cancelled)
    returning a.ord, a.id, a.position, a.token, a.payload
)
insert into romancy.history (instance_id, position, token, worker, kind, name, payload)
select o.id, o.position, o.token, $5::bigint, 'failing', '', o.payload::json
from owned o
returning instance_id, position;
