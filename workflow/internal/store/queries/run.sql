-- name: Guard
-- Every statement of a flush finds its rows by key. These settings hold until its commit: no plan may read a whole table,
-- however stale the statistics are, and no lock is waited for longer than this. With only one plan left to choose, it is made
-- once a connection: planning a batch's statement anew takes longer than executing it. What somebody has set for the role or the
-- database (time limits, where names are looked up) does not apply.
select set_config('enable_seqscan', 'off', true), set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true), set_config('jit', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('lock_timeout', $1::text, true), set_config('statement_timeout', '0', true),
       set_config('idle_in_transaction_session_timeout', '0', true),
       set_config('search_path', 'pg_catalog, pg_temp', true);

-- name: GuardSession
-- The same, once for a connection that is nobody else's, and that its transactions may write and see what others have committed
-- meanwhile. A pooler that lends one server connection to many tells each of them another process id than the server's: there the
-- settings end with this statement.
select set_config('enable_seqscan', 'off', lent) is not null and set_config('enable_hashjoin', 'off', lent) is not null
   and set_config('enable_mergejoin', 'off', lent) is not null and set_config('jit', 'off', lent) is not null
   and set_config('plan_cache_mode', 'force_generic_plan', lent) is not null
   and set_config('lock_timeout', $1::text, lent) is not null and set_config('statement_timeout', '0', lent) is not null
   and set_config('idle_in_transaction_session_timeout', '0', lent) is not null
   and set_config('idle_session_timeout', '0', lent) is not null
   and (current_setting('transaction_timeout', true) is null or set_config('transaction_timeout', '0', lent) is not null) -- since 17
   and set_config('search_path', 'pg_catalog, pg_temp', lent) is not null
   and set_config('default_transaction_isolation', 'read committed', lent) is not null
   and set_config('default_transaction_read_only', 'off', lent) is not null and not lent
from (select pg_backend_pid() <> $2::bigint as lent offset 0) as connection;

-- Plans are made once, perhaps while the tables are empty, so the statements leave the planner one way to each row:
--   i.id = any (array[a.id])    joins by index lookup for each a; i.id = a.id could also walk the table in the key's order.
--   i.status || '' = 'running'  is checked on the row found; without the || '' the partial index of that status could be walked.
--   order by m.id + 0           is the order of the index that has the receiver; by m.id the primary key could be walked.
--   m.receiver || '' = line     is the index of the direct messages alone: others may be in between.
--   limit (select 100)          of unknown size, in the order of the index: for a known one a bitmap of all rows could be made first.
--   (select true ... limit 1)   is a lookup; an exists could become a hash of everything.

-- name: StartRuns
-- One alone goes by StartRun, which has to do the same.
-- A worker given: the run starts out owned by it, else it is ready for anyone.
insert into romancy.instances (id, workflow, status, worker, token, ready_at, input, trace, priority)
select a.id, a.workflow, case when a.worker is null then 'ready' else 'running' end, a.worker,
       case when a.worker is null then 0 else 1 end, clock_timestamp(), a.input::json, a.trace::json, a.priority
from unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::text[], $6::smallint[])
    with ordinality as a(id, workflow, input, worker, trace, priority, ord)
order by a.ord
on conflict (id) do nothing
returning id;

-- name: StartRun
-- StartRuns for a single one.
insert into romancy.instances (id, workflow, status, worker, token, ready_at, input, trace, priority)
values ($1::text, $2::text, case when $4::bigint is null then 'ready' else 'running' end, $4::bigint,
        case when $4::bigint is null then 0 else 1 end, clock_timestamp(), ($3::text)::json, ($5::text)::json, $6::smallint)
on conflict (id) do nothing
returning id;

-- name: FindRuns
select i.id, i.workflow, i.status, i.worker, i.token, i.input::text, i.output::text, i.error::text, i.drained_at is not null, i.erased_at is not null
from unnest($1::text[]) as a(id) cross join lateral (
    select * from romancy.instances i where i.id = a.id offset 0
) i;

