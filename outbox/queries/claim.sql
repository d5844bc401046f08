-- name: TakeSlot
-- Takes the lease of the slot that was served least recently among those with something to do: $1 owner, $2 lease in ms, $3
-- slots that the same relay has in work. It has not died, so their leases may have run out without being anybody's to take.
-- It is a statement of its own, although ClaimBatch follows in the same round trip: ClaimBatch's snapshot then shows all
-- that the slot's previous owner did. In one statement the snapshot would be older than the lock, and a batch could
-- overtake an event that just went into backoff. The probes are scalar subqueries with a limit, because an EXISTS may
-- become a hash of the whole backlog. A slot that is already $1's comes first: its claim was lost on the way back.
-- The current row of a slot is the one with the highest token, and ready events begin at its low-water mark: so neither former
-- rows nor delivered events are read while an old snapshot keeps them from being removed (see low.sql). Leaves the
-- slot and its token in a setting for the rest of the transaction.
with current as materialized (
    select c.*
    from generate_series(0, 63) as n(slot) cross join lateral (
        select s.slot, s.token, s.owner, s.lease_until, s.low
        from romancy.outbox_slots s where s.slot = n.slot order by s.token desc limit 1
    ) c
), candidate as materialized (
    select c.slot, c.token
    from current c
    where (c.owner is null or c.owner = $1::text or c.lease_until < clock_timestamp()) and c.slot <> all ($3::integer[])
      and ((select true from romancy.outbox o
            where o.slot = c.slot and o.dead_at is null and o.next_at is null and o.id >= c.low
            order by o.id limit 1)
        or (select true from romancy.outbox o
            where o.slot = c.slot and o.dead_at is null and o.next_at <= statement_timestamp()
            order by o.next_at limit 1))
), free as (
    select s.slot, s.token
    from candidate c cross join romancy.outbox_slots s
    where s.slot = any (array[c.slot]) and s.token = any (array[c.token])
      and (s.owner is null or s.owner = $1::text or s.lease_until < clock_timestamp())
    order by coalesce(s.owner = $1::text, false) desc, s.served_at
    limit 1
    for update of s skip locked
)
update romancy.outbox_slots s
set owner = $1::text, token = s.token + 1, served_at = clock_timestamp(),
    lease_until = clock_timestamp() + $2::bigint * interval '1 millisecond'
from free f
where s.slot = any (array[f.slot]) and s.token = any (array[f.token])
returning set_config('romancy.outbox_slot', s.slot || ' ' || s.token, true);

-- name: ClaimBatch
-- Takes the next events of the slot that $1 just took, at most $2 of them and at most $3 bytes unless one alone is larger,
-- and counts the attempt. Without a slot it returns nothing; with a slot at least one row, whose event is null if all
-- candidates turned out to be blocked.
with taken_slot as materialized (
    select string_to_array(current_setting('romancy.outbox_slot', true), ' ') as part
), mine as materialized (
    select s.slot, s.token, s.low
    from taken_slot t cross join romancy.outbox_slots s
    where s.slot = any (array[t.part[1]::integer]) and s.token = any (array[t.part[2]::bigint]) and s.owner = $1::text
), candidate as materialized (
    select c.id, c.key, c.taken, c.size
    from mine
    cross join lateral (
        (select o.id, o.key, o.taken, octet_length(o.payload) as size
         from romancy.outbox o
         where o.slot = mine.slot and o.dead_at is null and o.next_at is null and o.id >= mine.low
         order by o.id limit $2::bigint)
        union all
        (select o.id, o.key, o.taken, octet_length(o.payload)
         from romancy.outbox o
         where o.slot = mine.slot and o.dead_at is null and o.next_at <= statement_timestamp()
         order by o.next_at limit $2::bigint)
    ) c
    order by c.id limit $2::bigint
), judged as materialized (
    -- Blocked: an earlier event of the key is in backoff or held, and not about to be taken here.
    select c.id, c.taken, c.size,
           (select true
            from romancy.outbox e
            where e.key = c.key and e.id < c.id and e.dead_at is null and e.next_at is not null
              and e.id <> all (array(select id from candidate))
            order by e.id limit 1) is not null as blocked
    from candidate c
), picked as materialized (
    -- A taken event whose token is not ours was in the hands of a relay that died. Whether it killed that relay is
    -- unknown, so it travels alone: otherwise its neighbours would use up their attempts with it.
    select p.id
    from (select j.id, row_number() over batch as place, count(j.taken) over batch as suspects, sum(j.size) over batch as bytes
          from judged j
          where not j.blocked
          window batch as (order by j.id rows unbounded preceding)) p
    where p.place = 1 or (p.suspects = 0 and p.bytes <= $3::bigint)
), lowered as (
    -- An event out of backoff is among the ready ones again if this relay dies, and what is held behind it if it is published.
    update romancy.outbox_slots s
    set low = (select min(id) from picked)
    from mine
    where s.slot = any (array[mine.slot]) and s.token = any (array[mine.token]) and s.low > (select min(id) from picked)
), held as (
    -- Each blocked event is moved out of the way once, and back once by Settle.
    update romancy.outbox o
    set next_at = 'infinity', taken = null
    where o.id = any (array(select j.id from judged j where j.blocked))
), taken as (
    update romancy.outbox o
    set attempts = case when o.attempts < 2000000000 then o.attempts + 1 else o.attempts end, taken = (select token from mine), next_at = null
    where o.id = any (array(select id from picked))
    returning o.id, o.event_id, o.topic, o.key, o.payload, o.headers, o.attempts
)
select mine.slot, mine.token, t.id, t.event_id, t.topic, t.key, t.payload, t.headers::text, t.attempts
from mine left join taken t on true;

