-- name: GetRun
select i.id, i.workflow, case when i.compensating and i.status in ('ready', 'running', 'waiting') then 'compensating' else i.status end,
       i.worker, w.label, i.input::text, i.output::text, i.error::text,
       i.continued_from, i.created_at, i.ended_at, case when i.wake_at < 'infinity' then i.wake_at end, i.wake_channels,
       i.priority, i.deaths, (select count(*) from romancy.interruptions n where n.instance_id = i.id), i.erased_at
from romancy.instances i left join romancy.workers w on w.id = i.worker
where i.id = $1::text;

-- name: GetHistory
-- What a run has recorded after position $2: at most $3 rows, and no more than $4 bytes, as they are stored, and one row more.
-- Also returned: how many rows there are without the limit in bytes.
select p.position, p.kind, p.name, p.payload::text, p.created_at, p.total
from (
    select l.*, sum(l.size) over (order by l.position) - l.size as before, count(*) over () as total
    from (
        select h.*, coalesce(pg_column_size(h.payload), 0) as size
        from romancy.history h
        where h.instance_id = $1::text and h.position > $2::integer
        order by h.position
        limit $3::bigint
    ) l
) p
where p.before < $4::bigint
order by p.position;

-- name: GetAttempts
-- The failed attempts of a run after attempt $3 of position $2, at most $4.
select a.position, a.attempt, a.error::text, a.failed_at, a.next_at
from romancy.attempts a
where a.instance_id = $1::text and (a.position, a.attempt) > ($2::integer, $3::integer)
order by a.position, a.attempt
limit $4::bigint;

-- name: GetInterruptions
select n.position, n.number, n.error::text, n.created_at
from romancy.interruptions n
where n.instance_id = $1::text
order by n.position, n.number;

-- name: ListRuns
-- Downwards from $1 (null: from the top). Looks at $2 runs at most, whatever matches: the last one looked at comes back too,
-- as a row without a workflow, unless the end was reached.
with page as materialized (
    select i.id, i.workflow, case when i.compensating and i.status in ('ready', 'running', 'waiting') then 'compensating' else i.status end as status,
           i.created_at, i.ended_at, case when i.wake_at < 'infinity' then i.wake_at end as wake_at, i.continued_from, i.erased_at,
           case when $9::text is not null then i.input::text end as input
    from romancy.instances i
    where i.id < coalesce($1::text, (select top.id || '.' from romancy.instances top order by top.id desc limit 1))
    order by i.id desc
    limit $2::bigint
), matching as materialized (
    select p.*
    from page p
    where ($4::text[] is null or p.status = any ($4::text[]))
      and ($5::text[] is null or p.workflow = any ($5::text[]))
      and ($6::timestamptz is null or p.created_at >= $6::timestamptz)
      and ($7::timestamptz is null or p.created_at < $7::timestamptz)
      and ($8::timestamptz is null or p.ended_at >= $8::timestamptz)
      and ($9::text is null or p.input is not null and romancy.input_matches(p.input, $9::text::jsonpath))
    order by p.id desc
    limit $3::bigint
)
select m.id, m.workflow, m.status, m.created_at, m.ended_at, m.wake_at, m.continued_from, m.erased_at from matching m
union all
select min(p.id), null, null, null, null, null, null, null from page p having count(*) = $2::bigint
order by 1 desc, 2 nulls last;

-- name: LimitTime
-- For the rest of the transaction.
select set_config('statement_timeout', $1::text, true);

-- name: CheckPath
select $1::text::jsonpath is not null;

-- name: StartLater
-- Runs that begin at a moment of their own: parked until then, as if a sleep came before their first line. Never in the past,
-- where no sweep may look any more.
insert into romancy.instances (id, workflow, status, token, ready_at, wake_at, input, trace, priority)
select a.id, a.workflow, 'waiting', 1, clock_timestamp(),
       greatest(clock_timestamp(), case when a.at_us is not null then to_timestamp(0) + a.at_us * interval '1 microsecond'
                                        else clock_timestamp() + a.delay_us * interval '1 microsecond' end), a.input::json, a.trace::json, a.priority
