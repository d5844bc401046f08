-- Which workflows a worker executes, so that runs become visible that no living worker has the code for. Null: of an older build, which
-- may execute anything.

alter table {{.schema}}.workers add column workflows text[];
