package schema

import "fmt"

// versionTable makes the table of one row that holds the version, or adds to one that was made with a column of that name alone
// and no key, whose row cannot be updated while a publication of all tables exists. Older builds read the column.
func versionTable(schema string) string {
	return fmt.Sprintf(`create table if not exists %[1]s.schema_version (version int4 not null);
alter table %[1]s.schema_version
    add column if not exists compatible_since int4,
    add column if not exists only_row boolean not null default true check (only_row);
do $romancy$ begin
    if not exists (select from pg_index where indrelid = '%[1]s.schema_version'::regclass and indisprimary) then
        alter table %[1]s.schema_version add primary key (only_row);
    end if;
end $romancy$;
comment on column %[1]s.schema_version.compatible_since is 'builds that know this version or a later one work with the schema';
insert into %[1]s.schema_version (version, compatible_since) select 0, 0 where not exists (select from %[1]s.schema_version);
update %[1]s.schema_version set compatible_since = version where compatible_since is null;
`, schema)
}

func recordVersion(schema string, m *migration) string {
	return fmt.Sprintf("update %s.schema_version set version = %d, compatible_since = %d where version = %d",
		schema, m.version, m.compatible, m.version-1)
}
