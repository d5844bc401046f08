-- What a run can do with channels, and what others see of it while it undoes its steps.

-- A run may subscribe to a channel for what is sent to it alone.
alter table {{.schema}}.subscriptions
    drop constraint subscriptions_mode_check,
    add constraint subscriptions_mode_check check (mode in ('broadcast', 'competing', 'direct'));

alter table {{.schema}}.instances
    add column compensating boolean not null default false; -- it has failed, or is to be cancelled, and undoes its steps

-- The run that id has become by continuing as new, however often.
create function {{.schema}}.heir(id text) returns text
language sql stable as $$
    with recursive line (id, step) as (
        select heir.id, 0
        union all
        select i.output ->> 'continued_as', l.step + 1
        from line l cross join lateral (
            select i.output from {{.schema}}.instances i where i.id = l.id and i.status = 'continued'
        ) i
    )
    select l.id from line l order by l.step desc limit 1
$$;
