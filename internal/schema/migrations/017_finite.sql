-- Moments are moments: one that is infinite, which somebody has set by hand, has no number of microseconds, and what reads many rows would
-- fail because of one.
-- compatible since: 12

alter table {{.schema}}.instances
    add constraint instances_finite check (isfinite(ready_at) and isfinite(wake_at) and isfinite(created_at) and isfinite(ended_at)) not valid;
alter table {{.schema}}.outbox
    add constraint outbox_finite check (isfinite(created_at) and isfinite(dead_at)) not valid; -- next_at is infinite on purpose
