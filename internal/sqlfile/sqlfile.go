// Package sqlfile loads named SQL queries from embedded files, qualifies their tables with the schema in use, and pins all other
// names, so that they mean the same under any search_path (see Pin).
//
// A file holds any number of queries, each headed by a line `-- name: ClaimReady`. The heading stays in the text that is
// sent, so that pg_stat_statements, traces and auto_explain show which query of ours they saw. Tables are written
// `romancy.instances`, so that the files are valid SQL as they stand.
package sqlfile

import (
	"fmt"
	"io/fs"
	"regexp"
	"strings"
)

// Queries maps a query's name to its text, ready to send.
type Queries map[string]string

var (
	heading   = regexp.MustCompile(`(?m)^-- name: (\w+)\s*$`)
	qualifier = regexp.MustCompile(`\bromancy\.([a-z_]+)`)
	schemaID  = regexp.MustCompile(`^[a-z_][a-z0-9_]*$`)
)

// MaxSchemaLength is the longest schema name in bytes: a channel is named schema_workflow_resumable, and PostgreSQL
// limits channel names to 63 bytes (NAMEDATALEN - 1).
const MaxSchemaLength = 63 - len("_workflow_resumable")

// CheckSchema reports why name cannot be used as the schema of our tables, or nil.
func CheckSchema(name string) error {
	if len(name) > MaxSchemaLength {
		return fmt.Errorf("schema %.40q... is %d bytes long: use at most %d, because channel names are made from it", name, len(name), MaxSchemaLength)
	}
	if !schemaID.MatchString(name) {
		return fmt.Errorf("schema %q is not a plain identifier: use lower-case letters, digits and underscores, starting with a letter or underscore", name)
	}
	switch {
	case reserved[name]:
		return fmt.Errorf("schema %q is a reserved word of SQL: use another name, %s_schema for example", name, name)
	case strings.HasPrefix(name, "pg_") || name == "information_schema":
		return fmt.Errorf("schema %q is PostgreSQL's own: use a name that does not begin with pg_", name)
	}
	return nil
}

// Qualify replaces the schema written in query (always "romancy") by schema.
func Qualify(query, schema string) string {
	return qualifier.ReplaceAllString(query, schema+".$1")
}

// Load reads every .sql file of fsys's directory dir. It returns an error for an invalid schema name, an unreadable
// file, text before the first heading, a name used twice, or a query that Pin does not know.
func Load(fsys fs.FS, dir, schema string) (Queries, error) {
	if err := CheckSchema(schema); err != nil {
		return nil, err
	}
	paths, err := fs.Glob(fsys, dir+"/*.sql")
	if err != nil {
		return nil, fmt.Errorf("list queries: %w", err)
	}
	if len(paths) == 0 {
		return nil, fmt.Errorf("no .sql file in %s", dir)
	}
	queries := Queries{}
	for _, path := range paths {
		text, err := fs.ReadFile(fsys, path)
		if err != nil {
			return nil, fmt.Errorf("read queries: %w", err)
		}
		if err := queries.add(path, string(text), schema); err != nil {
			return nil, err
		}
	}
	return queries, nil
}

func (q Queries) add(path, text, schema string) error {
	heads := heading.FindAllStringSubmatchIndex(text, -1)
	if len(heads) == 0 {
		return fmt.Errorf("%s: no '-- name:' heading", path)
	}
	if strings.TrimSpace(text[:heads[0][0]]) != "" {
		return fmt.Errorf("%s: text before the first '-- name:' heading", path)
	}
	for i, head := range heads {
		end := len(text)
		if i+1 < len(heads) {
			end = heads[i+1][0]
		}
		name := text[head[2]:head[3]]
		if _, taken := q[name]; taken {
			return fmt.Errorf("%s: query %s is defined twice", path, name)
		}
		pinned, err := Pin(strings.TrimSuffix(strings.TrimSpace(text[head[0]:end]), ";"))
		if err != nil {
			return fmt.Errorf("%s: query %s: %w", path, name, err)
		}
		q[name] = Qualify(pinned, schema)
	}
	return nil
}

// Get returns the query called name. A missing query is a mistake in this library, found by the first test that loads the
// package, and panics.
func (q Queries) Get(name string) string {
	query, ok := q[name]
	if !ok {
		panic("sqlfile: no query named " + name)
	}
	return query
}
