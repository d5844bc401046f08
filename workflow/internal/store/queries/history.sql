-- name: AppendHistory
-- A position that is taken is an error, so that nothing else of that run's commits with it: it would follow from a result
-- that history does not have.
with ask as materialized (
    select * from unnest($1::text[], $2::bigint[], $3::integer[], $4::text[], $5::text[], $6::text[])
        with ordinality as a(id, token, position, kind, name, payload, ord)
)
insert into romancy.history (instance_id, position, token, kind, name, payload)
select a.id, a.position, a.token, a.kind, a.name, a.payload::json
from ask a cross join lateral (
    select 1 from romancy.instances i where i.id = a.id and i.token = a.token and i.status || '' = 'running' offset 0
) fence
order by a.ord
returning instance_id, position;

-- name: AppendInTransaction
-- The one write of a run outside the committer: it commits with what the activity wrote. The lock keeps a successor from
-- claiming the run in between; the primary key refuses the second of two records.
insert into romancy.history (instance_id, position, token, kind, name, payload)
select i.id, $3::integer, i.token, $4::text, $5::text, ($6::text)::json
from romancy.instances i
where i.id = $1::text and i.token = $2::bigint and i.status || '' = 'running'
for share of i;

-- name: OwnRecords
-- After a lost reply: which of these positions did this very owner write?
select a.ord
from unnest($1::text[], $2::bigint[], $3::integer[]) with ordinality as a(id, token, position, ord)
cross join lateral (
    select 1 from romancy.history h where h.instance_id = a.id and h.position = a.position and h.token = a.token offset 0
) own;

-- name: RetrySteps
-- A failed attempt and the wait for the next one.
with ask as materialized (
    select a.*, clock_timestamp() + a.delay_us * interval '1 microsecond' as next_at
    from unnest($1::text[], $2::bigint[], $3::integer[], $4::integer[], $5::text[], $6::bigint[])
        with ordinality as a(id, token, position, attempt, error, delay_us, ord)
), parked as (
    update romancy.instances i
    set status = 'waiting', wake_at = a.next_at, wake_position = a.position, wake_channels = null
    from ask a
    where i.id = any (array[a.id]) and i.token = a.token and i.status || '' = 'running'
    returning a.ord, a.id, a.position, a.attempt, a.error, a.next_at
), noted as (
    insert into romancy.attempts (instance_id, position, attempt, error, next_at)
    select p.id, p.position, p.attempt, p.error::json, p.next_at
    from parked p
)
select p.ord, (extract(epoch from p.next_at) * 1000000)::bigint,
       (extract(epoch from p.next_at - clock_timestamp()) * 1000000)::bigint
from parked p;
