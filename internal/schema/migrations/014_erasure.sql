-- What a run has left can be erased while its row stays, which says that it was.
--
-- Builds of version 12 do not write it, and refuse to retry such a run, because drained_at is set as well. The result of one that
-- completed is the zero value for them.
-- compatible since: 12

alter table {{.schema}}.instances
    add column erased_at timestamptz; -- when input, output, errors and all that it had recorded were erased