-- name: ClaimReady
-- One index range a workflow, so that a flood of one workflow, or of one nobody here knows, hides no other: up to $3 of each,
-- the most urgent first, and $4 in all, in the order of $1. The limit at the end stops the loop over the workflows, so that no
-- row is locked that is not claimed: nobody else would come back for it. A worker whose lease has run out, and who may not know
-- it yet, gets nothing.
-- Also returned, whether there are rows or not: where a mark may be ($5 microseconds ago) now that everything before was seen,
-- and how long the statement has taken.
with found as materialized (
    select r.id
    from unnest($1::text[], $3::integer[]) as w(name, allowed) cross join lateral (
        select i.id
        from romancy.instances i
        where i.status = 'ready' and i.workflow = w.name
          and exists (select 1 from romancy.workers me where me.id = $2::bigint and me.lease_until > clock_timestamp())
        order by i.priority desc, i.ready_at
        limit w.allowed
        for no key update of i skip locked
    ) r
    limit $4::bigint
), claimed as (
    update romancy.instances i
    set status = 'running', worker = $2::bigint, token = i.token + 1
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow, i.token, i.input::text as input, i.priority, i.ready_at, i.trace::text as trace, i.line is not null as heir
), told as materialized (
    select count(*) as claimed, (extract(epoch from statement_timestamp()) * 1000000)::bigint - $5::bigint as mark_us,
           (extract(epoch from clock_timestamp() - statement_timestamp()) * 1000000)::bigint as took_us
    from claimed
)
select t.mark_us, t.took_us, c.id, c.workflow, c.token, c.input, c.priority, (extract(epoch from c.ready_at) * 1000000)::bigint, c.trace, c.heir
from told t left join claimed c on true;

-- name: ClaimReadyFrom
-- The same from low-water marks on, one for each priority ($7) of a workflow ($6) that is known to be in use: $8, microseconds,
-- or $5 microseconds ago if the clock has been set back beyond that. While an old snapshot is open, all that was ever ready
-- before would have to be stepped over. The priorities between those, down to $9, have no mark ($8 null), nor hardly any run.
with found as materialized (
    select r.id
    from unnest($1::text[], $3::integer[]) as w(name, allowed) cross join lateral (
        select c.id
        from unnest($6::text[], $7::smallint[], $8::bigint[], $9::smallint[]) as l(workflow, priority, since_us, lowest) cross join lateral (
            select marked.id from (
                select i.id
                from romancy.instances i
                where l.since_us is not null
                  and i.status = 'ready' and i.workflow = l.workflow and i.priority = l.priority
                  and i.ready_at >= least(to_timestamp(0) + l.since_us * interval '1 microsecond',
                                          statement_timestamp() - $5::bigint * interval '1 microsecond')
                  and exists (select 1 from romancy.workers me where me.id = $2::bigint and me.lease_until > clock_timestamp())
                order by i.ready_at
                limit w.allowed
                for no key update of i skip locked
            ) marked
            union all
            select unmarked.id from (
                select i.id
                from romancy.instances i
                where l.since_us is null
                  and i.status = 'ready' and i.workflow = l.workflow and i.priority <= l.priority and i.priority >= l.lowest
                  and exists (select 1 from romancy.workers me where me.id = $2::bigint and me.lease_until > clock_timestamp())
                order by i.priority desc, i.ready_at
                limit w.allowed
                for no key update of i skip locked
            ) unmarked
        ) c
        where l.workflow = w.name
        limit w.allowed
    ) r
    limit $4::bigint
), claimed as (
    update romancy.instances i
    set status = 'running', worker = $2::bigint, token = i.token + 1
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow, i.token, i.input::text as input, i.priority, i.ready_at, i.trace::text as trace, i.line is not null as heir
), told as materialized (
    select count(*) as claimed, (extract(epoch from statement_timestamp()) * 1000000)::bigint - $5::bigint as mark_us,
           (extract(epoch from clock_timestamp() - statement_timestamp()) * 1000000)::bigint as took_us
    from claimed
)
select t.mark_us, t.took_us, c.id, c.workflow, c.token, c.input, c.priority, (extract(epoch from c.ready_at) * 1000000)::bigint, c.trace, c.heir
from told t left join claimed c on true;

-- name: ClaimWaiting
-- A named run that is due although nobody here holds it in memory any more. Also returned: since how many microseconds. Those that
-- nobody holds in memory and that were not claimed, because they are not due yet or their rows are held, come back without an
-- input, with the microseconds until they are due.
with found as materialized (
    select r.id
    from unnest($1::text[]) as a(id) cross join lateral (
        select i.id
        from romancy.instances i
        where i.id = a.id and i.status || '' = 'waiting' and i.wake_at <= clock_timestamp()
          and exists (select 1 from romancy.workers me where me.id = $2::bigint and me.lease_until > clock_timestamp())
        for no key update of i skip locked
    ) r
), claimed as (
    update romancy.instances i
    set status = 'running', worker = $2::bigint, token = i.token + 1
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow, i.token, i.input, i.trace, i.wake_at, i.line is not null as heir
)
select c.id, c.workflow, c.token, c.input::text, c.trace::text, (extract(epoch from clock_timestamp() - c.wake_at) * 1000000)::bigint, null::bigint, c.heir
from claimed c
union all
select i.id, i.workflow, i.token, null, null, null, (extract(epoch from i.wake_at - clock_timestamp()) * 1000000)::bigint, null::boolean
from unnest($1::text[]) as a(id) cross join lateral (
    select i.id, i.workflow, i.token, i.wake_at
    from romancy.instances i
    where i.id = a.id and i.status || '' = 'waiting' and i.wake_at is not null and i.id <> all (array(select f.id from found f))
      and (i.worker = $2::bigint
           or not exists (select 1 from romancy.workers w where w.id = i.worker and w.lease_until > clock_timestamp()))
    offset 0
) i;

