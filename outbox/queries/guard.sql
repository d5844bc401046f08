-- name: GuardClaim
-- The outbox is empty most of the time, and vacuumed then. A plan made at such a moment is a sequential scan, which costs
-- nothing on an empty table, and prepared statements keep it for the next backlog. So it is never offered. JIT goes with
-- it: where a sequential scan has no alternative, its penalty would be taken for a query worth compiling.
-- A claim need not be flushed either: if the server crashes and forgets it, its events are taken again, which they would
-- be anyway.
-- One plan is kept, because planning takes longer than executing.
-- No statement that follows waits for a lock longer than $1, or takes longer than $2, nor does the server wait longer for
-- one, whatever the role's defaults are.
select set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true), set_config('synchronous_commit', 'off', true),
       set_config('lock_timeout', $1::text, true), set_config('statement_timeout', $2::text, true),
       set_config('idle_in_transaction_session_timeout', $2::text, true);

-- name: Guard
-- The same for statements whose result must last.
select set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true),
       set_config('lock_timeout', $1::text, true), set_config('statement_timeout', $2::text, true),
       set_config('idle_in_transaction_session_timeout', $2::text, true);

-- name: KeepSession
-- Has the server keep an idle session, as far as this version of it can end one. A pooler that lends one server connection to
-- many tells each of them another process id ($1) than the server's: there nothing is set, since it would be somebody else's.
select set_config(s.name, '0', false)
from pg_catalog.pg_settings s
where s.name in ('idle_session_timeout', 'transaction_timeout') and pg_backend_pid() = $1::bigint;
