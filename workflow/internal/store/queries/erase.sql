-- name: FindErasable
-- The run $1 and those that it continues, the last first, $2 at most. Of each: its status, whether it has ended, the line that it belongs
-- to and the run that it continues.
with recursive former (id, status, ended, line, continued_from, step) as (
    select i.id, i.status, i.ended_at is not null, i.line, i.continued_from, 1
    from romancy.instances i where i.id = $1::text
    union all
    select i.id, i.status, i.ended, i.line, i.continued_from, f.step + 1
    from former f cross join lateral (
        select i.id, i.status, i.ended_at is not null as ended, i.line, i.continued_from
        from romancy.instances i where i.id = f.continued_from offset 0
    ) i
    where f.step < $2::bigint
)
select f.id, f.status, f.ended, f.line, f.continued_from from former f order by f.step;

-- name: EraseRecords
-- Of the runs $1 that have ended: history, failed attempts and interruptions, of each at most $2 rows and, as they are stored, $3 bytes and
-- one row more. Whoever holds a row of them is waited for: a Retry then finds that the run is marked, and a sweep that it is done.
-- Returned: how many rows were deleted, and which of the runs live.
with asked as materialized (
    select i.id, i.over
    from unnest($1::text[]) as a(id) cross join lateral (
        select i.id, coalesce(i.ended_at, 'infinity') < 'infinity' as over from romancy.instances i where i.id = a.id for no key update
    ) i
), found as materialized (
    select a.id from asked a where a.over
), marked as (
    update romancy.instances i set drained_at = clock_timestamp() from found f where i.id = any (array[f.id]) and i.drained_at is null
), records as materialized (
    select c.instance_id, c.position
    from (
        select r.*, sum(r.size) over (order by r.instance_id, r.position) - r.size as before
        from (
            select h.instance_id, h.position, coalesce(pg_column_size(h.payload), 0) as size
            from found f cross join lateral (
                select * from romancy.history h where h.instance_id = f.id order by h.position limit $2::bigint
            ) h
            limit $2::bigint
        ) r
    ) c
    where c.before < $3::bigint
), failures as materialized (
    select c.instance_id, c.position, c.attempt
    from (
        select r.*, sum(r.size) over (order by r.instance_id, r.position, r.attempt) - r.size as before
        from (
            select a.instance_id, a.position, a.attempt, pg_column_size(a.error) as size
            from found f cross join lateral (
                select * from romancy.attempts a where a.instance_id = f.id order by a.position, a.attempt limit $2::bigint
            ) a
            limit $2::bigint
        ) r
    ) c
    where c.before < $3::bigint
), refusals as materialized (
    select n.instance_id, n.position, n.number
    from found f cross join lateral (
        select * from romancy.interruptions n where n.instance_id = f.id order by n.position, n.number limit $2::bigint
    ) n
    limit $2::bigint
), unrecorded as (
    delete from romancy.history h using records r where h.instance_id = any (array[r.instance_id]) and h.position = any (array[r.position])
    returning 1
), unfailed as (
    delete from romancy.attempts a using failures r
    where a.instance_id = any (array[r.instance_id]) and a.position = any (array[r.position]) and a.attempt = any (array[r.attempt])
    returning 1
), unrefused as (
    delete from romancy.interruptions n using refusals r
    where n.instance_id = any (array[r.instance_id]) and n.position = any (array[r.position]) and n.number = any (array[r.number])
    returning 1
)
select (select count(*) from unrecorded) + (select count(*) from unfailed) + (select count(*) from unrefused),
       array(select a.id from asked a where not a.over);

-- name: EraseMail
-- Unread messages that the runs $1 have sent or that were published to them, and those that were sent to the runs and lines $2. No index
-- leads from a sender to its messages, which would cost each of them, so this is a walk: it looks at $4 messages after $3, and deletes no
-- more than $5 bytes and one more. Whoever holds such a message is waited for. Returned: the last message looked at (null: none),
-- and whether there may be more.
with page as materialized (
    select m.id, m.mode, m.sender, m.receiver, pg_column_size(m.payload) as size
    from romancy.mailbox m
    where m.id > $3::bigint
    order by m.id
    limit $4::bigint
), theirs as materialized (
    select p.id, sum(p.size) over (order by p.id) - p.size as before
    from page p
    where p.sender = any ($1::text[]) or p.receiver = any (case when p.mode = 'direct' then $2::text[] else $1::text[] end)
), small as materialized (
    select t.id from theirs t where t.before < $5::bigint
), gone as (
    delete from romancy.mailbox m using small s where m.id = any (array[s.id])
)
select case when cut.short then (select max(s.id) from small s) else (select max(p.id) from page p) end,
       cut.short or (select count(*) from page) = $4::bigint
from (select (select count(*) from small) < (select count(*) from theirs) as short) as cut;

-- name: EraseRuns
-- The rows of the runs $1, which have ended and have nothing left, lose what they say of the application's data. What one has continued as
-- stays, because it is the way to that run.
with found as materialized (
    select i.id
    from unnest($1::text[]) as a(id) cross join lateral (
        select i.id from romancy.instances i
        where i.id = a.id and coalesce(i.ended_at, 'infinity') < 'infinity'
        for no key update
    ) i
), unsubscribed as (
    delete from romancy.subscriptions s using found f where s.instance_id = any (array[f.id])
), unasked as (
    delete from romancy.event_waits w using found f where w.instance_id = any (array[f.id])
)
update romancy.instances i
set erased_at = clock_timestamp(), input = null, output = case when i.status = 'continued' then i.output end,
    error = null, cancel = null, trace = null
from found f
where i.id = any (array[f.id]) and i.erased_at is null;
