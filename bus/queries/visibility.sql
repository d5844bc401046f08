-- name: Visibility
-- Returns the oldest transaction that is still writing, and the one that would be the next. A reader that leaves out what
-- is not older than the former sees all that is committed before the latter once the former has caught up with it.
select pg_snapshot_xmin(s)::text, pg_snapshot_xmax(s)::text from pg_current_snapshot() as s