from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::bigint[], $6::text[], $7::smallint[])
    with ordinality as a(id, workflow, input, delay_us, at_us, trace, priority, ord)
order by a.ord
on conflict (id) do nothing
returning id, (extract(epoch from wake_at) * 1000000)::bigint, (extract(epoch from wake_at - clock_timestamp()) * 1000000)::bigint;

-- name: LockRun
-- Before a statement that decides by a run's row and its history: while that waited for the row itself, it would see the row as it has
-- become and the history as it was.
select i.id from romancy.instances i where i.id = $1::text for no key update;

-- name: DiscardUnreceived
-- Messages of a run that has ended, which it must not receive when it goes on again: what was published to it, and, unless it has only
-- failed, what was sent to it or to its line. Looks at $4 of its own at most after the channel $2 and the message $3, and at as many
-- of its line; deletes no more than $5 bytes. Returned: the last of its own looked at, and whether there may be more.
with target as materialized (
    select i.id, i.line, i.status = 'failed' and not i.compensating as retryable
    from romancy.instances i
    where i.id = $1::text and i.status in ('failed', 'cancelled')
    for no key update
), own as materialized (
    select l.id, l.channel, l.mode, l.payload
    from target t cross join lateral (
        select * from romancy.mailbox l
        where l.receiver = t.id and (l.channel, l.id + 0) > ($2::text, $3::bigint)
        order by l.channel, l.id + 0
        limit $4::bigint
    ) l
), line as materialized (
    select l.id, l.channel, l.mode, l.payload
    from target t cross join lateral (
        select * from romancy.mailbox l
        where l.receiver || '' = t.line and l.mode = 'direct' and not t.retryable
        order by l.channel, l.id + 0
        limit $4::bigint
    ) l
), small as materialized (
    select c.*
    from (
        select l.*, sum(pg_column_size(l.payload)) over (order by l.common, l.channel, l.id) - pg_column_size(l.payload) as before
        from (select own.*, false as common from own union all select line.*, true from line) l
        where l.mode <> 'direct' or (select not t.retryable from target t)
    ) c
    where c.before < $5::bigint
), gone as (
    delete from romancy.mailbox m using small s where m.id = any (array[s.id])
), doomed as materialized (
    select count(*) as messages from own o where o.mode <> 'direct' or (select not t.retryable from target t)
)
select last.channel, coalesce(last.id, 0),
       (select count(*) from own) = $4::bigint or (select count(*) from line) = $4::bigint
       or (select count(*) from small) < (select d.messages from doomed d) + (select count(*) from line),
       (select count(*) from small) < (select d.messages from doomed d) + (select count(*) from line)
from (select 1) as one left join (select o.channel, o.id from own o order by o.channel desc, o.id desc limit 1) last on true;

