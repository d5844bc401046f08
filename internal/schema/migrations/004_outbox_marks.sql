-- What an old snapshot keeps from being removed is passed over.
--
-- The token becomes part of the key of a slot, although there is one row a slot: it grows with every change of owner, so the
-- row is the last entry of its slot. Its former versions come before it and are never read.
alter table {{.schema}}.outbox_slots
    add column low bigint not null default 0, -- the low-water mark: no event with a smaller id is ready or taken, or will be
    drop constraint outbox_slots_pkey,
    add primary key (slot, token);
