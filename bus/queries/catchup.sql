-- name: PendingWorkflowResumable
select p.at, p.item, p.version, p.payload
from romancy.pending_workflow_resumable as p
where (p.at, p.item) > ($1::timestamptz, $2::text)
order by p.at, p.item
limit $3::bigint;

-- name: PendingTimerExpired
select p.at, p.item, p.version, p.payload
from romancy.pending_timer_expired as p
where (p.at, p.item) > ($1::timestamptz, $2::text)
order by p.at, p.item
limit $3::bigint;

-- name: PendingChannelMessage
select p.at, p.item, p.version, p.payload
from romancy.pending_channel_message as p
where (p.at, p.item) > ($1::timestamptz, $2::text)
order by p.at, p.item
limit $3::bigint;

-- name: PendingOutboxPending
select p.at, p.item, p.version, p.payload
from romancy.pending_outbox_pending as p
where (p.at, p.item) > ($1::timestamptz, $2::text)
order by p.at, p.item
limit $3::bigint;
