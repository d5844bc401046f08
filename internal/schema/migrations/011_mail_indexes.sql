-- Ways to what the next migration needs, made without keeping anybody from writing.
-- transaction: none

-- The messages of a line, in the order of their ids, whatever was published to its first run. Both expressions are there so that no
-- other index looks like a way to them.
create index concurrently if not exists mailbox_line on {{.schema}}.mailbox ((receiver || ''), channel, (id + 0)) where mode = 'direct';

-- Whether the last run of a line has failed, and may be retried: without a walk through the line.
create index concurrently if not exists instances_line_failed on {{.schema}}.instances (line) where line is not null and status = 'failed';
