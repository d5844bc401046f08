-- name: AddEvents
-- Row order is id order: identity values are drawn after the sort. That is what keeps the events of one call in order.
with added as (
    insert into romancy.outbox (event_id, topic, key, slot, payload, headers)
    select e.event_id, e.topic, e.key, e.slot, e.payload, case when e.headers <> '' then e.headers::json end
    from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::bytea[], $6::text[])
         with ordinality as e (event_id, topic, key, slot, payload, headers, position)
    order by e.position
)
select pg_current_xact_id()::text;

-- name: AddEventsAndNotify
-- The same, and the notifications in the same round trip; none while more than a tenth of the server's NOTIFY queue is in
-- use: at its end the transaction could not commit. Relays find the events by polling.
with added as (
    insert into romancy.outbox (event_id, topic, key, slot, payload, headers)
    select e.event_id, e.topic, e.key, e.slot, e.payload, case when e.headers <> '' then e.headers::json end
    from unnest($1::text[], $2::text[], $3::text[], $4::integer[], $5::bytea[], $6::text[])
         with ordinality as e (event_id, topic, key, slot, payload, headers, position)
    order by e.position
)
select count(pg_notify($7::text, n.payload)) from unnest($8::text[]) as n (payload)
where (select pg_catalog.pg_notification_queue_usage()) < 0.1;
