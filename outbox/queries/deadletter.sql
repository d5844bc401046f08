-- name: DeadLetters
-- The $3 next ones after ($1, $2), oldest first.
select o.id, o.event_id, o.topic, o.key, o.payload, o.headers::text, o.attempts, coalesce(o.last_error, ''), o.created_at, o.dead_at
from romancy.outbox o
where o.dead_at is not null and (o.dead_at, o.id) > ($1::timestamptz, $2::bigint)
order by o.dead_at, o.id
limit $3::bigint;

-- name: RequeueDeadLetters
update romancy.outbox o
set dead_at = null, next_at = null, taken = null, attempts = 0
where o.event_id = any ($1::text[]) and o.dead_at is not null;

-- name: DiscardDeadLetters
delete from romancy.outbox o
where o.event_id = any ($1::text[]) and o.dead_at is not null;

-- name: DeleteOldDeadLetters
-- At most $2 of those that died more than $1 milliseconds ago.
delete from romancy.outbox o
where o.id = any (array(
    select d.id from romancy.outbox d
    where d.dead_at is not null and d.dead_at < statement_timestamp() - $1::bigint * interval '1 millisecond'
    order by d.dead_at, d.id
    limit $2::bigint));
