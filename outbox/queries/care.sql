-- name: RestoreSlots
-- Makes the rows of slots that are missing: the migration has made them, and whoever truncates all tables takes them along. A row made
-- twice, by two relays at once, does no harm: the one with the highest token is the slot's.
insert into romancy.outbox_slots (slot)
select n.slot from generate_series(0, 63) as n(slot)
where (select true from romancy.outbox_slots s where s.slot = n.slot order by s.token desc limit 1) is null
on conflict (slot, token) do nothing;

-- name: ReleaseStranded
-- Makes held events ready whose key has nothing in backoff: somebody removed the event they waited for by hand. Looks at
-- the $2 next keys after $1, and returns the last one looked at (null: that was the end) and how many events it released.
-- Releasing is always safe, because a claim holds again what is blocked. The low-water marks make way for what is released.
with recursive waiting (key, n) as (
    (select b.key, 1::bigint from romancy.outbox b
     where b.dead_at is null and b.next_at is not null and b.key > $1::text
     order by b.key, b.id limit 1)
    union all
    select (select b.key from romancy.outbox b
            where b.dead_at is null and b.next_at is not null and b.key > w.key
            order by b.key, b.id limit 1), w.n + 1
    from waiting w
    where w.key is not null and w.n < $2::bigint
), stranded as materialized (
    select h.id, h.slot
    from waiting w
    cross join lateral (
        select b.id, b.slot, b.next_at from romancy.outbox b
        where b.key = w.key and b.dead_at is null and b.next_at is not null
        order by b.id limit 1
    ) h
    where h.next_at = 'infinity'
), slots as materialized (
    -- Before the events, as Settle does. SKIP LOCKED: the slot's owner may be changing it right now, and the next look comes.
    select s.slot, s.token from romancy.outbox_slots s
    where s.slot = any (array(select st.slot from stranded st))
    for update skip locked
), lowered as (
    -- Also where it changes nothing: whoever is raising the mark in between then sees that the row is another.
    update romancy.outbox_slots s
    set low = least(s.low, (select min(st.id) from stranded st where st.slot = f.slot))
    from slots f
    where s.slot = any (array[f.slot]) and s.token = any (array[f.token])
    returning s.slot
), locked as materialized (
    select o.id from romancy.outbox o
    where o.id = any (array(select st.id from stranded st where st.slot = any (array(select slot from lowered)))) and o.next_at = 'infinity'
    for update skip locked
), released as (
    update romancy.outbox o set next_at = null
    where o.id = any (array(select id from locked))
    returning o.id
)
select (select w.key from waiting w where w.n = $2::bigint), (select count(*) from released);

-- name: CountRunnable
-- Counts what could be taken now, up to $1 a slot, from the low-water marks on.
select coalesce(sum(r.n), 0)::bigint
from generate_series(0, 63) as n(slot)
cross join lateral (
    select s.low from romancy.outbox_slots s where s.slot = n.slot order by s.token desc limit 1
) s
cross join lateral (
    select (select count(*) from (select 1 from romancy.outbox o
                                  where o.slot = n.slot and o.dead_at is null and o.next_at is null and o.id >= s.low
                                  order by o.id limit $1::bigint) ready)
         + (select count(*) from (select 1 from romancy.outbox o
                                  where o.slot = n.slot and o.dead_at is null and o.next_at <= statement_timestamp()
                                  order by o.next_at limit $1::bigint) due) as n
) r;

-- name: Stats
-- Counting reads one index entry per undelivered event, and stops at $1.
select (select count(*) from (select 1 from romancy.outbox o where o.dead_at is null order by o.created_at limit $1::bigint) pending),
       (select count(*) from (select 1 from romancy.outbox o
                              where o.dead_at is null and o.next_at is not null order by o.key limit $1::bigint) waiting),
       (select count(*) from (select 1 from romancy.outbox o where o.dead_at is not null order by o.dead_at limit $1::bigint) dead),
       (select extract(epoch from clock_timestamp() - o.created_at) * 1000 from romancy.outbox o
        where o.dead_at is null order by o.created_at, o.event_id limit 1)::float8;
