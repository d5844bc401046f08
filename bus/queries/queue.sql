-- name: QueueUsage
-- How much of the NOTIFY queue of the whole cluster is in use, from 0 to 1. Any role may ask (PostgreSQL 14 to 18).
select pg_catalog.pg_notification_queue_usage();
