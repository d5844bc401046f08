-- name: MatchEvents
-- The parked runs that the worker $2 holds in memory and that wait for one of the events $1 and have not had it. From an event
-- to those who wait for it: shape steps through the sets of names that anybody asks for of its type, and each leaves one set
-- of values to look up.
with recursive page as materialized (
    select e.id, e.type, e.match
    from unnest($1::bigint[]) as a(id) cross join lateral (
        select e.id, e.type, e.match from romancy.events e where e.id = a.id and e.expires_at > clock_timestamp() offset 0
    ) e
), shape (id, type, match, names) as (
    select p.id, p.type, p.match,
           (select w.names from romancy.event_waits w where w.type = p.type order by w.names limit 1)
    from page p
    union all
    select s.id, s.type, s.match,
           (select w.names from romancy.event_waits w where w.type = s.type and w.names > s.names order by w.names limit 1)
    from shape s
    where s.names is not null
)
select distinct w.instance_id
from (select s.id, s.type, s.names, (select coalesce(jsonb_object_agg(n, s.match -> n), '{}') from unnest(s.names) as k(n)) as attributes
      from shape s where s.match ?& s.names offset 0) asked
cross join lateral (
    select w.instance_id from romancy.event_waits w
    where w.type = asked.type and w.names = asked.names and w.attributes = asked.attributes and asked.id <> all (w.seen) offset 0
) w
cross join lateral (
    select 1 from romancy.instances i where i.id = w.instance_id and i.status || '' = 'waiting' and i.worker = $2::bigint offset 0
) held;

-- name: SweepEventsFor
-- Up to $2 parked runs that wait for one of the events $1 become ready, unless a live, listening worker holds them in memory.
-- Also returned: the lowest of the events that are there, how many runs were found, and how many of them stay as they are because their rows are held at the moment.
with recursive page as materialized (
    select e.id, e.type, e.match
    from unnest($1::bigint[]) as a(id) cross join lateral (
        select e.id, e.type, e.match from romancy.events e where e.id = a.id and e.expires_at > clock_timestamp() offset 0
    ) e
), shape (id, type, match, names) as (
    select p.id, p.type, p.match,
           (select w.names from romancy.event_waits w where w.type = p.type order by w.names limit 1)
    from page p
    union all
    select s.id, s.type, s.match,
           (select w.names from romancy.event_waits w where w.type = s.type and w.names > s.names order by w.names limit 1)
    from shape s
    where s.names is not null
), told as materialized (
    select i.id
    from (select s.id, s.type, s.names, (select coalesce(jsonb_object_agg(n, s.match -> n), '{}') from unnest(s.names) as k(n)) as attributes
          from shape s where s.match ?& s.names offset 0) asked
    cross join lateral (
        select w.instance_id from romancy.event_waits w
        where w.type = asked.type and w.names = asked.names and w.attributes = asked.attributes and asked.id <> all (w.seen) offset 0
    ) w
    cross join lateral (
        select i.id from romancy.instances i
        where i.id = w.instance_id and i.status || '' = 'waiting' and i.wake_channels = array['event:' || asked.type]
          and not exists (select 1 from romancy.workers k where k.id = i.worker and k.listening and k.lease_until > clock_timestamp())
        offset 0
    ) i
    limit $2::bigint
), found as materialized (
    select i.id
    from told t cross join lateral (
        select i.id from romancy.instances i
        where i.id = t.id and i.status || '' = 'waiting' and i.wake_channels is not null
        for no key update of i skip locked
    ) i
), woken as (
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null
    from (select distinct f.id from found f) f
    where i.id = any (array[f.id])
    returning i.id, i.workflow
), gone as (
    delete from romancy.event_waits w using woken o where w.instance_id = any (array[o.id])
)
select (select min(id) from page), (select count(*) from told), (select count(*) from told) - (select count(*) from found), o.id, o.workflow
from (select 1) as one left join woken o on true;

