-- Inputs are json, and paths are of jsonb, which refuses some of them.
-- compatible since: 12

create function {{.schema}}.input_matches(input text, path jsonpath) returns boolean
language plpgsql stable set search_path = pg_catalog, pg_temp as $$
begin
    return coalesce(jsonb_path_exists(input::jsonb, path, silent => true), false);
exception when others then
    return false; -- what jsonb refuses matches no path: a NUL, half a surrogate pair, a number beyond its range
end
$$;
