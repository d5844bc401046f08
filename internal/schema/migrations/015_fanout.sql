-- The subscribers of a channel in the order of their ids, so that a message goes to some of them after the other.
-- compatible since: 12

create index subscriptions_order on {{.schema}}.subscriptions (channel, mode, instance_id);
drop index {{.schema}}.subscriptions_channel;