-- name: LoadHistory
-- What has been recorded of runs, in order, notes first: of the first of them after position $2 (0: all), at most $4 rows, and nothing that comes after $3 bytes of
-- others, as they are stored. Also returned: how many rows there are without the limit in bytes.
select p.instance_id, p.position, p.kind, p.name, p.payload::text, p.total
from (
    select l.*, sum(l.size) over (order by l.ord, l.position) - l.size as before, count(*) over () as total
    from (
        select h.*, a.ord, coalesce(pg_column_size(h.payload), 0) as size
        from unnest($1::text[]) with ordinality as a(id, ord) cross join lateral (
            select h.instance_id, h.position, h.kind, h.name, h.payload
            from romancy.history h
            where h.instance_id = a.id and h.position > case when a.ord = 1 and $2::integer <> 0 then $2::integer else -2147483648 end
            order by h.position
            limit $4::bigint
        ) h
        order by a.ord, h.position
        limit $4::bigint
    ) l
) p
where p.before < $3::bigint
order by p.ord, p.position;

-- name: LoadAttempts
-- Of each step of runs that has failed attempts: the number of the last, when the first failed, when the next is due, and whether one is in
-- doubt that came before. From one step to the next, by key: a step may have failed a hundred thousand times.
with recursive steps (id, position) as (
    select a.id, (select t.position from romancy.attempts t where t.instance_id = a.id order by t.position limit 1)
    from unnest($1::text[]) as a(id)
    union all
    select s.id, (select t.position from romancy.attempts t where t.instance_id = s.id and t.position > s.position order by t.position limit 1)
    from steps s
    where s.position is not null
)
select s.id, s.position, last.attempt,
       (extract(epoch from clock_timestamp() - first.failed_at) * 1000000)::bigint,
       (extract(epoch from last.next_at - clock_timestamp()) * 1000000)::bigint,
       (extract(epoch from last.next_at) * 1000000)::bigint,
       last.error -> 'in_doubt' is not null
from steps s cross join lateral (
    select t.attempt, t.next_at, t.error from romancy.attempts t
    where t.instance_id = s.id and t.position = s.position
    order by t.attempt desc
    limit 1
) last cross join lateral (
    select t.failed_at from romancy.attempts t
    where t.instance_id = s.id and t.position = s.position
    order by t.attempt
    limit 1
) first
where s.position is not null;

-- name: LoadCancels
-- Those of the runs that are to be cancelled, and why.
select i.id, i.cancel::text
from unnest($1::text[]) as a(id) cross join lateral (
    select * from romancy.instances i where i.id = a.id and i.cancel is not null offset 0
) i;

-- name: ReleaseRuns
update romancy.instances i
set status = 'ready', ready_at = clock_timestamp(), worker = null
from unnest($1::text[], $2::bigint[]) as a(id, token)
where i.id = any (array[a.id]) and i.token = a.token and i.worker = $3::bigint and i.status || '' = 'running'
returning i.id, i.workflow;

-- name: FinishRuns
-- One alone goes by FinishRun, which has to do the same.
-- A terminal state takes the run's subscriptions with it, and its messages: the first 100, those that are large left out, so that an
-- end takes no longer the more there are. The others, and those of its line, are received by nobody, and swept. A stuck run keeps
-- both: it will be resumed. One that has failed keeps what was sent to it alone, which its senders were told had arrived: it may be
-- retried. One that has undone its steps receives nothing any more. A run that was asked to undo its steps, and
-- does not know it yet, neither completes nor fails: see FindCancel.
with ask as materialized (
    select * from unnest($1::text[], $2::bigint[], $3::text[], $4::text[], $5::text[]) as a(id, token, status, output, error)
), ended as (
    update romancy.instances i
    set status = a.status, output = a.output::json, error = a.error::json, worker = null,
        wake_at = null, wake_position = null, wake_channels = null,
        ended_at = case when a.status <> 'stuck' then clock_timestamp() end
    from ask a
    where i.id = any (array[a.id]) and i.token = a.token and i.worker = $6::bigint and i.status || '' = 'running'
      and (i.cancel is null or i.compensating or a.status in ('cancelled', 'stuck'))
    returning i.id, i.status, i.status = 'failed' and not i.compensating as retryable
), unsubscribed as (
    delete from romancy.subscriptions s using ended e where s.instance_id = any (array[e.id]) and e.status <> 'stuck'
), discarded as (
    delete from romancy.mailbox m
    using ended e cross join lateral (
        select l.id, l.mode, l.payload from romancy.mailbox l where l.receiver = e.id order by l.channel, l.id + 0 limit (select 100)
    ) letter
    where m.id = any (array[letter.id]) and e.status <> 'stuck' and not (e.retryable and letter.mode = 'direct')
      and pg_column_size(letter.payload) <= 65536
), unasked as (
    delete from romancy.event_waits w using ended e where w.instance_id = any (array[e.id])
)
select id from ended;