-- name: RetryRun
-- Has a run go on that has stopped, if it still is in the state that this was decided from: $2 is the token it stopped with. The
-- records and the failed attempts at the positions $3 are forgotten. $4: it gets its subscriptions back. Says which channel is
-- in use in another mode by now, and whether retention has begun to delete its history (nothing is changed then), and the workflow of the
-- run if it goes on. LockRun comes before it, and DiscardUnreceived, until it has found everything that the run must not receive. The case
-- keeps payloads out of which json could take nothing, for \u0000 in them, from being looked into.
with target as materialized (
    select i.id, i.status, i.drained_at is not null as drained
    from romancy.instances i
    where i.id = $1::text and i.token = $2::bigint and i.status || '' in ('stuck', 'failed', 'cancelled')
    for no key update
), subscribed as materialized (
    select t.id, h.channel, h.mode
    from target t cross join lateral (
        select distinct on (h.name) h.name as channel, h.kind, case when h.kind = 'subscribe' then h.payload ->> 'mode' end as mode
        from romancy.history h
        where h.instance_id = t.id and h.kind in ('subscribe', 'unsubscribe')
          and case when h.kind = 'subscribe' then h.payload ->> 'taken' end is null
        order by h.name, h.position desc
    ) h
    where h.kind = 'subscribe' and $4::boolean
), taken as materialized (
    select s.channel from subscribed s
    where (select true from romancy.subscriptions o
           where o.channel = s.channel and o.mode = any (array_remove(array['broadcast', 'competing', 'direct'], s.mode))
             and o.instance_id <> s.id limit 1)
), revived as (
    -- A cancellation that a run has failed before it noticed is over with that failure.
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null, token = i.token + 1, error = null, output = null, ended_at = null,
        deaths = 0, died_at = null, died_with = null, cancel = case when t.status <> 'failed' then i.cancel end
    from target t
    where i.id = any (array[t.id]) and not t.drained and not exists (select 1 from taken)
    returning i.id, i.workflow
), forgotten as (
    delete from romancy.history h using revived r where h.instance_id = any (array[r.id]) and h.position = any ($3::integer[])
), attempts as (
    delete from romancy.attempts a using revived r where a.instance_id = any (array[r.id]) and a.position = any ($3::integer[])
), undisturbed as (
    delete from romancy.interruptions n using revived r where n.instance_id = any (array[r.id])
), resubscribed as (
    insert into romancy.subscriptions (instance_id, channel, mode)
    select s.id, s.channel, s.mode from subscribed s join revived r on r.id = s.id
    on conflict (instance_id, channel) do nothing
)
select (select min(channel) from taken), (select workflow from revived), t.drained from target t;

-- name: DrainEnded
-- What the runs $1 have left, if they ended more than $2 microseconds ago: history, failed attempts, interruptions, and of those that lead
-- to no other run, messages. Of each at most $3 rows and, as they are stored, $4 bytes and one row more. What another sweep
-- works on is left to it, and a run that a Retry has locked. That must not find a history of which a part is gone, so with the first
-- portion the row is marked. Returned: how many rows were deleted.
with found as materialized (
    select i.id, i.over
    from unnest($1::text[]) as a(id) cross join lateral (
        select i.id, case when i.status = 'continued'
                          then (select true from romancy.instances h where h.id = i.output ->> 'continued_as' limit 1) end is null as over
        from romancy.instances i
        where i.id = a.id and coalesce(i.ended_at, 'infinity') < statement_timestamp() - $2::bigint * interval '1 microsecond'
        for update skip locked
    ) i
), marked as (
    update romancy.instances i set drained_at = clock_timestamp() from found f where i.id = any (array[f.id]) and i.drained_at is null
), records as materialized (
    select c.instance_id, c.position
    from (
        select r.*, sum(r.size) over (order by r.instance_id, r.position) - r.size as before
        from (
            select h.instance_id, h.position, coalesce(pg_column_size(h.payload), 0) as size
            from found f cross join lateral (
                select * from romancy.history h where h.instance_id = f.id order by h.position limit $3::bigint
            ) h
            limit $3::bigint
        ) r
    ) c
    where c.before < $4::bigint
), failures as materialized (
    select c.instance_id, c.position, c.attempt
    from (
        select r.*, sum(r.size) over (order by r.instance_id, r.position, r.attempt) - r.size as before
        from (
            select a.instance_id, a.position, a.attempt, pg_column_size(a.error) as size
            from found f cross join lateral (
                select * from romancy.attempts a where a.instance_id = f.id order by a.position, a.attempt limit $3::bigint
            ) a
            limit $3::bigint
        ) r
    ) c
    where c.before < $4::bigint
), refusals as materialized (
    select n.instance_id, n.position, n.number
    from found f cross join lateral (
        select * from romancy.interruptions n where n.instance_id = f.id order by n.position, n.number limit $3::bigint
    ) n
    limit $3::bigint
), letters as materialized (
    select c.id
    from (
        select r.*, sum(r.size) over (order by r.id) - r.size as before
        from (
            select l.id, pg_column_size(l.payload) as size
            from found f cross join lateral (
                select l.id, l.payload from romancy.mailbox l
                where l.receiver = f.id and f.over
                order by l.channel, l.id + 0
                limit $3::bigint
                for update skip locked
            ) l
            limit $3::bigint
        ) r
    ) c
    where c.before < $4::bigint
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
), unsent as (
    delete from romancy.mailbox m using letters l where m.id = any (array[l.id])
    returning 1
)
select (select count(*) from unrecorded) + (select count(*) from unfailed) + (select count(*) from unrefused) + (select count(*) from unsent);

