-- The place of another migration, which replaces this file.
-- compatible since: 12
select 1;
