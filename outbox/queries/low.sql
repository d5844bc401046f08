-- name: OpenWriters
-- The transactions that have written, or may be about to write, an event and have not ended: whoever does so holds this
-- lock from before the event gets its id until its commit is visible.
select l.virtualtransaction
from pg_catalog.pg_locks l
where l.locktype = 'relation' and l.relation = 'romancy.outbox'::regclass and l.mode = 'RowExclusiveLock'
  and l.database = (select d.oid from pg_catalog.pg_database d where d.datname = current_database());

-- name: MoveLow
-- Each slot has a low-water mark: no event of it with a smaller id is ready or taken, nor can become so without the mark
-- being lowered first.
--   Events written by transactions that commit late    a mark stays below them until all writers of its time have ended
--   Events in backoff, and dead letters                whoever takes or requeues one lowers the mark in the same transaction
--   Events held behind one in backoff                  come after it, and become ready when it was taken
--
-- Raises the low-water marks to the first event of each slot that is ready or taken, at most to $1: every writer of that
-- time must have ended. $2: looks from the beginning, and lowers a mark that is too high. It waits for nobody: a slot that
-- changes meanwhile (its row is another then) keeps its mark, since this statement may not see what became ready in it.
-- Returns how many marks were moved, and how many were not although they should.
with current as materialized (
    select c.*
    from generate_series(0, 63) as n(slot) cross join lateral (
        select s.slot, s.token, s.low, s.xmin as version
        from romancy.outbox_slots s where s.slot = n.slot order by s.token desc limit 1
    ) c
), first as materialized (
    select c.*, (select o.id from romancy.outbox o
                 where o.slot = c.slot and o.dead_at is null and o.next_at is null
                   and o.id >= case when $2::boolean then 0 else c.low end
                 order by o.id limit 1) as id
    from current c
), moved as materialized (
    select f.slot, f.token, f.version, f.low as was,
           case when f.id < f.low then f.id else greatest(f.low, least($1::bigint, f.id)) end as low
    from first f
), locked as materialized (
    select s.slot, s.token, m.low
    from moved m cross join romancy.outbox_slots s
    where s.slot = any (array[m.slot]) and s.token = any (array[m.token]) and s.xmin = m.version and s.low <> m.low
    for update of s skip locked
), raised as (
    update romancy.outbox_slots s
    set low = l.low
    from locked l
    where s.slot = any (array[l.slot]) and s.token = any (array[l.token])
    returning s.slot
)
select (select count(*) from raised), (select count(*) from moved m where m.low <> m.was) - (select count(*) from raised);
