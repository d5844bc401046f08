-- The outbox: events written in the caller's transaction, waiting for the relay.

create table {{.schema}}.outbox (
    id         bigint generated always as identity primary key,
    event_id   text collate "C" not null check (octet_length(event_id) between 1 and 255),
    topic      text collate "C" not null check (octet_length(topic) between 1 and 255),
    key        text collate "C" not null,     -- events of one key keep their order
    slot       integer not null,              -- hash of the key, the unit of ownership between relays
    payload    bytea not null,
    headers    json,
    attempts   integer not null default 0,    -- counted when a relay takes it, so that a crash counts too
    next_at    timestamptz,                   -- after a failure: not before
    last_error text,
    dead_at    timestamptz,                   -- given up: a dead letter, for a person to look at
    created_at timestamptz not null default clock_timestamp()
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

create index outbox_pending on {{.schema}}.outbox (slot, id) where dead_at is null;
create index outbox_dead on {{.schema}}.outbox (dead_at) where dead_at is not null;

-- One row a slot. owner null or lease over: any relay may take it. The lease is in no index.
create table {{.schema}}.outbox_slots (
    slot        integer primary key,
    owner       text collate "C",
    token       bigint not null default 0,
    lease_until timestamptz
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_cost_delay = 0);

insert into {{.schema}}.outbox_slots (slot) select generate_series(0, 63);

create view {{.schema}}.pending_outbox_pending as
select created_at as at, event_id as item, attempts::bigint as version,
       json_build_object('event_id', event_id)::text as payload
from {{.schema}}.outbox
where dead_at is null;