-- name: SweepEvents
-- The same for the events after $1, page by page. Up to $4 runs become ready. A run that a live, listening worker holds in
-- memory is left to that worker for $3 microseconds. Also returned, whether there are rows or not: the last event of the
-- page, how many there were, where the mark may be ($5 microseconds back, because a transaction that is still open may have
-- sent events before these), and how many runs were found.
with recursive page as materialized (
    select e.id, e.type, e.match, e.created_at, e.expires_at
    from romancy.events e
    where e.id > $1::bigint
    order by e.id
    limit $2::bigint
), shape (id, type, match, created_at, names) as (
    select p.id, p.type, p.match, p.created_at,
           (select w.names from romancy.event_waits w where w.type = p.type order by w.names limit 1)
    from page p
    where p.expires_at > clock_timestamp()
    union all
    select s.id, s.type, s.match, s.created_at,
           (select w.names from romancy.event_waits w where w.type = s.type and w.names > s.names order by w.names limit 1)
    from shape s
    where s.names is not null
), found as materialized (
    select i.id
    from (select s.id, s.type, s.created_at, s.names,
                 (select coalesce(jsonb_object_agg(n, s.match -> n), '{}') from unnest(s.names) as k(n)) as attributes
          from shape s where s.match ?& s.names offset 0) asked
    cross join lateral (
        select w.instance_id from romancy.event_waits w
        where w.type = asked.type and w.names = asked.names and w.attributes = asked.attributes and asked.id <> all (w.seen) offset 0
    ) w
    cross join lateral (
        select i.id from romancy.instances i
        where i.id = w.instance_id and i.status || '' = 'waiting' and i.wake_channels = array['event:' || asked.type]
          and (asked.created_at <= clock_timestamp() - $3::bigint * interval '1 microsecond'
               or not exists (select 1 from romancy.workers k where k.id = i.worker and k.listening and k.lease_until > clock_timestamp()))
        for no key update of i skip locked
    ) i
    limit $4::bigint
), woken as (
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null
    from (select distinct f.id from found f) f
    where i.id = any (array[f.id])
    returning i.id, i.workflow
), gone as (
    delete from romancy.event_waits w using woken o where w.instance_id = any (array[o.id])
)
select (select max(id) from page), (select count(*) from page),
       (select max(id) from page where created_at <= statement_timestamp() - $5::bigint * interval '1 microsecond'),
       (select count(*) from found), o.id, o.workflow
from (select 1) as one left join woken o on true;

-- name: LastEvent
select max(e.id) from romancy.events e where e.created_at <= statement_timestamp() - $1::bigint * interval '1 microsecond';

-- name: SweepEventWaits
-- The full look: all who wait, page by page after $1, whatever event they wait for, with the same grace $3. What the sweep by
-- events cannot know is found here: an event that came to light below its mark and that nobody was told of.
with page as materialized (
    select w.*, w.names = '{}' as bare, w.attributes || jsonb_build_object('', w.type) as match
    from romancy.event_waits w
    where w.instance_id > $1::text
    order by w.instance_id
    limit $2::bigint
), due as materialized (
    select p.instance_id, p.type, coalesce(
        (select e.created_at from romancy.events e
         where p.bare and e.type = p.type and e.id <> all (p.seen) and e.expires_at > clock_timestamp()
         order by e.id + 0 limit 1),
        (select e.created_at from romancy.events e
         where not p.bare and e.match @> p.match and e.id <> all (p.seen) and e.expires_at > clock_timestamp()
         order by e.id + 0 limit 1)) as created_at
    from page p
), found as materialized (
    select i.id
    from due d cross join lateral (
        select i.id from romancy.instances i
        where i.id = d.instance_id and i.status || '' = 'waiting' and i.wake_channels = array['event:' || d.type]
          and (d.created_at <= clock_timestamp() - $3::bigint * interval '1 microsecond'
               or not exists (select 1 from romancy.workers k where k.id = i.worker and k.listening and k.lease_until > clock_timestamp()))
        for no key update of i skip locked
    ) i
    where d.created_at is not null
), woken as (
    update romancy.instances i
    set status = 'ready', ready_at = clock_timestamp(), worker = null
    from found f
    where i.id = any (array[f.id])
    returning i.id, i.workflow
), gone as (
    delete from romancy.event_waits w using woken o where w.instance_id = any (array[o.id])
)
select (select max(instance_id) from page), (select count(*) from page), o.id, o.workflow
from (select 1) as one left join woken o on true;
