-- Who goes first among the ready runs of a workflow, and which of them have killed their workers.

-- Looks for what is most urgent, or, for one priority, for what has become ready since a low-water mark: a range of the index each.
drop index {{.schema}}.instances_ready;
create index instances_ready on {{.schema}}.instances (workflow, priority desc, ready_at) where status = 'ready';

alter table {{.schema}}.instances
    add column died_at timestamptz; -- when a worker was last found dead that had executed it
comment on column {{.schema}}.instances.deaths is 'workers in a row that died while they executed it and had recorded nothing';
