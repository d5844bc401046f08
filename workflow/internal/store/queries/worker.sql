-- name: GuardLease
-- What the session of a worker's lease must be like, whatever the role or the database sets: its statements are few, find their rows by
-- key, wait for a lock for $1 at most and end after $2. $3 is the process id that the client knows: a pooler that lends one server connection
-- to many tells each of them another than the server's. There the settings end with the transaction, and have to be made in each.
select set_config('enable_seqscan', 'off', lent) is not null and set_config('enable_hashjoin', 'off', lent) is not null
   and set_config('enable_mergejoin', 'off', lent) is not null and set_config('jit', 'off', lent) is not null
   and set_config('default_transaction_read_only', 'off', lent) is not null
   and set_config('default_transaction_isolation', 'read committed', lent) is not null
   and set_config('lock_timeout', $1::text, lent) is not null and set_config('statement_timeout', $2::text, lent) is not null
   and set_config('idle_in_transaction_session_timeout', '0', lent) is not null and set_config('idle_session_timeout', '0', lent) is not null
   and (current_setting('transaction_timeout', true) is null or set_config('transaction_timeout', '0', lent) is not null)
   and not lent
from (select pg_backend_pid() <> $3::bigint as lent offset 0) as connection;

-- name: RegisterWorker
-- Also returned, as by Heartbeat: what time it is, and when the lease ends, in microseconds since 1970.
insert into romancy.workers (id, label, listening, lease_until, workflows)
values ($4::bigint, $1::text, $2::boolean, clock_timestamp() + $3::bigint * interval '1 microsecond', $5::text[])
on conflict (id) do update set lease_until = excluded.lease_until -- it was carried out before, and the answer lost: nobody else has that id
returning (extract(epoch from clock_timestamp()) * 1000000)::bigint, (extract(epoch from lease_until) * 1000000)::bigint;

-- name: Heartbeat
-- A lease that has run out is never revived: there is no end of it then. Also: in how many microseconds does the first lease of another
-- worker end, and how many others are there?
with beat as (
    update romancy.workers
    set lease_until = clock_timestamp() + $2::bigint * interval '1 microsecond', listening = $3::boolean
    where id = $1::bigint and lease_until > clock_timestamp()
    returning lease_until
)
select (select (extract(epoch from b.lease_until) * 1000000)::bigint from beat b),
       (select (extract(epoch from min(w.lease_until) - clock_timestamp()) * 1000000)::bigint
        from romancy.workers w where w.id <> $1::bigint),
       (select count(*) from romancy.workers w where w.id <> $1::bigint),
       (extract(epoch from clock_timestamp()) * 1000000)::bigint;

-- name: LeaveWorker
-- A worker that owns nothing any more is gone at once. What another still owns it leaves until its lease ends, because bodies are
-- executing there that have not returned: others take over then, and count no death.
with left_with as (
    update romancy.workers w set left_at = clock_timestamp()
    where w.id = $1::bigint
      and (select true from romancy.instances i where i.status = 'running' and i.worker = $1::bigint limit 1)
    returning w.id
)
delete from romancy.workers w where w.id = $1::bigint and not exists (select 1 from left_with);

-- name: SayLived
-- Workers that have lost their leases though their process lives: whoever takes their runs over from now on counts no death. See
-- TakeBackDeaths for what was counted before.
update romancy.workers w set lived_at = clock_timestamp() where w.id = any ($1::bigint[]);

-- name: TakeBackDeaths
-- The deaths that were counted for workers ($3, whose leases ended at $4) though they lived, with runs ($1) that they had under
-- tokens ($2). A run that was made stuck by such a count is ready again. That it was taken from a worker that lived, and so is executed
-- again, is written down once for each worker.
--
-- Neither this nor TakeOver can miss the other, because both pass the worker's row: TakeOver locks it before it looks whether the
-- worker has lived, and holds it until its counts are committed; SayLived, which is committed before this statement begins, has to
-- lock it too. So either TakeOver came first, and its counts are seen here; or it finds that the worker has lived, or passes it over.
--
-- A run whose row another transaction holds is not waited for, but named (skipped): it is asked for again.
with ask as materialized (
    select a.id, a.token, a.worker, min(a.until_us) as until_us
    from unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[]) as a(id, token, worker, until_us)
    group by a.id, a.token, a.worker
), taken as materialized (
    select a.id, a.token, a.worker
    from ask a cross join lateral (
        select i.died_with, i.died_at from romancy.instances i where i.id = a.id offset 0
    ) i
    where a.worker = any (i.died_with) or i.died_at >= to_timestamp(0) + a.until_us * interval '1 microsecond'
), runs as materialized (
    select t.id, array_agg(t.worker order by t.token) as workers, array_agg(t.token order by t.token) as tokens from taken t group by t.id
), held as materialized (
    select r.id, r.workers, r.tokens, i.workflow, i.status, i.died_with, i.error, i.ended_at is not null as ended
    from runs r left join lateral (
        select i.workflow, i.status, i.died_with, i.error, i.ended_at from romancy.instances i where i.id = r.id for no key update skip locked
    ) i on true
), less as materialized (
    select h.id, h.workers, h.tokens, h.workflow, h.died_with && h.workers and not h.ended as wrong,
           (select count(*) from unnest(h.died_with) d where d = any (h.workers)) as deaths,
           (select array_agg(d) from unnest(h.died_with) d where d <> all (h.workers)) as died_with,
           h.died_with && h.workers and h.status = 'stuck'
           and h.error::text like '{"type":"workers\_died"%' as free -- as text: what may be in others, json cannot take
    from held h
), back as (
    update romancy.instances i
    set deaths = greatest(i.deaths - l.deaths, 0), died_with = l.died_with,
        status = case when l.free then 'ready' else i.status end, ready_at = case when l.free then clock_timestamp() else i.ready_at end,
        error = case when l.free then null else i.error end
    from less l
    where i.id = any (array[l.id]) and l.wrong
), noted as (
    insert into romancy.interruptions (instance_id, position, number, token, worker, error)
    select l.id, 0, row_number() over (partition by l.id order by t.token)
           + coalesce((select x.number from romancy.interruptions x where x.instance_id = l.id and x.position = 0 order by x.number desc limit 1), 0),
           t.token, t.worker, json_build_object('type', 'lease_lost', 'message', 'taken from a worker that had lost its lease, but lived')
    from less l cross join lateral unnest(l.tokens, l.workers) as t(token, worker)
    where l.workflow is not null
      and (select true from romancy.interruptions x
           where x.instance_id = l.id and x.position = 0 and x.token = t.token and x.worker = t.worker limit 1) is null
)
select l.id, l.workflow, coalesce(l.wrong, false), coalesce(l.free, false) from less l;