-- name: DeleteEnded
-- Runs that ended more than $1 microseconds ago and have nothing left: the first $2 from $3 on, in the order of their ends, without
-- the runs $4, which ended at $3 and have been looked at. To begin after a pair of moment and id instead, and to order by it, all that
-- have ended would be sorted. The row of a run goes last, so a sweep that was interrupted is continued by any other.
-- A run that continued as one which is there is kept, because it leads to that one; only its history goes. A former run of
-- one that is deleted is before it, where no look may come soon again: it is returned, for DeleteFormer.
-- Also returned, whether there are rows or not: how many were deleted, how many were looked at, how many of them are kept, when the
-- last of them ended, and which ended then; and those of which something is left, for DrainEnded.
with aged as materialized (
    select i.id, i.ended_at, i.status, i.output
    from romancy.instances i
    where i.ended_at >= coalesce($3::timestamptz, '-infinity') and i.ended_at < statement_timestamp() - $1::bigint * interval '1 microsecond'
    order by i.ended_at
    limit $2::bigint + cardinality($4::text[])
), page as materialized (
    select a.id, a.ended_at,
           case when a.status = 'continued'
                then (select true from romancy.instances h where h.id = a.output ->> 'continued_as' limit 1) end is true as kept
    from aged a
    where a.id <> all ($4::text[])
    limit $2::bigint
), looked as materialized (
    select p.*,
           coalesce((select true from romancy.history h where h.instance_id = p.id limit 1),
                    (select true from romancy.attempts a where a.instance_id = p.id limit 1),
                    (select true from romancy.interruptions n where n.instance_id = p.id limit 1),
                    (select true from romancy.mailbox m where m.receiver = p.id and not p.kept limit 1)) is true as filled
    from page p
), found as materialized (
    -- A failed run may just have been taken up again. The moment is compared as an expression: the index over it is no way to one run.
    select i.id, i.continued_from, l.filled
    from looked l cross join lateral (
        select i.id, i.continued_from from romancy.instances i
        where i.id = l.id and coalesce(i.ended_at, 'infinity') < statement_timestamp() - $1::bigint * interval '1 microsecond'
          and (l.filled or not l.kept)
        for update skip locked
    ) i
), gone as (
    delete from romancy.instances i using found f where i.id = any (array[f.id]) and not f.filled
    returning i.id
)
select (select count(*) from gone), (select count(*) from page), (select count(*) from page where kept), last.ended_at,
       array(select p.id from page p where p.ended_at = last.ended_at),
       array(select f.continued_from from found f where not f.filled and f.continued_from is not null),
       array(select f.id from found f where f.filled)
from (select max(p.ended_at) as ended_at from page p) as last;

-- name: DeleteFormer
-- The runs $1, which continued as ones that are deleted, and those before them, the last first, up to $2. Whoever deletes a run of
-- a line has the lock of its end, so no two work on one line. Returned: how many were deleted, what comes next, and those of which
-- something is left, for DrainEnded.
with recursive ends as materialized (
    select i.id, i.continued_from
    from unnest($1::text[]) as a(id) cross join lateral (
        select i.id, i.continued_from from romancy.instances i
        where i.id = a.id and i.status || '' = 'continued'
          and (select true from romancy.instances h where h.id = i.output ->> 'continued_as' limit 1) is null
        for update skip locked
    ) i
), line (id, continued_from) as (
    select e.id, e.continued_from from ends e
    union all
    select i.id, i.continued_from
    from line l cross join lateral (
        select i.id, i.continued_from from romancy.instances i where i.id = l.continued_from and i.status || '' = 'continued' offset 0
    ) i
), former as materialized (
    select l.id, l.continued_from from line l limit $2::bigint
), looked as materialized (
    select f.id,
           coalesce((select true from romancy.history h where h.instance_id = f.id limit 1),
                    (select true from romancy.attempts a where a.instance_id = f.id limit 1),
                    (select true from romancy.interruptions n where n.instance_id = f.id limit 1),
                    (select true from romancy.mailbox m where m.receiver = f.id limit 1)) is true as filled
    from former f
), found as materialized (
    select i.id, l.filled
    from looked l cross join lateral (
        select i.id from romancy.instances i where i.id = l.id for update skip locked
    ) i
), gone as (
    delete from romancy.instances i using found f where i.id = any (array[f.id]) and not f.filled
    returning i.id
)
select (select count(*) from gone),
       array(select f.continued_from from former f where f.continued_from is not null and f.continued_from not in (select id from former)),
       array(select f.id from found f where f.filled);

