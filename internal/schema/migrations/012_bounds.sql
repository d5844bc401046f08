-- No statement has to touch all of a mailbox.
--
-- What is sent to one run is addressed to its line: mailbox.receiver is the first run of the line (the run itself, if it is not part of
-- a line). Whichever run of the line lives receives it, so nothing is moved when a run continues as new. What is published has the
-- subscribed run itself as its receiver, and nobody receives it when that has ended.
--
-- Older builds go on addressing what they send to the run itself: it is received as before, and swept to the line when the run continues
-- as new. What newer builds address to a line, the sweeps of older ones take for messages that a continued run has left behind, and move
-- to the run that lives.

create or replace view {{.schema}}.pending_channel_message as
select m.created_at as at, m.id::text collate "C" as item, 0::bigint as version,
       json_strip_nulls(json_build_object(
           'channel_name', m.channel, 'message_id', m.id,
           'target_instance_id', case when m.mode = 'direct' then coalesce(
               (select i.id from {{.schema}}.instances i where i.line = m.receiver and i.ended_at is null limit 1), m.receiver) end))::text as payload
from {{.schema}}.mailbox m;

-- When retention has begun to delete what this run has left. Its history is not whole any more, so it cannot be retried.
alter table {{.schema}}.instances add column drained_at timestamptz;
