-- name: Probe
-- Like Publish, but for one message and without arrays: it is sent unprepared, over whatever connection there is.
with quick as materialized (
    select set_config('synchronous_commit', 'off', true)
)
select pg_notify($1::text, $2::text)
from quick;