-- name: CancelRun
-- Ends a run that has nothing to undo or is not to ($3 false), else asks it to: whoever executes it learns of that, and a
-- parked or stuck one is executed for it, a stuck one as after a Retry. One that was asked, or undoes its steps, is not ended without
-- that, unless it is stuck.
-- Says what it found, what it did ('ended', 'asked' or nothing), whether the run had been asked before, and the run that one
-- which has continued as new has become. LockRun comes before it.
-- What was sent to a run that ends is received by nobody. The first of it is deleted here, the rest swept, as by FinishRuns.
with target as materialized (
    select i.id, i.status, i.workflow, i.compensating, i.cancel is not null as asked_before,
           i.status = 'running' or (select true from romancy.history h where h.instance_id = i.id limit 1) is true as begun
    from romancy.instances i
    where i.id = $1::text
    for no key update
), cancellable as materialized (
    select t.*
    from target t
    where t.status in ('ready', 'running', 'waiting', 'stuck') and (not t.compensating or t.status = 'stuck' and not $3::boolean)
      and ($3::boolean or not t.asked_before or t.status = 'stuck')
), ended as (
    update romancy.instances i
    set status = 'cancelled', error = $2::text::json, token = i.token + 1, worker = null,
        wake_at = null, wake_position = null, wake_channels = null, ended_at = clock_timestamp()
    from cancellable t
    where i.id = any (array[t.id]) and not ($3::boolean and t.begun)
    returning i.id
), asked as (
    update romancy.instances i
    set cancel = coalesce(i.cancel, $2::text::json),
        status = case when t.status = 'running' then 'running' else 'ready' end,
        worker = case when t.status = 'running' then i.worker end,
        ready_at = case when t.status in ('running', 'ready') then i.ready_at else clock_timestamp() end,
        error = case when t.status <> 'stuck' then i.error end,
        deaths = case when t.status <> 'stuck' then i.deaths else 0 end,
        died_at = case when t.status <> 'stuck' then i.died_at end,
        died_with = case when t.status <> 'stuck' then i.died_with end
    from cancellable t
    where i.id = any (array[t.id]) and $3::boolean and t.begun
    returning i.id
), unsubscribed as (
    delete from romancy.subscriptions s using ended e where s.instance_id = any (array[e.id])
), discarded as (
    delete from romancy.mailbox m
    using ended e cross join lateral (
        select l.id, l.payload from romancy.mailbox l where l.receiver = e.id order by l.channel, l.id + 0 limit (select 100)
    ) letter
    where m.id = any (array[letter.id]) and pg_column_size(letter.payload) <= 65536
), unasked as (
    delete from romancy.event_waits w using ended e where w.instance_id = any (array[e.id])
)
select t.status, t.workflow, t.compensating,
       case when exists (select 1 from ended) then 'ended' when exists (select 1 from asked) then 'asked' else '' end,
       t.asked_before, case when t.status = 'continued' then romancy.heir(t.id) end
from target t;

-- name: FindCancel
-- Why a run is to be cancelled, asked by its owner, whose last statement for it was refused: by that, or because it is not the
-- owner any more.
select i.cancel::text
from romancy.instances i
where i.id = $1::text and i.token = $2::bigint and i.worker = $3::bigint and i.status || '' = 'running' and i.cancel is not null;
