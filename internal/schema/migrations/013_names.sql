-- Names mean what they meant when they were written, whoever's session it is.
-- compatible since: 12

-- The body of this function is read anew in the session that calls it, which may be the application's own.
alter function {{.schema}}.heir(text) set search_path = pg_catalog, pg_temp;

-- Views are resolved when they are made. Builds before migrations had a search_path of their own may have made them under another.
create or replace view {{.schema}}.pending_workflow_resumable as
select ready_at as at, id as item, token as version,
       json_build_object('instance_id', id, 'workflow_name', workflow)::text as payload
from {{.schema}}.instances
where status = 'ready';

create or replace view {{.schema}}.pending_timer_expired as
select wake_at as at, id as item, token as version,
       json_build_object('instance_id', id, 'timer_id', 'timer:' || coalesce(wake_position, 0),
                         'expires_at', to_char(wake_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'))::text as payload
from {{.schema}}.instances
where status = 'waiting' and wake_at is not null;

create or replace view {{.schema}}.pending_channel_message as
select m.created_at as at, m.id::text collate "C" as item, 0::bigint as version,
       json_strip_nulls(json_build_object(
           'channel_name', m.channel, 'message_id', m.id,
           'target_instance_id', case when m.mode = 'direct' then coalesce(
               (select i.id from {{.schema}}.instances i where i.line = m.receiver and i.ended_at is null limit 1), m.receiver) end))::text as payload
from {{.schema}}.mailbox m;

create or replace view {{.schema}}.pending_outbox_pending as
select created_at as at, event_id as item, attempts::bigint as version,
       json_build_object('event_id', event_id)::text as payload
from {{.schema}}.outbox
where dead_at is null;
