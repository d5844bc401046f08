-- name: GuardClaim
-- The outbox is empty most of the time, and vacuumed then. A plan made at such a moment is a sequential scan, which costs
-- nothing on an empty table, and prepared statements keep it for the next backlog. So it is never offered. JIT goes with
-- it: where a sequential scan has no alternative, its penalty would be taken for a query worth compiling.
-- A claim need not be flushed either: if the server crashes and forgets it, its events are taken again, which they would
-- be anyway.
-- One plan is kept, because planning takes longer than executing.
select set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true), set_config('synchronous_commit', 'off', true);

-- name: Guard
-- The same for statements whose result must last.
select set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true),
       set_config('plan_cache_mode', 'force_generic_plan', true);
