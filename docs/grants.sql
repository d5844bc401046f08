-- What each role of roles.sql may do in schema "romancy", and no more. Execute this after each romancy.Migrate and before the processes of the new
-- build start, as romancy_migrate or a superuser. It may be executed again. Nothing is granted for tables that do not exist yet: what
-- a later migration makes is granted by that build's file, and until then by nothing.
-- Made from internal/schema by: go test ./internal/schema -run TestRolesFiles -update

begin;

revoke execute on all functions in schema romancy from public;
revoke insert on table romancy.outbox from romancy_write; -- on all columns, which this file once granted

-- Executes workflows, with all sweeps, and does all that a client does.
grant usage on schema romancy to romancy_run;
grant select on table romancy.schema_version to romancy_run;
grant select, insert, update, delete on table romancy.instances to romancy_run;
grant select, insert, delete on table romancy.history to romancy_run;
grant select, insert, delete on table romancy.attempts to romancy_run;
grant select, insert, delete on table romancy.interruptions to romancy_run;
grant select, insert, update, delete on table romancy.mailbox to romancy_run;
grant select, insert, update, delete on table romancy.subscriptions to romancy_run;
grant select, insert, update, delete on table romancy.workers to romancy_run;
grant select, insert, update, delete on table romancy.sent_keys to romancy_run;
grant select, insert, update, delete on table romancy.events to romancy_run;
grant select, insert, update, delete on table romancy.event_waits to romancy_run;
grant execute on function romancy.heir to romancy_run;
grant execute on function romancy.input_matches to romancy_run;
grant select, insert, update, delete on table romancy.river_job to romancy_run;
grant select, insert, update, delete on table romancy.river_leader to romancy_run;
grant select, insert, update, delete on table romancy.river_queue to romancy_run;
grant select on table romancy.river_migration to romancy_run;
grant usage on sequence romancy.river_job_id_seq to romancy_run;
grant execute on function romancy.river_job_state_in_bitmask to romancy_run;

-- Publishes what is in the outbox and keeps its dead letters, with the sweeps.
grant usage on schema romancy to romancy_relay;
grant select on table romancy.schema_version to romancy_relay;
grant select, update, delete on table romancy.outbox to romancy_relay;
grant select, insert, update on table romancy.outbox_slots to romancy_relay;
grant select, insert, update, delete on table romancy.river_job to romancy_relay;
grant select, insert, update, delete on table romancy.river_leader to romancy_relay;
grant select, insert, update, delete on table romancy.river_queue to romancy_relay;
grant select on table romancy.river_migration to romancy_relay;
grant usage on sequence romancy.river_job_id_seq to romancy_relay;
grant execute on function romancy.river_job_state_in_bitmask to romancy_relay;

-- Starts runs, sends to them, cancels, retries and erases them, and reads what they did.
grant usage on schema romancy to romancy_client;
grant select on table romancy.schema_version to romancy_client;
grant select, insert, update on table romancy.instances to romancy_client;
grant select, insert, delete on table romancy.history to romancy_client;
grant select, delete on table romancy.attempts to romancy_client;
grant select, delete on table romancy.interruptions to romancy_client;
grant select, insert, delete on table romancy.mailbox to romancy_client;
grant select, insert, delete on table romancy.subscriptions to romancy_client;
grant select on table romancy.workers to romancy_client;
grant select, insert, update on table romancy.sent_keys to romancy_client;
grant select, insert, update on table romancy.events to romancy_client;
grant select, delete on table romancy.event_waits to romancy_client;
grant execute on function romancy.heir to romancy_client;
grant execute on function romancy.input_matches to romancy_client;

-- Adds events to the outbox, in its own transactions.
grant usage on schema romancy to romancy_write;
grant insert(event_id,topic,key,slot,payload,headers) on table romancy.outbox to romancy_write;

-- Subscribes to the notification channels, with catch-up.
grant usage on schema romancy to romancy_subscribe;
grant select on table romancy.pending_workflow_resumable to romancy_subscribe;
grant select on table romancy.pending_timer_expired to romancy_subscribe;
grant select on table romancy.pending_channel_message to romancy_subscribe;
grant select on table romancy.pending_outbox_pending to romancy_subscribe;

-- Reads runs, their histories and the outbox: dashboards.
grant usage on schema romancy to romancy_read;
grant select on table romancy.instances to romancy_read;
grant select on table romancy.history to romancy_read;
grant select on table romancy.attempts to romancy_read;
grant select on table romancy.interruptions to romancy_read;
grant select on table romancy.workers to romancy_read;
grant select on table romancy.outbox to romancy_read;
grant execute on function romancy.input_matches to romancy_read;

commit;
