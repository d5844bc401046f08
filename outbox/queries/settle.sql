-- name: Settle
-- Ends a batch: gives the slot back and writes what became of the events, provided that the slot ($1) is still its owner's
-- ($2) under the same token ($3). Otherwise nothing changes and the result is 0 rows: another relay has those events now.
--   $4 delivered
--   $5 failed, each with $6 milliseconds to wait and $7 its error
--   $8 given up, each with $9 its error
--   $10 not tried because an earlier event of the key failed
--   $11 not tried for another reason: the attempt counted at the claim is taken back
--   $12 keys that have nothing failed any more, of which the first $13 held events each become ready
with mine as materialized (
    update romancy.outbox_slots s
    set owner = null, lease_until = null
    where s.slot = $1::integer and s.owner = $2::text and s.token = $3::bigint
    returning s.slot
), delivered as (
    delete from romancy.outbox o
    where o.id = any ($4::bigint[]) and o.taken = $3::bigint and (select slot from mine) is not null
), failed as (
    update romancy.outbox o
    set taken = null,
        next_at = clock_timestamp() + ($6::bigint[])[array_position($5::bigint[], o.id)] * interval '1 millisecond',
        last_error = ($7::text[])[array_position($5::bigint[], o.id)]
    where o.id = any ($5::bigint[]) and o.taken = $3::bigint and (select slot from mine) is not null
), dead as (
    update romancy.outbox o
    set taken = null, dead_at = clock_timestamp(), last_error = ($9::text[])[array_position($8::bigint[], o.id)]
    where o.id = any ($8::bigint[]) and o.taken = $3::bigint and (select slot from mine) is not null
), held as (
    update romancy.outbox o
    set taken = null, next_at = 'infinity', attempts = o.attempts - 1
    where o.id = any ($10::bigint[]) and o.taken = $3::bigint and (select slot from mine) is not null
), returned as (
    update romancy.outbox o
    set taken = null, attempts = o.attempts - 1
    where o.id = any ($11::bigint[]) and o.taken = $3::bigint and (select slot from mine) is not null
), released as (
    update romancy.outbox o
    set next_at = null
    where o.next_at = 'infinity' and (select slot from mine) is not null
      and o.id = any (array(
        select h.id
        from unnest($12::text[]) as k (key)
        cross join lateral (
            select b.id from romancy.outbox b
            where b.key = k.key and b.dead_at is null and b.next_at is not null and b.next_at = 'infinity'
            order by b.id limit $13::bigint
        ) h))
)
select slot from mine;

-- name: CountEvents
-- How many of the events $1 exist.
select count(*) from romancy.outbox o where o.id = any ($1::bigint[]);
