-- What happened elsewhere, for every run that waits for it or will: kept until it expires, taken by nobody.
create table {{.schema}}.events (
    id         bigint generated always as identity primary key,
    type       text collate "C" not null check (octet_length(type) between 1 and 255),
    source     text collate "C" not null check (octet_length(source) between 1 and 255),
    event_id   text collate "C" not null check (octet_length(event_id) between 1 and 255),
    match      jsonb not null,          -- the attributes, and the type under the empty name
    data       json,
    created_at timestamptz not null default clock_timestamp(),
    expires_at timestamptz not null,
    unique (source, event_id)           -- what is sent twice is there once
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

-- In the order of id, written as an expression: the primary key must not look like a way to the first event of a type.
create index events_type on {{.schema}}.events (type, (id + 0));
-- Without a list of pending entries, which every look would have to read.
create index events_match on {{.schema}}.events using gin (match jsonb_path_ops) with (fastupdate = off);
create index events_expiry on {{.schema}}.events (expires_at);

-- Parked runs that wait for an event. A row that was left behind by a run that has gone on does no harm.
create table {{.schema}}.event_waits (
    instance_id text collate "C" not null primary key,
    type        text collate "C" not null,
    names       text[] collate "C" not null, -- of the attributes it asks for, in order
    attributes  jsonb not null,
    seen        bigint[] not null       -- the events it has had
) with (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000, autovacuum_vacuum_cost_delay = 0
);

-- From an event to those who wait for it: few sets of names are asked for, and each leaves one set of values to look up.
create index event_waits_asked on {{.schema}}.event_waits (type, names, attributes);