-- name: TakeOver
-- The runs of workers whose lease has run out become ready again, and stuck ($4: why) if $3 workers in a row have died with
-- them and had recorded nothing. What the last owner has recorded says that it was not the run that killed it; what anybody has
-- recorded since an earlier death, that the count begins anew. Only the last 1,000 records and attempts are looked at. $1 runs at most,
-- and no more are locked: the limit at the end stops the loop over the workers. From the second death
-- on a run waits for a moment, longer each time and at random: who died beside the one that kills does not meet it again.
-- A worker that has left, or has said that it lived, has not died: nothing is counted, but it is written down that the run is
-- executed again. The row of each worker is locked before that is decided, see TakeBackDeaths.
-- A full look ($2) finds also those of a worker that was
-- buried while a write of its was still on the way: owners steps through the index from one owner to the next, over all that
-- has ever been running if an old snapshot is open.
with recursive owners (id) as (
    (select i.worker from romancy.instances i where $2::boolean and i.status = 'running' order by i.worker limit 1)
    union all
    select (select i.worker from romancy.instances i where i.status = 'running' and i.worker > o.id order by i.worker limit 1)
    from owners o where o.id is not null
), ended as materialized (
    select w.id, w.left_at is not null as gone, w.lived_at is not null as lived
    from romancy.workers w
    where w.lease_until <= clock_timestamp()
    for no key update skip locked
), dead as materialized (
    select o.id, false as gone, false as lived from owners o
    where o.id is not null and not exists (select 1 from romancy.workers w where w.id = o.id)
    union all
    select e.id, e.gone, e.lived from ended e
), found as materialized (
    select r.*, d.gone, d.lived
    from dead d cross join lateral (
        select i.id, i.token, i.worker, i.deaths, i.died_at, i.died_with from romancy.instances i
        where i.status = 'running' and i.worker = d.id
        limit $1::bigint
        for no key update skip locked
    ) r
    limit $1::bigint
), past as materialized (
    select f.*, h.own,
           h.since or (select true
                       from (select a.failed_at from romancy.attempts a where a.instance_id = f.id order by a.position desc, a.attempt desc limit 1000) a
                       where a.failed_at > f.died_at limit 1) is true as since
    from found f cross join lateral (
        select coalesce(bool_or(h.token = f.token and coalesce(h.worker, f.worker) = f.worker), false) as own, coalesce(bool_or(h.created_at > f.died_at), false) as since
        from (select h.token, h.worker, h.created_at from romancy.history h where h.instance_id = f.id order by h.position desc limit 1000) h
    ) h
), counted as materialized (
    select p.id, p.token, p.worker, p.gone, p.gone or p.lived as lives,
           case when p.own then 0
                when p.gone or p.lived then case when p.since then 0 else p.deaths end
                when p.since then 1
                else least(p.deaths + 1, 32767) end as deaths,
           case when p.own then null
                when p.gone or p.lived then case when not p.since then p.died_with end
                when p.since then array[p.worker]
                else p.died_with || p.worker end as died_with
    from past p
), noted as (
    insert into romancy.interruptions (instance_id, position, number, token, worker, error)
    select c.id, 0, 1 + coalesce((select x.number from romancy.interruptions x where x.instance_id = c.id and x.position = 0 order by x.number desc limit 1), 0),
           c.token, c.worker,
           case when c.gone then json_build_object('type', 'worker_left', 'message', 'left by a worker that shut down before the step had returned')
                else json_build_object('type', 'lease_lost', 'message', 'taken from a worker that had lost its lease, but lived') end
    from counted c where c.lives
)
update romancy.instances i
set status = case when c.lives then 'ready' when c.deaths >= $3::integer then 'stuck' when c.deaths > 1 then 'waiting' else 'ready' end,
    ready_at = clock_timestamp(), worker = null, wake_position = null, wake_channels = null,
    wake_at = case when not c.lives and c.deaths > 1 and c.deaths < $3::integer then clock_timestamp() + random() * 2 ^ least(c.deaths, 8) * interval '1 second' end,
    deaths = c.deaths, died_with = c.died_with, died_at = case when c.lives then i.died_at else clock_timestamp() end,
    error = case when not c.lives and c.deaths >= $3::integer then $4::text::json end
from counted c
where i.id = any (array[c.id])
returning i.id, i.workflow, i.token, i.status = 'stuck', (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint;

-- name: BuryWorkers
-- Dead workers that own nothing any more: up to 1,000 at once.
with found as materialized (
    select w.id
    from romancy.workers w
    where w.lease_until <= clock_timestamp()
      and (select true from romancy.instances i where i.status = 'running' and i.worker = w.id limit 1) is null
    limit 1000
    for update skip locked
)
delete from romancy.workers w using found f where w.id = any (array[f.id]);
