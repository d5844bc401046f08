-- Roles for a database with Romancy in schema "romancy". Execute this once, as a superuser, before the first romancy.Migrate, and
-- grants.sql after each Migrate. It may be executed again. docs/operations.md says how logins get these roles.
-- Made from internal/schema by: go test ./internal/schema -run TestRolesFiles -update

do $$
declare
    name text;
begin
    foreach name in array array[
        'romancy_migrate', -- Owns the schema and migrates it.
        'romancy_run', -- Executes workflows, with all sweeps, and does all that a client does.
        'romancy_relay', -- Publishes what is in the outbox and keeps its dead letters, with the sweeps.
        'romancy_client', -- Starts runs, sends to them, cancels, retries and erases them, and reads what they did.
        'romancy_write', -- Adds events to the outbox, in its own transactions.
        'romancy_subscribe', -- Subscribes to the notification channels, with catch-up.
        'romancy_read' -- Reads runs, their histories and the outbox: dashboards.
    ] loop
        if not exists (select from pg_catalog.pg_roles where rolname = name) then
            execute format('create role %I nologin', name);
        end if;
    end loop;
end
$$;

-- Nobody else creates anything here, and nobody uses it who is not granted that.
create schema if not exists romancy authorization romancy_migrate;
revoke all on schema romancy from public;

-- PostgreSQL lets everybody call every new function: not those that this role makes. This cannot be said of one schema alone, so let
-- this role make nothing else.
alter default privileges for role romancy_migrate revoke execute on functions from public;