-- name: Outlook
-- What comes next, in the snapshot after the claim, but for the slots $2, which this relay has in work already: whether $1 got a slot and another free slot has something to do, and,
-- if it got none, in how many milliseconds something will be: an event comes out of backoff, or the lease of an owner who
-- may have died ends.
with current as materialized (
    select c.*
    from generate_series(0, 63) as n(slot) cross join lateral (
        select s.slot, s.token, s.owner, s.lease_until, s.low
        from romancy.outbox_slots s where s.slot = n.slot order by s.token desc limit 1
    ) c
    where c.slot <> all ($2::integer[])
), mine as materialized (
    select true as found from current c where c.owner = $1::text limit 1
), more as materialized (
    select true as found
    from current s
    where (select found from mine)
      and (s.owner is null or s.lease_until < clock_timestamp())
      and ((select true from romancy.outbox o
            where o.slot = s.slot and o.dead_at is null and o.next_at is null and o.id >= s.low
            order by o.id limit 1)
        or (select true from romancy.outbox o
            where o.slot = s.slot and o.dead_at is null and o.next_at <= statement_timestamp()
            order by o.next_at limit 1))
    limit 1
), due as materialized (
    -- In a free slot what is due now counts, too: it became due after TakeSlot looked.
    select least(
        (select o.next_at from romancy.outbox o
         where o.slot = s.slot and o.dead_at is null and o.next_at is not null
           and o.next_at > case when s.owner is null then '-infinity' else statement_timestamp() end
         order by o.next_at limit 1),
        case when s.owner is not null
              and ((select true from romancy.outbox o
                    where o.slot = s.slot and o.dead_at is null and o.next_at is null and o.id >= s.low
                    order by o.id limit 1)
                or (select true from romancy.outbox o
                    where o.slot = s.slot and o.dead_at is null and o.next_at <= statement_timestamp()
                    order by o.next_at limit 1))
             then s.lease_until end) as at
    from current s
    where (select found from mine) is null
)
select coalesce((select found from more), false),
       (select extract(epoch from min(due.at) - clock_timestamp()) * 1000
        from due where due.at < 'infinity')::float8;

-- name: RenewSlots
-- Extends by $4 ms the leases of the slots $1 that are still their owners' ($2) under the same tokens ($3), also those that
-- have run out and were taken by nobody. Returns the places of those slots, and whether each was extended: a row that is
-- locked, by its settlement, is passed over, so that it makes no other wait.
with mine as materialized (
    select m.place, s.slot, s.token
    from unnest($1::integer[], $2::text[], $3::bigint[]) with ordinality as m (slot, owner, token, place)
    cross join romancy.outbox_slots s
    where s.slot = any (array[m.slot]) and s.token = any (array[m.token]) and s.owner = m.owner
), free as materialized (
    select m.place, s.slot, s.token
    from unnest($1::integer[], $2::text[], $3::bigint[]) with ordinality as m (slot, owner, token, place)
    cross join romancy.outbox_slots s
    where s.slot = any (array[m.slot]) and s.token = any (array[m.token]) and s.owner = m.owner
    for update of s skip locked
), extended as (
    update romancy.outbox_slots s
    set lease_until = clock_timestamp() + $4::bigint * interval '1 millisecond'
    from free f
    where s.slot = any (array[f.slot]) and s.token = any (array[f.token])
    returning f.place
)
select m.place, m.place = any (array(select e.place from extended e)) from mine m;
