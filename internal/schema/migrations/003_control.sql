-- What a run may be asked from outside, and what is kept of it when it has ended.

alter table {{.schema}}.instances
    add column cancel   json,                        -- asked to undo what it has done and end: why
    add column priority smallint not null default 0, -- who goes first among the ready ones of a workflow
    add column deaths   smallint not null default 0; -- workers that died while they executed it, since it last parked

-- For retention alone: one entry a run, made when it ends.
create index instances_ended on {{.schema}}.instances (ended_at) where ended_at is not null;

-- A run that begins later waits without a step of its own: its timer is number 0.
create or replace view {{.schema}}.pending_timer_expired as
select wake_at as at, id as item, token as version,
       json_build_object('instance_id', id, 'timer_id', 'timer:' || coalesce(wake_position, 0),
                         'expires_at', to_char(wake_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text as payload
from {{.schema}}.instances
where status = 'waiting' and wake_at is not null;

-- What was sent under a key of the sender's, so that sending it again is nothing: kept until it expires.
create table {{.schema}}.sent_keys (
    key        text collate "C" not null primary key check (octet_length(key) between 1 and 1024),
    expires_at timestamptz not null
) with (autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0);

create index sent_keys_expiry on {{.schema}}.sent_keys (expires_at);
