-- The outbox: events written in the caller's transaction, waiting for the relay.
--
-- An undelivered event (dead_at null) is in one of four states:
--   ready    next_at null, taken null      a relay may take it
--   taken    next_at null, taken not null  a relay has it (or had, and died)
--   backoff  next_at an instant            it failed, and is due again then
--   held     next_at infinity              an earlier event of its key is in backoff
-- Delivered events are deleted.

create table {{.schema}}.outbox (
    id         bigint generated always as identity primary key,
    event_id   text collate "C" not null check (octet_length(event_id) between 1 and 255),
    topic      text collate "C" not null check (octet_length(topic) between 1 and 255),
    key        text collate "C" not null check (octet_length(key) between 1 and 255), -- events of one key keep their order
    slot       integer not null check (slot between 0 and 63), -- FNV-1a of the key modulo 64: the unit of ownership between relays
    payload    bytea not null,
    headers    json,
    attempts   integer not null default 0,    -- counted when a relay takes it, so that a crash counts too
    taken      bigint,                        -- the token of the slot under which it was taken
    next_at    timestamptz,
    last_error text,
    dead_at    timestamptz,                   -- given up: a dead letter, for a person to look at
    created_at timestamptz not null default clock_timestamp()
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

-- What a relay takes next. Backoff and held events are not in it, so that a failing key with a long queue behind it is
-- not stepped over again and again.
create index outbox_ready on {{.schema}}.outbox (slot, id) where dead_at is null and next_at is null;
create index outbox_retry on {{.schema}}.outbox (slot, next_at) where dead_at is null and next_at is not null;
create index outbox_blocked on {{.schema}}.outbox (key, id) where dead_at is null and next_at is not null;
-- The order of the view below, and the oldest event.
create index outbox_age on {{.schema}}.outbox (created_at, event_id) where dead_at is null;
create index outbox_dead on {{.schema}}.outbox (dead_at, id) where dead_at is not null;
create index outbox_dead_event on {{.schema}}.outbox (event_id) where dead_at is not null;

-- One row a slot. owner null or lease over: any relay may take it. No column beyond the key is in an index, so that every
-- change is a HOT update.
create table {{.schema}}.outbox_slots (
    slot        integer primary key,
    owner       text collate "C",
    token       bigint not null default 0,    -- the fence: every change of owner adds one
    lease_until timestamptz,
    served_at   timestamptz not null default clock_timestamp() -- whose turn it is
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_cost_delay = 0);

insert into {{.schema}}.outbox_slots (slot) select generate_series(0, 63);

create view {{.schema}}.pending_outbox_pending as
select created_at as at, event_id as item, attempts::bigint as version,
       json_build_object('event_id', event_id)::text as payload
from {{.schema}}.outbox
where dead_at is null;
