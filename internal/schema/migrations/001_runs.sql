-- Runs: what executes, what it did, and what it waits for.

create table {{.schema}}.instances (
    id            text collate "C" not null primary key check (octet_length(id) between 1 and 255),
    workflow      text collate "C" not null check (octet_length(workflow) between 1 and 255),
    status        text collate "C" not null check (status in ('ready', 'running', 'waiting', 'stuck', 'completed', 'failed', 'cancelled', 'continued')),
    worker        bigint,               -- running: the owner; waiting: who keeps it in memory
    token         bigint not null,      -- the fence: every change of owner adds one
    ready_at      timestamptz not null, -- since when it could run
    wake_at       timestamptz,          -- waiting: its earliest deadline
    wake_position integer,              -- waiting: the history position of that deadline
    wake_channels text[],               -- waiting: the channels whose messages wake it
    input         json,
    output        json,
    error         json,
    parent        text collate "C",
    continued_from text collate "C",
    trace         json,
    created_at    timestamptz not null default clock_timestamp(),
    ended_at      timestamptz
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
    autovacuum_analyze_scale_factor = 0.05, autovacuum_vacuum_cost_delay = 0
);

-- Only live rows are indexed beyond the key, so ended ones cost nothing.
create index instances_ready on {{.schema}}.instances (workflow, ready_at) where status = 'ready';
create index instances_running on {{.schema}}.instances (worker) where status = 'running';
create index instances_wake on {{.schema}}.instances (wake_at) where status = 'waiting' and wake_at is not null;

create table {{.schema}}.history (
    instance_id text collate "C" not null,
    position    integer not null,
    token       bigint not null,        -- whose record this is: a writer recognises its own after a lost reply
    kind        text collate "C" not null,
    name        text collate "C" not null,
    payload     json,
    created_at  timestamptz not null default clock_timestamp(),
    primary key (instance_id, position)
) with (autovacuum_vacuum_cost_delay = 0, autovacuum_vacuum_insert_scale_factor = 0.05);

-- One row a failed attempt of an activity: the state of its retry policy, which outlives a crash.
create table {{.schema}}.attempts (
    instance_id text collate "C" not null,
    position    integer not null,
    attempt     integer not null,
    error       json not null,
    next_at     timestamptz,            -- when the next attempt is due; null after the last
    failed_at   timestamptz not null default clock_timestamp(),
    primary key (instance_id, position, attempt)
);

create table {{.schema}}.mailbox (
    id         bigint generated always as identity primary key,
    channel    text collate "C" not null check (octet_length(channel) between 1 and 255),
    mode       text collate "C" not null check (mode in ('direct', 'broadcast', 'competing')),
    receiver   text collate "C",        -- null: for whichever competing subscriber takes it
    sender     text collate "C",
    payload    json not null,
    metadata   json,
    created_at timestamptz not null default clock_timestamp()
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

-- In the order of id, written as an expression: the primary key must not look like a way to the first message of a receiver.
create index mailbox_receiver on {{.schema}}.mailbox (receiver, channel, (id + 0)) where receiver is not null;
create index mailbox_age on {{.schema}}.mailbox (created_at); -- for the view below
create index mailbox_unclaimed on {{.schema}}.mailbox (channel, (id + 0)) where receiver is null;

create table {{.schema}}.subscriptions (
    instance_id text collate "C" not null,
    channel     text collate "C" not null check (octet_length(channel) between 1 and 255),
    mode        text collate "C" not null check (mode in ('broadcast', 'competing')),
    created_at  timestamptz not null default clock_timestamp(),
    primary key (instance_id, channel)
);

create index subscriptions_channel on {{.schema}}.subscriptions (channel, mode);

-- One heartbeat row a worker. The lease is in no index, so that renewing it is a HOT update.
create table {{.schema}}.workers (
    id          bigint generated always as identity primary key,
    label       text not null,
    listening   boolean not null default false,
    lease_until timestamptz not null,
    started_at  timestamptz not null default clock_timestamp()
) with (fillfactor = 50, autovacuum_vacuum_threshold = 100, autovacuum_vacuum_cost_delay = 0);

-- What a lost notification would have said, one view a channel: (at, item) orders and pages, version changes when the
-- item does, payload is what the notification carries.
create view {{.schema}}.pending_workflow_resumable as
select ready_at as at, id as item, token as version,
       json_build_object('instance_id', id, 'workflow_name', workflow)::text as payload
from {{.schema}}.instances
where status = 'ready';

create view {{.schema}}.pending_timer_expired as
select wake_at as at, id as item, token as version,
       json_build_object('instance_id', id, 'timer_id', 'timer:' || wake_position,
                         'expires_at', to_char(wake_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text as payload
from {{.schema}}.instances
where status = 'waiting' and wake_at is not null;

create view {{.schema}}.pending_channel_message as
select created_at as at, id::text collate "C" as item, 0::bigint as version,
       json_strip_nulls(json_build_object('channel_name', channel, 'message_id', id,
                                          'target_instance_id', case when mode = 'direct' then receiver end))::text as payload
from {{.schema}}.mailbox;