-- name: FinishRun
-- FinishRuns for a single one.
with ended as (
    update romancy.instances i
    set status = $3::text, output = ($4::text)::json, error = ($5::text)::json, worker = null,
        wake_at = null, wake_position = null, wake_channels = null,
        ended_at = case when $3::text <> 'stuck' then clock_timestamp() end
    where i.id = $1::text and i.token = $2::bigint and i.worker = $6::bigint and i.status || '' = 'running'
      and (i.cancel is null or i.compensating or $3::text in ('cancelled', 'stuck'))
    returning i.id, i.status <> 'stuck' as over, i.status = 'failed' and not i.compensating as retryable
), unsubscribed as (
    delete from romancy.subscriptions s where s.instance_id = (select e.id from ended e where e.over)
), discarded as (
    delete from romancy.mailbox m
    where m.id = any (array(
        select l.id
        from (
            select l.id, l.mode, l.payload from romancy.mailbox l
            where l.receiver = (select e.id from ended e where e.over)
            order by l.channel, l.id + 0
            limit (select 100)
        ) l
        where not (l.mode = 'direct' and (select e.retryable from ended e)) and pg_column_size(l.payload) <= 65536
    ))
), unasked as (
    delete from romancy.event_waits w where w.instance_id = (select e.id from ended e)
)
select id from ended;

-- name: OwnedRuns
select i.id, i.token, i.workflow from romancy.instances i where i.status = 'running' and i.worker = $1::bigint;

-- name: ContinueRuns
-- A run ends and goes on as a new one. What was sent to it and not received is addressed to their line, and stays where it is; what
-- was published to it is received by nobody, and swept. Its subscriptions end with it. Messages that an older build has addressed
-- to the run itself are moved to the line: the first 100 in this statement, the others by a sweep.
-- One that was asked to undo its steps does not continue: see FindCancel.
with ask as materialized (
    select * from unnest($1::text[], $2::bigint[], $3::text[], $4::text[]) as a(id, token, next_id, input)
), ended as (
    update romancy.instances i
    set status = 'continued', output = json_build_object('continued_as', a.next_id), worker = null,
        wake_at = null, wake_position = null, wake_channels = null, ended_at = clock_timestamp()
    from ask a
    where i.id = any (array[a.id]) and i.token = a.token and i.worker = $5::bigint and i.status || '' = 'running'
      and i.cancel is null
    returning i.id, i.workflow, i.parent, i.trace, i.priority, coalesce(i.line, i.id) as line, a.next_id, a.input
), next as (
    insert into romancy.instances (id, workflow, status, token, ready_at, input, parent, continued_from, line, trace, priority)
    select e.next_id, e.workflow, 'ready', 0, clock_timestamp(), e.input::json, e.parent, e.id, e.line, e.trace, e.priority from ended e
), unsubscribed as (
    delete from romancy.subscriptions s using ended e where s.instance_id = any (array[e.id])
), former as materialized (
    select letter.id, letter.mode, e.line
    from ended e cross join lateral (
        select l.id, l.mode from romancy.mailbox l where l.receiver = e.id and e.line <> e.id
        order by l.channel, l.id + 0 limit (select 100)
        for update skip locked
    ) letter
), moved as (
    update romancy.mailbox m set receiver = f.line from former f where m.id = any (array[f.id]) and f.mode = 'direct'
)
select id from ended;

-- name: HeldRuns
-- Of the runs that a worker has in memory, those that it should not have, or not like this: that are to be cancelled, or have ended,
-- or belong to another worker. A smaller token than that in memory: the database has lost its last commits.
select i.id, i.status, i.token, coalesce(i.worker, 0), i.cancel::text
from unnest($1::text[], $2::bigint[]) as a(id, token) cross join lateral (
    select * from romancy.instances i
    where i.id = a.id and (i.cancel is not null or i.token < a.token or i.token > a.token + 1 or i.worker <> $3::bigint or i.status not in ('ready', 'running', 'waiting'))
    offset 0
) i;
