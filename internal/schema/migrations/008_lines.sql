-- Runs that continue one as the other are a line. What is sent to any of them is for the one that lives, which is found by a key,
-- however long the line is.

alter table {{.schema}}.instances
    add column line text collate "C"; -- the first run of the line; null: it is the first itself, and may be the only one

-- One row a line: all but the last have ended.
create index instances_line on {{.schema}}.instances (line) where line is not null and ended_at is null;

with recursive line (id, first, next) as (
    select i.id, i.id, i.output ->> 'continued_as' from {{.schema}}.instances i where i.status = 'continued' and i.continued_from is null
    union all
    select i.id, l.first, case when i.status = 'continued' then i.output ->> 'continued_as' end
    from line l cross join lateral (select * from {{.schema}}.instances i where i.id = l.next offset 0) i
)
update {{.schema}}.instances i set line = l.first from line l where i.id = l.id and l.id <> l.first;

-- The run that id has become by continuing as new, however often: the one that lives, or the last.
create or replace function {{.schema}}.heir(id text) returns text
language sql stable as $$
    select coalesce(
        (select i.id from {{.schema}}.instances i
         where i.line = (select coalesce(former.line, former.id) from {{.schema}}.instances former where former.id = heir.id)
           and i.ended_at is null
         limit 1),
        (with recursive line (id, step) as (
            select heir.id, 0
            union all
            select i.output ->> 'continued_as', l.step + 1
            from line l cross join lateral (
                select i.output from {{.schema}}.instances i where i.id = l.id and i.status = 'continued'
            ) i
        )
        select l.id from line l order by l.step desc limit 1))
$$;
