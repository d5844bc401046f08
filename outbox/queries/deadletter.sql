-- name: DeadLetters
-- The $3 next ones after ($1, $2), oldest first.
select o.id, o.event_id, o.topic, o.key, o.payload, o.headers::text, o.attempts, coalesce(o.last_error, ''), o.created_at, o.dead_at
from romancy.outbox o
where o.dead_at is not null and (o.dead_at, o.id) > ($1::timestamptz, $2::bigint)
order by o.dead_at, o.id
limit $3::bigint;

-- name: RequeueDeadLetters
-- At most $2 of those with the event ids $1. The low-water marks of their slots make way for them, also where that changes nothing: whoever is raising a mark in between
-- then sees that the row is another. Slots are locked in order and before anything else.
with asked as materialized (
    select o.id, o.slot from romancy.outbox o
    where o.event_id = any ($1::text[]) and o.dead_at is not null
    limit $2::bigint
), slots as materialized (
    select s.slot from romancy.outbox_slots s
    where s.slot = any (array(select slot from asked))
    order by s.slot
    for update
), lowered as (
    update romancy.outbox_slots s
    set low = least(s.low, (select min(a.id) from asked a where a.slot = f.slot))
    from slots f
    where s.slot = any (array[f.slot])
    returning s.slot
)
update romancy.outbox o
set dead_at = null, next_at = null, taken = null, attempts = 0
where o.id = any (array(select id from asked)) and o.dead_at is not null
  and o.slot = any (array(select slot from lowered));

-- name: DiscardDeadLetters
-- At most $2 of those with the event ids $1.
delete from romancy.outbox o
where o.id = any (array(
    select d.id from romancy.outbox d
    where d.event_id = any ($1::text[]) and d.dead_at is not null
    limit $2::bigint)) and o.dead_at is not null;

-- name: DeleteOldDeadLetters
-- At most $2 of those that died more than $1 milliseconds ago.
delete from romancy.outbox o
where o.id = any (array(
    select d.id from romancy.outbox d
    where d.dead_at is not null and d.dead_at < statement_timestamp() - $1::bigint * interval '1 millisecond'
    order by d.dead_at, d.id
    limit $2::bigint));
